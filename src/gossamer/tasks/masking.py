"""Masked examples of token files, masked anew at every look: by their contents, or by torch's seed, epoch and number.

See `mask.py` for what is masked, and why nothing is drawn from a running generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from gossamer.tasks.lazy import Lazy
from gossamer.tasks.tokens import Tokens


class Masked(Lazy[dict[str, Any]]):
    """Examples that are masked when they are asked for: by what they hold, or, after `set_epoch`, by the epoch."""

    def __init__(
        self, tokens: Tokens, drawn: Callable[..., Any], before: list[int], after: list[int], seed: int
    ) -> None:
        self.tokens, self.drawn, self.before, self.after, self.seed = tokens, drawn, before, after, seed
        self.epoch: int | None = None

    def set_epoch(self, epoch: int | None) -> None:
        """New masks for a new epoch; None: evaluation's."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.tokens)

    def at(self, i: int) -> dict[str, Any]:
        ids, goes_on = self.tokens.piece(i)
        if self.epoch is None:
            known = int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=16).digest(), "little")
            key = [self.seed, known]
        else:
            key = [torch.initial_seed(), self.epoch, i]
        # the raw stream is what NumPy promises never to change
        raw = np.random.PCG64(np.random.SeedSequence(key)).random_raw(3 * len(ids))
        inputs, labels = self.drawn(ids, goes_on, (raw >> np.uint64(11)).reshape(3, -1) * 2.0**-53)
        inputs = [*self.before, *inputs.tolist(), *self.after]
        labels = [-100] * len(self.before) + labels.tolist() + [-100] * len(self.after)
        return {"input_ids": inputs, "attention_mask": [1] * len(inputs), "labels": labels, "_row": self.tokens.row(i)}


def masked(
    ids: np.ndarray,
    goes_on: np.ndarray,
    draws: np.ndarray,
    *,
    idle: np.ndarray,
    rate: float,
    mask: int,
    vocabulary: int,
) -> tuple[np.ndarray, np.ndarray]:
    """What the model sees, and what it is asked for (−100 elsewhere).

    Args:
        ids: [n] tokens.
        goes_on: [n] bool, tokens that are chosen together with the one before.
        draws: [3, n] in [0, 1): which are chosen, what becomes of them, what takes their place.
        idle: tokens that are never chosen; at least one of `ids` is none of them.

    >>> draws = np.array([[0.1, 0.5, 0.9, 0.0], [0.5, 0.85, 0.0, 0.0], [0.0, 0.5, 0.0, 0.0]])
    >>> masked(np.array([7, 8, 9, 2]), np.array([False, True, False, False]), draws, idle=np.array([2]), rate=0.15, mask=4,
    ...        vocabulary=10)
    (array([4, 5, 9, 2]), array([   7,    8, -100, -100]))
    """
    word = np.cumsum(~goes_on) - 1  # of each token
    free = ~np.isin(ids, idle)
    draw = np.where(free, draws[0][~goes_on][word], np.inf)
    chosen = draw < max(rate, np.nextafter(draw.min(), np.inf))  # at least the likeliest
    inputs = np.where(chosen & (draws[1] < 0.8), mask, ids)
    other = chosen & (draws[1] >= 0.8) & (draws[1] < 0.9)
    inputs = np.where(other, (draws[2] * vocabulary).astype(ids.dtype), inputs)
    return inputs, np.where(chosen, ids, -100)
