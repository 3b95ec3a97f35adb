"""Memory and time of scoring MiniLM's weights with data, in copies of the weights that may be chosen (float32).

A copy is counted beyond what a forward and backward need whose gradients are dropped as they come: activations, and the
gradient of the tensor at hand. At 1 × 16 tokens there are hardly any activations, so that the weights' copies show; those
of the double backward, two to three times a plain one's, count in full against the Hutchinson pass there and below.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from benchmarks.common import MIB, Figure, allocated, batch, interleave, minilm
from gossamer.delta.base import base_parameters
from gossamer.select.curvature import hutchinson
from gossamer.select.scoring import Batch, accumulate, model_loss, scoring


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
        *(Figure(f"copies at 1 × 16 tokens: {name}", copies[name], "×", goal) for name, goal in goals.items()),
        *(Figure(f"peak at 16 × 64 tokens: {name}", peak[name, (16, 64)] / MIB, "MiB") for name in passes),
        *(times.ratio(name, "gradient", f"time: {name} / gradient") for name in goals if name != "gradient"),
        *(times.milliseconds(name, f"time of 16 examples: {name}") for name in goals),
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
