"""Exact top-k over tensors that are read in chunks: a radix select, most significant 16 bits first.

Floats are read as integers of the same order. Each pass counts one 16-bit digit of the scores that still share the
threshold's leading digits, so the threshold is exact after two passes (float32) and a third pass collects. Extra memory
is one chunk and the k results, never a copy of the scores. Ties at the threshold go to the lowest position: names in
the order given, flat indices ascending.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from gossamer.delta.support import Support
from gossamer.errors import BadPlan

Scores = Mapping[str, Tensor | Callable[[], Tensor]]  # a name → its scores, or a function that computes them anew
CHUNK = 1 << 20
_INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}


def top_k(scores: Scores, k: int, *, per_tensor: bool = False) -> Support:
    """The k largest scores over all tensors, exactly k, ties to the lowest position.

    Args:
        scores: name → tensor of any shape and float dtype, or a callable that returns one (called once a pass, so
            that scores need not be kept). 16-bit ones are compared as float32.
        k: how many entries; `per_tensor` shares them out in proportion to size (largest remainder).

    Raises:
        BadPlan: k < 1, more than there are scores, a score is NaN, or float64 is mixed with other dtypes.

    >>> top_k({"w": torch.tensor([[3.0, 1.0, 2.0], [2.0, 0.0, 5.0]])}, 3)["w"]
    tensor([0, 2, 5])
    """
    if not per_tensor:
        return _select(scores, k)
    sizes = {name: _read(score).numel() for name, score in scores.items()}
    quota = apportion(sizes, k)
    found = [_select({name: score}, quota[name]) for name, score in scores.items() if quota[name]]
    return Support({name: indices for support in found for name, indices in support.items()})


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


def _select(scores: Scores, k: int) -> Support:
    prefix, above, width, shift, total = 0, 0, 0, 0, None
    while total is None or shift:
        counts, seen = torch.zeros(1 << 16, dtype=torch.int64), 0
        for _, _, keys in _chunks(scores):
            if width not in (0, 8 * keys.element_size()):
                raise BadPlan("some scores are float64 and some are not; give all of them in one dtype")
            if not width:
                width = shift = 8 * keys.element_size()
            seen += keys.numel()
            counts += _histogram(keys, prefix, shift, width)
        if total is None:
            total = seen
            check_k(k, total)
        shift -= 16
        from_top = counts.flip(0).cumsum(0)
        # the digit at which the running count, taken from the top, first reaches the k that are wanted
        place = int(torch.searchsorted(from_top, torch.tensor(k - above)))
        above += int(from_top[place - 1]) if place else 0
        prefix = (prefix << 16) | ((1 << 16) - 1 - place)
    threshold = prefix - (1 << (width - 1))
    ties, found = k - above, {}
    for name, start, keys in _chunks(scores):
        hit = torch.nonzero(keys >= threshold).flatten()
        tied = keys[hit] == threshold
        if ties < int(tied.sum()):
            hit = hit[~tied | (tied.cumsum(0) <= ties)]
        ties -= min(ties, int(tied.sum()))
        found.setdefault(name, []).append(hit + start)
    return Support({name: torch.cat(parts) for name, parts in found.items()})


def _histogram(keys: Tensor, prefix: int, shift: int, width: int) -> Tensor:
    """Counts the 16-bit digit below bit `shift` among keys whose bits above it equal `prefix`."""
    half = 1 << 15
    if shift < width:
        signed = prefix - (1 << (width - shift - 1))
        keys = keys[(keys >> shift) == signed]
        digit = (keys >> (shift - 16)) & 0xFFFF
    else:
        digit = (keys >> (shift - 16)) + half
    return torch.bincount(digit, minlength=1 << 16)


def _chunks(scores: Scores) -> Iterator[tuple[str, int, Tensor]]:
    """(name, first flat index, order-preserving integer keys) of every chunk, in order."""
    for name, score in scores.items():
        flat = _read(score).detach().reshape(-1)
        for start in range(0, flat.numel(), CHUNK):
            chunk = flat[start : start + CHUNK].cpu()
            chunk = chunk if chunk.dtype in _INTEGER else chunk.float()
            if chunk.isnan().any():
                raise BadPlan(f"the scores of {name!r} hold NaN, so no choice can be made; did the loss diverge?")
            keys = (chunk + 0.0).view(_INTEGER[chunk.dtype])  # + 0.0 turns −0 into 0
            if bool((keys < 0).any()):
                keys = torch.where(keys < 0, keys ^ torch.iinfo(keys.dtype).max, keys)
            yield name, start, keys


def _read(score: Tensor | Callable[[], Tensor]) -> Tensor:
    return score if isinstance(score, Tensor) else score()
