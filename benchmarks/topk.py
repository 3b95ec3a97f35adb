"""Exact global top-k (0.5 %) over 100 million float32 scores: extra memory, and time as a multiple of one sum.

Extra memory is what PyTorch allocates (profiler) plus what Python and NumPy allocate (tracemalloc), each at its peak.
"""

from __future__ import annotations

import tracemalloc

import torch

from benchmarks.common import Figure, allocated, interleave
from gossamer.delta.topk import top_k

N = 100_000_000
K = N // 200


def measure(*, quick: bool = False) -> list[Figure]:
    """Bytes a score, and sums a selection, over one tensor; the choice is checked first."""
    scores = torch.randn(N, generator=torch.Generator().manual_seed(0))

    def select() -> torch.Tensor:
        return top_k({"w": scores}, K)["w"]

    found = select()
    least = scores[found].min()
    assert found.numel() == K, "not k entries"
    assert int((scores > least).sum()) < K <= int((scores >= least).sum()), "not the largest k"
    peak, _ = allocated(select)
    tracemalloc.start()
    select()
    _, python = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    times = interleave({"top-k": select, "sum": scores.sum}, rounds=2 if quick else 9, warmup=1)
    return [
        Figure("extra memory", (peak + python) / N, "bytes/score", 1.0),
        times.ratio("top-k", "sum", "top-k / one sum", 12.0),
        times.milliseconds("top-k", "top-k"),
    ]
