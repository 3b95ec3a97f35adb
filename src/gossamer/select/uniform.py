"""random: k entries drawn uniformly without replacement. The control that every other rule must beat."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from gossamer.delta.support import Support
from gossamer.delta.topk import apportion, check_k, free


def uniform(
    parameters: Mapping[str, Tensor], k: int, *, seed: int = 0, per_tensor: bool = False, without: Support | None = None
) -> Support:
    """k of all entries, exactly, each set equally likely; or a proportional share of each tensor's. None of `without`.

    >>> uniform({"w": torch.zeros(2, 3)}, 2, seed=1).k
    2
    """
    generator = np.random.default_rng(seed)
    without = without or Support({})
    sizes = free({name: parameter.numel() for name, parameter in parameters.items()}, without)
    if per_tensor:
        shares = apportion(sizes, k)
        return Support({n: _placed(_draw(generator, size, shares[n]), without.get(n)) for n, size in sizes.items()})
    total = sum(sizes.values())
    check_k(k, total)
    drawn = _draw(generator, total, k)
    starts = np.cumsum([0, *sizes.values()])
    bounds = np.searchsorted(drawn, starts)
    return Support({
        n: _placed(drawn[bounds[i] : bounds[i + 1]] - starts[i], without.get(n)) for i, n in enumerate(sizes)
    })  # fmt: skip


def _placed(ranks: np.ndarray, barred: Tensor | None) -> Tensor:
    """The flat indices of entries, given by their ranks among those that are not barred."""
    if barred is None:
        return torch.from_numpy(ranks)
    before = barred.numpy() - np.arange(barred.numel())  # how many free entries come before each barred one
    return torch.from_numpy(ranks + np.searchsorted(before, ranks, side="right"))


def _draw(generator: np.random.Generator, n: int, k: int) -> np.ndarray:
    """k of n without replacement, sorted, in O(k) memory: draw, drop repeats, draw what is missing."""
    if 2 * k > n:
        rest = np.ones(n, bool)
        rest[_draw(generator, n, n - k)] = False
        return np.flatnonzero(rest)
    found = np.zeros(0, np.int64)
    while found.size < k:
        more = generator.integers(0, n, k - found.size)
        found = np.union1d(found, more)  # fresh draws fill up: uniform over sets, since each draw is uniform
    return found
