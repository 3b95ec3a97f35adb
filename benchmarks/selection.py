"""Memory and time of scoring MiniLM's weights with data, in copies of the weights that may be chosen (float32).

A copy is counted beyond what a forward and backward need whose gradients are dropped as they come: activations, and the
gradient of the tensor at hand. At 1 × 16 tokens there are hardly any activations, so that the weights' copies show; those
of the double backward, two to three times a plain one's, count in full against the Hutchinson pass there and below.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from benchmarks.common import DENSITY, MIB, Figure, allocated, batch, interleave, minilm
from gossamer.delta.base import base_parameters
from gossamer.select.change import change
from gossamer.select.curvature import hutchinson
from gossamer.select.fisher import fisher
from gossamer.select.gradient import gradient
from gossamer.select.magnitude import magnitude
from gossamer.select.scoring import Batch, accumulate, model_loss, scoring
from gossamer.tunable.tuned import Tuned


def measure(*, quick: bool = False) -> list[Figure]:
    """Copies that each pass holds, and its time against that of the gradient pass."""
    logging.getLogger("gossamer").setLevel(logging.ERROR)  # that attention is switched is known here
    model = minilm()
    parameters = base_parameters(model)
    copy = sum(p.nbytes for p in parameters.values())
    passes: dict[str, Callable[[Batch], object]] = {
        "floor": partial(_floor, model, parameters),
        "gradient": lambda data: accumulate(model, parameters, [data], squared=False),
        "fisher": lambda data: accumulate(model, parameters, [data], squared=True),
        "fisher per batch": lambda data: accumulate(model, parameters, [data], squared=True, per="batch"),
        "hutchinson": lambda data: hutchinson(model, parameters, [data]),
    }
    peak = {}
    for shape in ((1, 16), (16, 64)):
        data = batch(examples=shape[0], tokens=shape[1])
        for name, run in passes.items():
            run(data)  # what is cached on first use is no part of a pass
            peak[name, shape] = allocated(partial(run, data))[0]
    goals = {"gradient": 1.0, "fisher": 1.0, "fisher per batch": 1.0, "hutchinson": 4.0}
    copies = {name: (peak[name, (1, 16)] - peak["floor", (1, 16)]) / copy for name in goals}
    data = batch()
    times = interleave({name: partial(run, data) for name, run in passes.items() if name != "floor"}, rounds=1 if quick else 3,
                       repeats=1)  # fmt: skip
    return [
        *_ranking(model, parameters),
        *(Figure(f"copies at 1 × 16 tokens: {name}", copies[name], "×", goal) for name, goal in goals.items()),
        *(Figure(f"peak at 16 × 64 tokens: {name}", peak[name, (16, 64)] / MIB, "MiB") for name in passes),
        *(times.ratio(name, "gradient", f"time: {name} / gradient") for name in goals if name != "gradient"),
        *(times.milliseconds(name, f"time of 16 examples: {name}") for name in goals),
    ]


def _ranking(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> list[Figure]:
    """Copies that exist while given scores are ranked (at most one tensor's), and θ0 under a full fine-tuning."""
    copy, largest = sum(p.nbytes for p in parameters.values()), max(p.nbytes for p in parameters.values())
    k = int(DENSITY * sum(p.numel() for p in parameters.values()))
    given = {name: torch.randn_like(p) for name, p in parameters.items()}
    earlier = magnitude(given, k)
    rules: dict[str, Callable[[], object]] = {
        "change": lambda: change(given, k, without=earlier),
        "fisher": lambda: fisher(given, k),
        "gradient": lambda: gradient(given, k),
        "magnitude": lambda: magnitude(given, k, smallest=True),
    }
    held: list[Tuned] = []
    peak, kept = allocated(lambda: held.append(Tuned(model, None, kind="dense")))
    delta, _ = allocated(lambda: held[0].delta("fp32"))
    held[0].detach()
    ranking = {name: allocated(run)[0] / copy for name, run in rules.items()}
    return [
        *(Figure(f"copies while ranking: {name}", x, "×", largest / copy + 0.1) for name, x in ranking.items()),
        Figure("θ0 under a full fine-tuning", kept / copy, "×", 1.01),
        Figure("θ0 under a full fine-tuning, peak of attaching", peak / copy, "×"),
        Figure("reading θ1 − θ0, itself a copy, peak", delta / copy, "×"),
    ]


def _floor(model: nn.Module, parameters: Mapping[str, nn.Parameter], data: Batch) -> None:
    """A forward and backward that keeps no gradient."""

    def drop(parameter: nn.Parameter) -> None:
        parameter.grad = None

    with scoring(model, parameters, [data], loss=model_loss) as batches:
        hooks = [p.register_post_accumulate_grad_hook(drop) for p in parameters.values()]  # type: ignore[arg-type]
        model_loss(model, batches[0]).backward()
        for hook in hooks:
            hook.remove()
