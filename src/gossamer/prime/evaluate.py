"""A model's loss as a function of θ and φ, through `torch.func.functional_call`; nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.delta.base import LEAVES
from gossamer.prime.inner import Loss
from gossamer.prime.outer import HEAD
from gossamer.prime.ways import Way


class _Whole(nn.Module):
    """A model with its loss as the forward, so that any loss function can be evaluated at other weights."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> Tensor:
        return self.loss(self.model, batch)


def evaluator(
    model: nn.Module,
    w: Way,
    loss: Callable[[nn.Module, Any], Tensor],
    precision: str,
    carrier: nn.Module | None = None,
) -> Loss:
    """f(θ, φ, batch): the loss of a model that is at a way's weights; its own are not touched.

    `carrier` is the model that the way is of, where it is another one, over the same backbone: added modules lie in it. Only
    these are taken along, for functional_call does not put back a module that it meets under two names.
    """
    whole = _Whole(model, loss)
    added = getattr(carrier, LEAVES, None)
    if added is not None:
        whole.add_module(LEAVES, added)
    whole.training = model.training
    device = next(model.parameters()).device

    def evaluated(theta: Mapping[str, Tensor], phi: Mapping[str, Tensor], batch: Any) -> Tensor:
        if isinstance(batch, Mapping):
            batch = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in batch.items()}
        head = {n.removeprefix(HEAD): p for n, p in phi.items() if n.startswith(HEAD)}
        weights = {n if added is not None and n.startswith(LEAVES + ".") else f"model.{n}": t
                   for n, t in {**w.weights(theta, phi), **head}.items()}  # fmt: skip
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            value = torch.func.functional_call(whole, weights, (batch,))
        return value if value.dtype == torch.float64 else value.float()

    return evaluated
