"""Pre-processing: sentences a second from words and tags to a model's inputs, and the share of padding in training's batches.

The sentences are made up: words of a vocabulary of 20,000 (words of MiniLM's own, some joined, so that they take one to four
pieces), as frequent as in text (Zipf), in lengths as in news and web text (log-normal, median 14, longest 150). Batches are those
of transformers' Trainer under the default of `gossamer fit`, group_by_length, at 32 examples, over an epoch.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Figure, Times, interleave
from gossamer.tasks.columns import read as read_columns
from gossamer.tasks.pretrained import load_tokenizer
from gossamer.tasks.tag import Tag

BATCH = 32


def measure(*, quick: bool = False) -> list[Figure]:
    """Times a thousand sentences against the goal of 20,000 sentences a second, and the padding over an epoch."""
    count = 2_000 if quick else 12_000
    tokenizer = load_tokenizer("minilm")
    table = sentences(tokenizer, count)
    task = Tag.plan(table)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        rows = zip(table["words"], table["tags"], strict=True)
        path.write_text("\n".join("".join(f"{w} {t}\n" for w, t in zip(*row, strict=True)) for row in rows), "utf-8")
        times = interleave(
            {"encode": lambda: task.encode(tokenizer, table), "read": lambda: read_columns(path)},
            rounds=3 if quick else 9,
        )
    per_thousand = Times({name: seconds * 1000 / count for name, seconds in times.seconds.items()})
    lengths = [len(example["input_ids"]) for example in task.encode(tokenizer, table)]
    return [
        per_thousand.milliseconds("encode", "words and tags to inputs, 1,000 sentences", 50.0),
        per_thousand.milliseconds("read", "a column file to words and tags, 1,000 sentences"),
        Figure(f"padding in batches of {BATCH}, group_by_length", 100 * padding(lengths, BATCH), "%", 10.0),
        Figure(f"padding in batches of {BATCH}, shuffled", 100 * padding(lengths, BATCH, grouped=False), "%"),
    ]


def padding(lengths: list[int], batch_size: int, *, grouped: bool = True) -> float:
    """The share of padding among the tokens of an epoch's batches."""
    from transformers.trainer_pt_utils import LengthGroupedSampler

    generator = torch.Generator().manual_seed(0)
    if grouped:
        order = list(LengthGroupedSampler(batch_size, lengths=lengths, generator=generator))
    else:
        order = torch.randperm(len(lengths), generator=generator).tolist()
    batches = [[lengths[i] for i in order[j : j + batch_size]] for j in range(0, len(order), batch_size)]
    return 1 - sum(lengths) / sum(len(batch) * max(batch) for batch in batches)


def sentences(tokenizer: Any, count: int) -> dict[str, list[list[str]]]:
    """A table of made-up sentences of words with tags."""
    rng = np.random.default_rng(0)
    own = np.array(sorted(word for word in tokenizer.get_vocab() if word.isalpha() and word.isascii()))
    vocabulary = np.array(["".join(rng.choice(own, 1 + i % 2 * int(rng.integers(1, 3)))) for i in range(20_000)])
    lengths = np.clip(np.exp(rng.normal(np.log(14), 0.75, count)).astype(int), 1, 150)
    chances = 1 / np.arange(1, len(vocabulary) + 1)
    drawn = rng.choice(len(vocabulary), int(lengths.sum()), p=chances / chances.sum())
    cuts = np.cumsum(lengths)[:-1]
    tags = np.array(["NOUN", "VERB", "ADJ", "PUNCT"])[drawn % 4]
    return {"words": [part.tolist() for part in np.split(vocabulary[drawn], cuts)],
            "tags": [part.tolist() for part in np.split(tags, cuts)]}  # fmt: skip
