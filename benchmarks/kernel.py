"""The sampled weight gradient of a Linear against the dense one that it replaces, 1,024 tokens, by shape and density.

The yardstick is the dense product alone, without the gather that would follow it. Threads are the framework's.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.common import Figure, interleave
from gossamer.tunable.sampled import Layout, sampled

SHAPES = ((384, 384), (1536, 384), (384, 1536))  # [outputs, inputs] of MiniLM's matrices
DENSITIES = {0.001: 0.3, 0.005: 0.3, 0.05: 0.63}  # with the largest share of the dense product's time that is wanted


def measure(*, quick: bool = False) -> list[Figure]:
    """Times of the sampled gradient in ratio to the dense product's, paired by round."""
    figures = []
    for outputs, inputs in SHAPES:
        generator = torch.Generator().manual_seed(0)
        grad, x = (torch.randn(1024, width, generator=generator) for width in (outputs, inputs))
        layouts = {d: _layout(outputs, inputs, d, generator) for d in DENSITIES}
        actions = {"dense": partial(torch.mm, grad.t(), x)}
        actions |= {f"{d}": partial(sampled, grad, x, layout) for d, layout in layouts.items()}
        with torch.no_grad():
            times = interleave(actions, rounds=5 if quick else 31, repeats=5)
        figures += [
            times.ratio(f"{d}", "dense", f"sampled / dense, {outputs} × {inputs}, {d:.1%}", goal)
            for d, goal in DENSITIES.items()
        ]
    return figures


def _layout(outputs: int, inputs: int, density: float, generator: torch.Generator) -> Layout:
    size = outputs * inputs
    return Layout(torch.randperm(size, generator=generator)[: int(size * density)].sort().values)
