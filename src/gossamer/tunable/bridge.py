"""Bridges: aliases of frozen weights whose gradients flow, k entries of each, to leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Saw = Callable[[Tensor], None]  # who looks at the whole gradient of a weight


class Chosen(NamedTuple):
    """The chosen entries of one frozen weight."""

    weight: Tensor
    indices: Tensor  # [k] int64, flat, sorted
    saw: Saw | None = None


class Bridges(torch.autograd.Function):
    """Aliases of frozen weights. Differentiable twice.

    One node for several: most are never used, since owners have fresher ones, and cost next to nothing.
    """

    @staticmethod
    def forward(ctx: Any, chosen: list[Chosen], *values: Tensor) -> tuple[Tensor, ...]:
        # written the old way, without setup_context: a quarter of the time, and there are dozens of these a step
        ctx.set_materialize_grads(False)
        ctx.chosen, ctx.dtypes = chosen, [v.dtype for v in values]
        return tuple(one.weight.detach() for one in chosen)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        found: list[Tensor | None] = [None]
        for one, dtype, grad in zip(ctx.chosen, ctx.dtypes, grads, strict=True):
            if grad is None:
                found.append(None)
                continue
            if one.saw is not None:
                one.saw(grad.detach())
            found.append(gather(grad, one.indices).to(dtype))
        return tuple(found)


def gather(grad: Tensor, indices: Tensor) -> Tensor:
    """The entries of a weight's gradient at sorted flat indices; of an embedding's, only rows of the batch exist."""
    if not grad.is_sparse:
        return grad.reshape(-1).index_select(0, indices)
    grad = grad.coalesce()
    rows, values = grad.indices()[0], grad.values()  # [r], [r, width]
    if not rows.numel():
        return values.new_zeros(indices.numel())
    width = values.shape[1]
    wanted = indices // width
    slots = torch.searchsorted(rows, wanted).clamp_(max=rows.numel() - 1)
    here = rows[slots] == wanted
    found = values.new_zeros(indices.numel())
    found[here] = values.reshape(-1)[(slots * width + indices % width)[here]]
    return found
