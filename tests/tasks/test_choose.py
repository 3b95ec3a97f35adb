"""choose: columns are found, the question joins the context, candidates are scored in their own order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXModel

from gossamer.errors import BadData, BadPlan
from gossamer.tasks.choose import Choose
from gossamer.tasks.infer import outputs
from gossamer.tasks.task import plan_task, read_task
from tests.tiny import base_directory, tokenizer

COPA: dict[str, list[Any]] = {
    "choice1": ["w3", "w4 w5 w6"], "choice2": ["w7 w8", "w9"], "idx": [0, 1], "label": [0, 1], "premise": ["w1", "w2 w2"],
    "question": ["cause", "effect"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("table", "context", "choices", "first"),
    [
        (COPA, ("premise",), ("choice1", "choice2"), 0),
        ({"context": ["a"], "endings": [["b", "c", "d"]], "label": ["2"]}, ("context",), ("endings",), 0),
        ({"sent1": ["a"], "sent2": ["b"], "ending10": ["x"], "ending2": ["y"], "label": [1]}, ("sent1", "sent2"),
         ("ending2", "ending10"), 0),
        ({"question": ["a"], "choices": [{"text": ["b", "c"], "label": ["A", "B"]}], "answer": ["B"]}, ("question",),
         ("choices",), 0),
        ({"text": ["a", "a"], "sol1": ["b", "b"], "sol2": ["c", "c"], "label": [1, 2]}, ("text",), ("sol1", "sol2"), 1),
    ],
)  # fmt: skip
def test_columns_are_found(table: dict[str, list[Any]], context: Any, choices: Any, first: int) -> None:
    task = plan_task("multiple-choice", table)
    assert isinstance(task, Choose)
    assert (task.context, task.choices, task.first) == (context, choices, first)
    assert read_task(task.describe()) == task


def test_the_question_joins_the_context() -> None:
    contexts, candidates = Choose.plan(COPA)._texts(COPA)
    assert contexts == ["w1 What was the cause?", "w2 w2 What happened as a result?"]
    assert candidates == [["w3", "w7 w8"], ["w4 w5 w6", "w9"]]


def test_a_model_scores_each_pair_by_itself(tmp_path: Path) -> None:
    task = Choose.plan(COPA)
    model, head = task.build(str(base_directory(tmp_path)), 0)
    assert any("classifier" in name for name in head)
    examples = task.encode(tokenizer(), COPA)
    batch = task.collate(tokenizer())(examples)
    assert batch["input_ids"].shape[:2] == (2, 2)
    assert batch["labels"].tolist() == [0, 1]
    model.eval()
    assert torch.isfinite(model(**batch).loss)
    found = outputs(model, examples, task.collate(tokenizer()), task.found)
    for example, scores in zip(examples, found, strict=True):
        for i in range(2):
            alone = {n: torch.tensor([[example[n][i]]]) for n in ("input_ids", "attention_mask")}
            assert model(**alone).logits.item() == pytest.approx(float(scores[i]), abs=1e-5)
    answers = task.answers(found, examples)
    assert [answer["choice"] for answer in answers] == [
        e["_choices"][int(s.argmax())] for e, s in zip(examples, found, strict=True)
    ]
    assert "labels" not in task.encode(tokenizer(), COPA, labelled=False)[0]


def test_scores_and_baseline() -> None:
    task = Choose.plan({**COPA, "label": [1, 1]})
    encoded = [{"labels": 1}, {"labels": 0}, {"labels": 1}]
    found = [np.array([0.0, 1.0]), np.array([0.0, 1.0]), np.array([2.0, 1.0])]
    assert task.scores(found, encoded) == {"accuracy": pytest.approx(1 / 3)}
    assert task.baseline(encoded) == {"accuracy": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"premise": ["a"], "label": [0]}, "cannot tell which columns are the candidates"),
        ({"choice1": ["a"], "choice2": ["b"], "label": [0]}, "cannot tell which column is the context"),
        (
            {"text": ["a", "b"], "options": [["a", "b"], ["c"]], "label": [0, 0]},
            "row 2 has 1 candidates; every row needs 2",
        ),
        ({"text": ["a"], "options": ["ab"], "label": [0]}, "expected a list of candidates"),
        ({**COPA, "label": [0, 5]}, "row 2 holds 5; expected 0 to 1"),
        ({**COPA, "label": [0, "maybe"]}, "row 2 holds 'maybe'"),
        ({**COPA, "choice2": ["a", None]}, "'choice2', row 2 holds None"),
    ],
)
def test_bad_data(table: dict[str, list[Any]], says: str) -> None:
    with pytest.raises(BadData, match=says):
        Choose.plan(table)


def test_an_architecture_without_such_a_model(tmp_path: Path) -> None:
    settings = {
        "vocab_size": 95,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    GPTNeoXModel(GPTNeoXConfig(**settings)).save_pretrained(tmp_path)
    with pytest.raises(BadPlan, match="no multiple-choice model of the kind 'gpt_neox'"):
        Choose.plan(COPA).build(str(tmp_path), 0)
