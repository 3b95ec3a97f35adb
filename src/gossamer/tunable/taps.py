"""Taps: outputs whose gradients also reach the leaves of the weights that made them.

A tapped module runs with its frozen weights; its output passes through a function that hands the gradient on as it is and
computes from it the k entries of the weights' gradients that are wanted. No dense gradient ever exists. Linear layers are
tapped by the sampled product (`sampled.py`), embeddings by looking at the rows of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gossamer.tunable.bridge import Bridges, Chosen
from gossamer.tunable.remade import remade
from gossamer.tunable.sampled import Layout, sampled

Use = Literal["product", "turned", "lookup"]


def use(owner: nn.Module) -> Use | None:
    """What a module is known to do with its weights: x·Wᵀ + b, x·W + b or W[x]; None if it may do something else."""
    if type(owner).forward is nn.Linear.forward:
        return "product"
    if type(owner).__name__ == "Conv1D" and hasattr(owner, "nf"):  # GPT-2's Linear, transposed
        return "turned"
    return "lookup" if type(owner).forward is nn.Embedding.forward and not owner.scale_grad_by_freq else None


def tap(
    used: Use, owner: nn.Module, own: Mapping[str, tuple[Chosen, Tensor]], args: tuple[Any, ...], output: Tensor
) -> Tensor:
    """The output of a forward with these arguments, tapped. `own`: "weight", "bias" → entries and values, where tuned."""
    nothing = (None, None)
    (weight, values), (bias, shifts) = own.get("weight", nothing), own.get("bias", nothing)
    if used == "lookup":
        return Looked.apply(output, values, args[0], weight, owner.padding_idx)  # type: ignore[return-value]
    layout = Layout(weight and weight.indices, bias and bias.indices, used == "turned")
    return Tapped.apply(output, args[0], values, shifts, weight, layout)  # type: ignore[return-value]


class Tapped(torch.autograd.Function):
    """Taps a product with a frozen matrix [outputs, inputs] ([inputs, outputs] where turned). Differentiable twice."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        inputs: Tensor,
        values: Tensor | None,  # [k_w] of the matrix
        shifts: Tensor | None,  # [k_b] of the bias
        weight: Chosen | None,
        layout: Layout,
    ) -> Tensor:
        kept, ctx.again = remade(inputs) if weight else ((), None)
        ctx.save_for_backward(*kept)
        ctx.values, ctx.weight, ctx.layout = values, weight, layout
        ctx.dtype = next(part.dtype for part in (values, shifts) if part is not None)
        return output.detach()  # no view, so that the model may go on in place

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # contiguous once, here: the product's own backward would make another copy of what attention permuted
        grad, layout, weight = grads[0].contiguous(), ctx.layout, ctx.weight
        inputs = ctx.again(*ctx.saved_tensors) if weight else None
        by_values, by_shifts = sampled(grad, inputs, layout)
        through = None
        if weight and inputs is not None and torch.is_grad_enabled() and ctx.needs_input_grad[1]:
            # the product itself takes the matrix for a constant; for a second derivative the gradient that it passes
            # to its input must depend on the leaf: a term that is zero and has the right derivative
            (alias,) = Bridges.apply([weight], ctx.values)  # type: ignore[misc]
            matrix = (alias - weight.weight).to(grad.dtype)
            through = (grad @ (matrix.t() if layout.turned else matrix)).to(inputs.dtype)
        return grad, through, *(by if by is None else by.to(ctx.dtype) for by in (by_values, by_shifts)), None, None


class Looked(torch.autograd.Function):
    """Taps a look-up in a frozen table [rows, width]. Differentiable twice."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, values: Tensor, ids: Tensor, table: Chosen, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids)  # so that autograd raises where a buffer is used again before the backward
        ctx.indices, ctx.padding, ctx.dtype = table.indices, padding, values.dtype
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        return grads[0], looked(grads[0], ids, ctx.indices, ctx.padding).to(ctx.dtype), None, None, None


def looked(grad: Tensor, ids: Tensor, indices: Tensor, padding: int | None) -> Tensor:
    """The chosen entries of a table's gradient.

    Args:
        grad: [..., width], the gradient of what was looked up. ids: [...] rows of the table. indices: [k] flat, sorted.
        padding: the row that has no gradient.

    >>> looked(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([2, 0, 2]), torch.tensor([1, 2, 5]), None)
    tensor([4., 0., 8.])
    """
    width = grad.shape[-1]
    grad, ids = grad.reshape(-1, width), ids.reshape(-1).long()
    first = torch.searchsorted(indices, ids * width)
    count = torch.searchsorted(indices, ids * width + width) - first  # [tokens] entries in a token's row
    if padding is not None:
        count = count.masked_fill(ids == padding, 0)
    token = torch.arange(ids.numel(), device=ids.device).repeat_interleave(count)
    step = torch.arange(token.numel(), device=ids.device) - (count.cumsum(0) - count).index_select(0, token)
    entry = first.index_select(0, token) + step
    found = grad[token, indices.index_select(0, entry) % width].to(torch.promote_types(grad.dtype, torch.float32))
    return found.new_zeros(indices.numel()).index_add(0, entry, found)
