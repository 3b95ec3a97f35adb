"""Exact top-k over tensors that are read in chunks: a sample brackets the threshold, one pass finds it, one collects.

Let t be the k-th largest score. Order statistics of a random sample, six standard deviations of t's rank to either side,
bracket it: lo ≤ t ≤ hi (Floyd and Rivest 1975). A pass counts what is above hi, at hi and at lo, and keeps what lies
between, of which t is an order statistic. The counts prove the bracket; a failed one (less than once in a million times)
is drawn anew. So ties are counted, never kept, extra memory is one chunk, the values between and the k results, and the
sample has no say in what is chosen. Ties at t go to the lowest position: names in the order given, indices ascending.

NumPy makes the passes: on one thread it compares as fast as memory delivers, where PyTorch's many short parallel
regions wait for one another on a busy machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gossamer.delta.support import Support
from gossamer.errors import BadPlan

Scores = Mapping[str, Tensor | Callable[[], Tensor]]  # a name → its scores, or a function that computes them anew
Values = NDArray[np.floating[Any]]
CHUNK = 1 << 20
RATE = 1 << 10  # one score in so many is sampled
BRACKETS = 3  # brackets that are tried before everything counts as between


def top_k(scores: Scores, k: int, *, per_tensor: bool = False, without: Support | None = None) -> Support:
    """The k largest scores over all tensors, exactly k, ties to the lowest position.

    Args:
        scores: name → tensor of any shape and float dtype, or a callable that returns one (called once a pass, three
            times in all, so that scores need not be kept). 16-bit ones are compared as float32.
        k: how many entries; `per_tensor` shares them out in proportion to size (largest remainder).
        without: entries that are never chosen, whatever their scores; sizes are then counted without them.

    Raises:
        BadPlan: k < 1, more than there are scores, a score is NaN, float64 is mixed with other dtypes, or a callable
            returned other scores from pass to pass.

    >>> top_k({"w": torch.tensor([[3.0, 1.0, 2.0], [2.0, 0.0, 5.0]])}, 3)["w"]
    tensor([0, 2, 5])
    """
    without = without or Support({})
    if not per_tensor:
        return _select(scores, k, without)
    quota = apportion(free({name: _read(score).numel() for name, score in scores.items()}, without), k)
    found = [_select({name: score}, quota[name], without) for name, score in scores.items() if quota[name]]
    return Support({name: indices for support in found for name, indices in support.items()})


def free(sizes: Mapping[str, int], without: Support | None) -> dict[str, int]:
    """How many entries of each tensor are left without those of a support."""
    return {name: size - (without[name].numel() if without and name in without else 0) for name, size in sizes.items()}


def apportion(sizes: Mapping[str, int], k: int) -> dict[str, int]:
    """Shares k out in proportion to size: floors first, then the largest remainders, earlier names first."""
    total = sum(sizes.values())
    check_k(k, total)
    shares = {name: k * size // total for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: -(k * sizes[name] % total))
    for name in by_remainder[: k - sum(shares.values())]:
        shares[name] += 1
    return shares


def check_k(k: int, total: int) -> None:
    """Raises BadPlan unless 1 ≤ k ≤ total."""
    if k < 1:
        raise BadPlan(f"k = {k}: at least one weight of the {total:,} must be chosen; raise k or the density")
    if k > total:
        raise BadPlan(f"k = {k:,} is more than the {total:,} weights that can be chosen; lower k or the density")


def _select(scores: Scores, k: int, without: Support) -> Support:
    found = None
    for seed in range(BRACKETS + 1):
        total, allowed, sample = _sample(scores, seed, without)
        check_k(k, allowed)
        everything = total <= CHUNK or seed == BRACKETS
        lo, hi = (-math.inf, math.inf) if everything else _bracket(sample, k / total)
        found = _threshold(scores, k, lo, hi, without, room=total if everything else CHUNK + total // 32)
        if found:
            break
    support = _collect(scores, *found, without) if found else Support({})
    if support.k != k:
        raise BadPlan(
            f"{support.k:,} scores instead of {k:,} were found: a callable must return the same at every call"
        )
    if without and (support & without).k:
        raise BadPlan(f"fewer than {k:,} of the scores that may be chosen are above −∞; lower k")
    return support


def _sample(scores: Scores, seed: int, without: Support) -> tuple[int, int, Values]:
    """How many scores there are, how many of them may be chosen, and one in `RATE` of all: from each tensor its share, at
    random, with replacement."""
    rng, total, allowed, picked, double = torch.Generator().manual_seed(seed), 0, 0, [], set[bool]()
    for name, score in scores.items():
        flat = _read(score).detach().reshape(-1)
        double.add(flat.dtype == torch.float64)
        share = (total + flat.numel()) // RATE - total // RATE
        if share:
            places = torch.randint(flat.numel(), (share,), generator=rng)
            values = _array(flat[places.to(flat.device)])
            if name in without:
                values[torch.isin(places, without[name]).numpy()] = -math.inf
            picked.append(values)
        total += flat.numel()
        allowed += free({name: flat.numel()}, without)[name]
    if len(double) > 1:
        raise BadPlan("some scores are float64 and some are not; give all of them in one dtype")
    return total, allowed, np.concatenate(picked) if picked else np.empty(0)


def _bracket(sample: Values, density: float) -> tuple[float, float]:
    """(lo, hi), six standard deviations of a rank below and above; where the sample ends, infinity."""
    rank, s = density * sample.size, np.sort(sample)
    slack = 6 * math.sqrt(rank * (1 - density)) + 2
    below, above = math.ceil(rank + slack), math.floor(rank - slack)  # ranks from the top, from 1
    return (float(s[-below]) if below <= s.size else -math.inf), (float(s[-above]) if above >= 1 else math.inf)


def _threshold(
    scores: Scores, k: int, lo: float, hi: float, without: Support, *, room: int
) -> tuple[float, int] | None:
    """(t, how many scores equal to t are wanted); None if t is not in lo … hi or more than `room` values lie between."""
    above, at_hi, at_lo, between, size = 0, 0, 0, [], 0
    for name, _, chunk in _chunks(scores, without):
        reached = ~(chunk < lo)  # a NaN is not below anything
        few = np.count_nonzero(reached) < chunk.size // 8
        rest = chunk[np.flatnonzero(reached)] if few else chunk  # what is below lo does not count, here or there
        if np.isnan(rest).any():
            raise BadPlan(f"the scores of {name!r} hold NaN, so no choice can be made; did the loss diverge?")
        above += int(np.count_nonzero(rest > hi))
        at_hi += int(np.count_nonzero(rest == hi))
        at_lo += int(np.count_nonzero(rest == lo))
        inner = rest[np.flatnonzero((rest > lo) & (rest < hi))]
        size += inner.size
        if size > room or above >= k:
            return None
        between.append(inner)
    wanted = k - above
    if wanted <= at_hi:
        return hi, wanted
    wanted -= at_hi
    if wanted <= size:
        values = np.concatenate(between)
        values.partition(size - wanted)
        t = values[size - wanted]
        return float(t), wanted - int(np.count_nonzero(values > t))
    wanted -= size
    return (lo, wanted) if wanted <= at_lo and lo < hi else None


def _collect(scores: Scores, t: float, ties: int, without: Support) -> Support:
    """Every score above t, and the first `ties` that equal it."""
    found: dict[str, list[Tensor]] = {}
    for name, start, chunk in _chunks(scores, without):
        chosen = chunk > t
        if ties:
            tied = np.flatnonzero(chunk == t)[:ties]
            chosen[tied] = True
            ties -= tied.size
        hit = np.flatnonzero(chosen)
        hit += start
        found.setdefault(name, []).append(torch.from_numpy(hit))
    return Support({name: torch.cat(parts) for name, parts in found.items()})


def _chunks(scores: Scores, without: Support) -> Iterator[tuple[str, int, Values]]:
    """(name, first flat index, values in float32 or float64) of every chunk, in order; −∞ where none may be chosen."""
    for name, score in scores.items():
        flat, barred = (
            _read(score).detach().reshape(-1),
            without[name].numpy() if name in without else np.zeros(0, np.int64),
        )
        for start in range(0, flat.numel(), CHUNK):
            chunk = _array(flat[start : start + CHUNK])
            first, last = np.searchsorted(barred, (start, start + chunk.size))
            if last > first:
                chunk = chunk.copy()  # the scores may be the caller's own
                chunk[barred[first:last] - start] = -math.inf
            yield name, start, chunk


def _array(values: Tensor) -> Values:
    return (values if values.dtype in (torch.float32, torch.float64) else values.float()).cpu().numpy()


def _read(score: Tensor | Callable[[], Tensor]) -> Tensor:
    return score if isinstance(score, Tensor) else score()
