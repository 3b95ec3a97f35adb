"""Putting a delta of 113,000 weights (0.5 %) on MiniLM and taking it off again, the base's digest cached.

The digest is computed once for a loaded base; it is timed apart. The yardstick is copying the whole base once, which
also sweeps the caches: the time in turn with copies is that of a base that nothing has touched just before.
"""

from __future__ import annotations

import statistics
import time

import torch

import gossamer as gs
from benchmarks.common import Figure, interleave, minilm
from gossamer.delta.base import base_parameters, identity
from gossamer.delta.delta import Delta
from gossamer.delta.patch import Sparse
from gossamer.select.uniform import uniform

K = 113_000


def measure(*, quick: bool = False) -> list[Figure]:
    """Milliseconds of apply, restore and both, and of the digest."""
    model = minilm().eval()
    parameters = base_parameters(model)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    spare = {name: torch.empty_like(values) for name, values in before.items()}
    start = time.perf_counter()
    known = identity(model)
    digest = time.perf_counter() - start
    torch.manual_seed(0)
    support = uniform(parameters, K)
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    patches = {n: Sparse(shapes[n], where, torch.randn(where.numel()).bfloat16()) for n, where in support.items()}
    delta = Delta.of(patches, base=known)
    parts: dict[str, list[float]] = {"apply": [], "restore": []}

    def both() -> None:
        begin = time.perf_counter()
        handle = gs.apply(model, delta)
        middle = time.perf_counter()
        handle.restore()
        parts["apply"].append(middle - begin)
        parts["restore"].append(time.perf_counter() - middle)

    def copy() -> None:
        for name, values in before.items():
            spare[name].copy_(values)

    for _ in range(10 if quick else 100):
        both()
    alone = 1e3 * statistics.median(map(sum, zip(parts["apply"], parts["restore"], strict=True)))
    split = {name: 1e3 * statistics.median(seconds) for name, seconds in parts.items()}
    times = interleave({"both": both, "copy": copy}, rounds=10 if quick else 50, repeats=3)
    assert all(torch.equal(p, before[name]) for name, p in parameters.items()), "the base has changed"
    return [
        Figure("apply + restore", alone, "ms", 10.0),
        *(Figure(name, milliseconds, "ms") for name, milliseconds in split.items()),
        times.milliseconds("both", "apply + restore, in turn with copies"),
        times.ratio("both", "copy", "apply + restore / copying the base"),
        Figure("digest of the base, once", 1e3 * digest, "ms"),
    ]
