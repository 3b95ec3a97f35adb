"""Bytes that the sparse way holds a tuned weight while it trains MiniLM at density 0.5 %, the head's left out.

Counted are the tensors that are alive between a backward and the optimizer's step and were not before tuning began, by
storage, each once: the leaves' values, their gradients, the optimizer's moments, whole numbers (positions, layouts), and
the rest (base values kept for the way back). Beside them what PyTorch and NumPy allocated and did not release.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from benchmarks.common import Figure, Run, allocated, minilm, training
from gossamer.delta.base import outer_parameters

KINDS = ("value", "gradient", "optimizer", "index", "rest")
Storages = dict[int, int]  # address → bytes


def measure(*, quick: bool = False) -> list[Figure]:
    """Bytes by kind. They do not vary, so `quick` changes nothing."""
    model = minilm()
    before = _storages(_alive())
    with ExitStack() as stack:
        run = stack.enter_context(training("sparse", model))
        run()
        run.gradients()
        found = _kinds(run, before)
    model, runs = minilm(), []
    with ExitStack() as stack:

        def train() -> None:
            runs.append(stack.enter_context(training("sparse", model)))
            runs[0]()
            runs[0].gradients()

        _, kept = allocated(train)
    kept -= 4 * sum(p.nbytes for p in outer_parameters(model).values())  # a snapshot, a gradient, two moments
    return [
        Figure(
            "optimizer + gradient + index",
            sum(found[kind] for kind in ("optimizer", "gradient", "index")) / run.k,
            "bytes/weight",
            20.0,
        ),
        *(Figure(kind, size / run.k, "bytes/weight") for kind, size in found.items()),
        Figure("all, as allocated", kept / run.k, "bytes/weight"),
    ]


def _kinds(run: Run, before: Storages) -> dict[str, int]:
    """Bytes of what is alive now and was not before, by what it is for."""
    head = list(outer_parameters(run.model).values())
    leaves = [p for p in run.trained if not any(p is other for other in head)]
    claimed = {**before, **_storages(run.data.values()), **_storages(_states(run, head))}
    claimed |= _storages(p.grad for p in head if p.grad is not None)
    buffers = {b.shape for b in run.model.buffers()}  # a tuning keeps a copy of each, whatever k is
    alive = [t for t in _alive() if t.shape not in buffers]
    groups: list[Iterable[Tensor]] = [
        leaves,
        [p.grad for p in leaves if p.grad is not None],
        _states(run, leaves),
        [t for t in alive if not t.is_floating_point()],
        alive,
    ]
    found = {}
    for kind, tensors in zip(KINDS, groups, strict=True):
        fresh = {at: size for at, size in _storages(tensors).items() if at not in claimed}
        found[kind] = sum(fresh.values())
        claimed |= fresh
    return found


def _states(run: Run, of: Iterable[nn.Parameter]) -> list[Tensor]:
    # a counter of steps is one number a leaf, however many weights it holds
    return [t for p in of for t in run.optimizer.state[p].values() if isinstance(t, Tensor) and t.dim()]


def _alive() -> Iterable[Tensor]:
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some objects warn when asked what they are
        return [o for o in gc.get_objects() if isinstance(o, Tensor) and o.layout == torch.strided]


def _storages(tensors: Iterable[Tensor]) -> Storages:
    stored = [t.untyped_storage() for t in tensors if t.numel() and t.device.type == "cpu"]
    return {storage.data_ptr(): storage.nbytes() for storage in stored}
