"""Parsing: the share of decoding in evaluation, MiniLM with an untrained head over sentences of random lengths.

Scores of an untrained head are the worst case: the best heads of words hardly ever form a tree, so that nearly every sentence
needs the arborescence. "90 % right" imitates a trained parser: scores of random trees, for one word of ten another head.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from benchmarks.common import Figure, interleave
from gossamer.tasks.arborescence import decode
from gossamer.tasks.parse import Parse

SENTENCES, BATCH = 128, 16
RELATIONS = 50
Scores = list[tuple[np.ndarray, np.ndarray]]


def measure(*, quick: bool = False) -> list[Figure]:
    """Forwards with decoding as evaluation makes them, against decoding alone on the same scores."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    task = Parse(tuple(f"relation{i}" for i in range(RELATIONS)), "relation0", True)
    model, _ = task.build("minilm", 0)
    model.eval()
    batches = [_batch(seed) for seed in range(SENTENCES // BATCH)]
    with torch.no_grad():
        scores = [(model(**batch).arc_scores.numpy(), (batch["words"].amax(1) + 1).numpy()) for batch in batches]
    trained = [(_like_trained(arcs, lengths, seed), lengths) for seed, (arcs, lengths) in enumerate(scores)]

    def evaluation() -> None:
        with torch.no_grad():
            for batch in batches:
                task.found(model(**batch), batch)

    times = interleave(
        {"evaluation": evaluation, "decoding": lambda: _decode(scores), "trained": lambda: _decode(trained),
         "greedy": lambda: _decode(scores, tree=False)}, rounds=2 if quick else 9, warmup=1)  # fmt: skip
    return [
        times.ratio("decoding", "evaluation", "decoding / evaluation, untrained head (worst case)", 0.15),
        times.ratio("trained", "evaluation", "decoding / evaluation, 90 % of heads right", 0.15),
        times.ratio("greedy", "evaluation", "greedy decoding / evaluation"),
        Figure("sentences that are not solved by their best heads, untrained", _unsolved(scores), "%"),
        Figure("sentences that are not solved by their best heads, 90 % right", _unsolved(trained), "%"),
        times.milliseconds("evaluation", f"evaluation of {SENTENCES} sentences"),
    ]


def _batch(seed: int) -> dict[str, torch.Tensor]:
    """Sentences of 1 to 60 words of one to three tokens, as a task would encode them."""
    rng = random.Random(seed)
    examples: list[dict[str, Any]] = []
    for _ in range(BATCH):
        words = [word for word in range(rng.randint(1, 60)) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
        ids = [101, *(rng.randrange(1000, 30522) for _ in words), 102]
        examples.append({"input_ids": ids, "words": [-1, *words, -1]})
    return Parse((), "", True).collate(_Padding)(examples)


class _Padding:
    pad_token_id = 0


def _like_trained(arcs: np.ndarray, lengths: np.ndarray, seed: int) -> np.ndarray:
    """Scores under which nine words of ten prefer their head in a random tree."""
    rng = np.random.default_rng(seed)
    made = arcs.copy()
    for i, n in enumerate(lengths):
        order = rng.permutation(n)
        for place, word in enumerate(order):
            head = order[rng.integers(place)] + 1 if place else 0
            if rng.random() < 0.1:
                head = rng.choice([h for h in range(n + 1) if h != word + 1])
            made[i, word, head] = 10.0
    return made


def _decode(scores: Scores, *, tree: bool = True) -> None:
    for arcs, lengths in scores:
        decode(arcs, lengths, tree=tree)


def _unsolved(scores: Scores) -> float:
    """The percentage of sentences where the tree is not the best heads."""
    differ = [(decode(*pair) != decode(*pair, tree=False)).any(-1) for pair in scores]
    return 100 * float(np.concatenate(differ).mean())
