"""Snapshot: everything of a model that training or scoring may change besides the base, and its way back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Snapshot:
    """Modes of all modules, all buffers, `requires_grad` and gradients of all parameters, values of some of them.

    Making one leaves the model without gradients, so that earlier ones neither count nor are lost.
    """

    def __init__(self, model: nn.Module, values: Iterable[nn.Parameter]) -> None:
        self.modes = [(module, module.training) for module in model.modules()]
        self.buffers = [(name, buffer, buffer.detach().clone()) for name, buffer in model.named_buffers()]
        self.flags = [(p, p.requires_grad, p.grad) for p in model.parameters()]
        self.values = [(p, p.detach().clone()) for p in values]
        for parameter, _, _ in self.flags:
            parameter.grad = None

    def moved_buffers(self) -> list[str]:
        """Names of buffers that hold other values now."""
        return [name for name, buffer, before in self.buffers if not torch.equal(buffer, _like(before, buffer))]

    def restore(self) -> None:
        """Puts everything back."""
        with torch.no_grad():
            for _, buffer, before in self.buffers:
                buffer.copy_(before)
            for parameter, before in self.values:
                parameter.copy_(before)
        for parameter, wanted, grad in self.flags:
            parameter.requires_grad_(wanted)
            fits = grad is not None and (grad.dtype, grad.device) == (parameter.dtype, parameter.device)
            parameter.grad = grad if fits else None  # the model may have been cast or moved meanwhile
        for module, mode in self.modes:
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; on the way out each module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def _like(values: Tensor, other: Tensor) -> Tensor:
    return values.to(device=other.device, dtype=other.dtype)
