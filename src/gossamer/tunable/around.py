"""Around: what a method does before and after each step of an optimizer that owns any of its leaves.

The optimizer stays as it is; a method may read the leaves before its step and change what the step made of them. Steps
that are skipped (a GradScaler that found an infinite gradient) never happened: a scaler does not call `step`, or tells
an optimizer that checks for itself through `found_inf`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

Act = Callable[[Optimizer, list[str]], None]  # the optimizer and the names of the leaves that it steps


class Around:
    """Calls `before` and `after` around each step that really moves some of the leaves; `remove` ends it."""

    def __init__(self, leaves: Mapping[str, nn.Parameter], *, before: Act | None = None, after: Act | None = None):
        def hook(act: Act) -> Callable[..., None]:
            def call(optimizer: Optimizer, args: object, kwargs: object) -> None:
                names = stepped(optimizer, leaves)
                if names:
                    act(optimizer, names)

            return call

        self._hooks = []
        if before:
            self._hooks.append(register_optimizer_step_pre_hook(hook(before)))
        if after:
            self._hooks.append(register_optimizer_step_post_hook(hook(after)))

    def remove(self) -> None:
        for made in self._hooks:
            made.remove()


def stepped(optimizer: Optimizer, leaves: Mapping[str, nn.Parameter]) -> list[str]:
    """Names of the leaves that this step of an optimizer moves: its own, with a gradient, unless it is skipped."""
    owned = {id(p) for group in optimizer.param_groups for p in group["params"] if p.grad is not None}
    names = [name for name, leaf in leaves.items() if id(leaf) in owned]
    infinite = getattr(optimizer, "found_inf", None) if names else None
    return [] if infinite is not None and bool(infinite) else names


def loss_scale(optimizer: Optimizer) -> float:
    """What the gradients are still multiplied by: a GradScaler leaves it to fused optimizers to divide by it."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def shared_generator(device: torch.device) -> torch.Generator:
    """A generator seeded from the global one, the same on every rank, so that all replicas draw the same numbers."""
    seed = torch.randint(2**62, ())
    if dist.is_available() and dist.is_initialized():
        seed = seed.to(device)
        dist.broadcast(seed, 0)
    return torch.Generator(device).manual_seed(int(seed))
