"""The contract of tasks: each, from a file through `fit` to scores and answers of the delta's file, and back."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from gossamer.tasks.readers import size
from gossamer.tasks.task import TASKS, Writes
from gossamer.train.bench import open_delta
from gossamer.train.config import FitConfig
from gossamer.train.job import run_fit
from tests.tasks.language import masked_directory
from tests.tiny import WORDS, base_directory, tokenizer


def sentence(rng: random.Random, words: int = 6) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def row(task: str, rng: random.Random, i: int) -> Any:
    a, b = sentence(rng), sentence(rng)
    return {
        "classify": {"text": a, "label": ["x", "y"][i % 2]},
        "choose": {"premise": a, "choice1": b, "choice2": a, "question": ["cause", "effect"][i % 2], "label": i % 2},
        "tag": "".join(f"{word}\t{['O', 'B-PER'][j == i % 3]}\n" for j, word in enumerate(a.split())) + "\n",
        "parse": "".join(
            f"{j + 1}\t{word}\t_\tX\t_\t_\t{j}\t{'dep' if j else 'root'}\t_\t_\n" for j, word in enumerate(a.split())
        )
        + "\n",
        "answer": {"id": str(i), "question": b, "context": a, "answers": [{"text": a.split()[0], "answer_start": 0}]},
        "embed": {"sentence1": a, "sentence2": b, "score": float(i % 6)},
        "mask": a + "\n",
        "generate": {"prompt": a, "response": b},
    }[task]


SUFFIX = {"tag": ".txt", "parse": ".conllu", "mask": ".txt", "answer": ".json"}


def write(task: str, path: Path, seed: int) -> Path:
    rng = random.Random(seed)
    rows = [row(task, rng, i) for i in range(12)]
    path = path.with_suffix(SUFFIX.get(task, ".jsonl"))
    if task == "answer":
        qas = [{"context": r["context"], "qas": [{k: r[k] for k in ("id", "question", "answers")}]} for r in rows]
        path.write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": qas}]}))
    elif isinstance(rows[0], str):
        path.write_text("".join(rows))
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def base(task: str, folder: Path) -> Path:
    if task == "generate":
        GPT2LMHeadModel(
            GPT2Config(vocab_size=95, n_embd=16, n_layer=2, n_head=2, n_positions=128, bos_token_id=2, eos_token_id=3,
                       pad_token_id=0)
        ).save_pretrained(folder)  # fmt: skip
        made = tokenizer()
        made.eos_token = "[SEP]"
        made.save_pretrained(folder)
        return folder
    return masked_directory(folder) if task == "mask" else base_directory(folder)


@pytest.mark.parametrize("method", ["random", "lt-sft", "pfeiffer"])
@pytest.mark.parametrize("task", TASKS)
def test_from_file_to_answers(task: str, method: str, tmp_path: Path) -> None:
    train, held_out = (write(task, tmp_path / name, seed) for name, seed in (("train", 0), ("eval", 1)))
    config = FitConfig(base=str(base(task, tmp_path / "base")), train=str(train), eval=str(held_out), task=task,
                       out=tmp_path / "d.safetensors", method=method, steps=2, max_length=32,
                       density=None if method == "pfeiffer" else 0.05)  # fmt: skip
    result = run_fit(config)
    assert result.metric in result.scores
    assert result.baseline.keys() <= result.scores.keys()
    delta, bench = open_delta(config.out)
    table = bench.read(str(held_out))
    examples = bench.task.encode(bench.tokenizer, table)
    assert bench.score(delta, examples) == pytest.approx(dict(result.scores), rel=1e-4, abs=1e-6)
    if task == "mask":  # asks for one word of each line
        table = {"text": [f"{text} [MASK]" for text in table["text"]]}
    answers = bench.answer(delta, bench.task.encode(bench.tokenizer, table, labelled=False))
    assert len(answers) == size(table)
    assert json.loads(json.dumps(answers)) == answers
    if isinstance(bench.task, Writes):
        assert bench.task.write(answers, table).count("\n\n") == size(table)
