"""How gradients reach sparse leaves: k entries of a weight's, through an alias of the weight or a tapped product with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gossamer.tunable.sampled import Layout, sampled

Saw = Callable[[Tensor], None]  # who looks at the whole gradient of a weight


class Bridge(torch.autograd.Function):
    """An alias of a frozen weight whose gradient flows, k entries of it, to the leaf. Differentiable twice."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor, indices: Tensor, saw: Saw | None) -> Tensor:
        # written the old way, without setup_context: a quarter of the time, and there are hundreds of these a step
        ctx.indices, ctx.dtype, ctx.saw = indices, values.dtype, saw
        return weight.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None]:
        if ctx.saw is not None:
            ctx.saw(grads[0].detach())
        return None, gather(grads[0], ctx.indices).to(ctx.dtype), None, None


class Tapped(torch.autograd.Function):
    """Passes the output of a product with a frozen matrix on, and its gradient back; k entries of the matrix's go to the leaf.

    The matrix is [outputs, inputs], or [inputs, outputs] where `turned`. Differentiable twice.
    """

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, inputs: Tensor, values: Tensor, weight: Tensor, layout: Layout, turned: bool
    ) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.values, ctx.weight, ctx.layout, ctx.turned = values, weight, layout, turned
        return output.detach()  # no view, so that the model may go on in place

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, (inputs,) = grads[0], ctx.saved_tensors
        pair = (inputs, grad) if ctx.turned else (grad, inputs)
        found = sampled(*pair, ctx.layout).to(ctx.values.dtype)
        through = None
        if torch.is_grad_enabled() and ctx.needs_input_grad[1]:
            # the product itself takes the matrix for a constant; for a second derivative the gradient that it passes
            # to its input must depend on the leaf: a term that is zero and has the right derivative
            matrix = Bridge.apply(ctx.weight, ctx.values, ctx.layout.flat, None) - ctx.weight
            matrix = matrix.to(grad.dtype)
            through = (grad @ (matrix.t() if ctx.turned else matrix)).to(inputs.dtype)
        return grad, through, found, None, None, None


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
