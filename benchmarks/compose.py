"""Composing 10 deltas of 0.5 % of a model of 110 million weights (BERT base), bf16 values, supports drawn apart.

Each time is of deltas as they come from files, of which nothing is cached. Memory is what is allocated beyond the inputs at
its highest, the result included. The yardstick is adding one dense float32 copy of the weights to another.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch
from transformers import BertConfig, BertModel

import gossamer as gs
from benchmarks.common import DENSITY, Figure, allocated
from gossamer.delta.base import Record, base_parameters
from gossamer.delta.delta import Delta
from gossamer.delta.patch import Sparse
from gossamer.select.uniform import uniform

COUNT = 10
WAYS = {"+".join(f"d{i}" for i in range(COUNT)): "linear", "ties": "ties", "dare": "dare", "orthogonal": "orthogonal"}


def measure(*, quick: bool = False) -> list[Figure]:
    """Seconds and peak of each way of composing."""
    with torch.device("meta"):
        parameters = base_parameters(BertModel(BertConfig()))
    known = {n: Record(tuple(p.shape), "float32", {"float32": "0" * 32}) for n, p in parameters.items()}
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    m = sum(parameter.numel() for parameter in parameters.values())
    kept = []
    for seed in range(COUNT):
        support = uniform(parameters, int(m * DENSITY), seed=seed)
        rng = torch.Generator().manual_seed(seed)
        patches = {
            n: Sparse(shapes[n], at, torch.randn(at.numel(), generator=rng).bfloat16()) for n, at in support.items()
        }
        kept.append(Delta.of(patches, base=known))
    figures = []
    for how, way in WAYS.items():
        seconds = []
        for _ in range(1 if quick else 5):
            given = _fresh(kept)
            start = time.perf_counter()
            gs.compose(how, **given)
            seconds.append(time.perf_counter() - start)
        given = _fresh(kept)
        peak = allocated(lambda how=how, given=given: gs.compose(how, **given))[0]
        goal = way == "linear"
        spread = (min(seconds), max(seconds))
        figures += [
            Figure(f"{way}", statistics.median(seconds), "s", 1.0 if goal else None, spread),
            Figure(f"{way}, peak beyond the inputs", peak / 1e6, "MB", 200.0 if goal else None),
        ]
    one, other = torch.zeros(m), torch.zeros(m)
    start = time.perf_counter()
    one += other
    return [*figures, Figure("one dense sum", time.perf_counter() - start, "s")]


def _fresh(deltas: list[Delta]) -> dict[str, Delta]:
    """The same deltas with no key of a patch computed yet."""
    return {
        f"d{i}": replace(d, terms={n: tuple((c, replace(p)) for c, p in terms) for n, terms in d.terms.items()})
        for i, d in enumerate(deltas)
    }
