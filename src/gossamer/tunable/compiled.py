"""Taps for `torch.compile`: the same as in `taps.py`, of operators that a compiler takes as they are.

A compiler traces functions of tensors; it can neither look into the compiled kernel nor size what depends on the batch's
words. So both taps' backwards are custom operators here. The compiled graph has no second derivative (nor has anything
else in it), and keeps inputs rather than making them again: what it keeps is the compiler's to decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.tunable.bridge import Chosen
from gossamer.tunable.sampled import Layout, sampled
from gossamer.tunable.taps import Use, looked


def traced(
    used: Use, owner: nn.Module, own: Mapping[str, tuple[Chosen, Tensor]], args: tuple[Any, ...], output: Tensor
) -> Tensor:
    """As `taps.tap`."""
    weight, values = own.get("weight", (None, None))
    bias, shifts = own.get("bias", (None, None))
    if used == "lookup":
        assert weight is not None
        return Lookup.apply(output, values, args[0], weight.indices, owner.padding_idx)  # type: ignore[return-value]
    matrix, places = None if weight is None else weight.indices, None if bias is None else bias.indices
    return Product.apply(output, args[0], values, shifts, matrix, places, used == "turned")  # type: ignore[return-value]


@torch.library.custom_op("gossamer::sampled", mutates_args=())
def sampled_entries(grad: Tensor, inputs: Tensor, matrix: Tensor | None, bias: Tensor | None, turned: bool) -> Tensor:
    """`sampled` as one tensor [k + k'], float32 or wider."""
    found = [part for part in sampled(grad, inputs, Layout(matrix, bias, turned)) if part is not None]
    return torch.cat(found).to(torch.promote_types(grad.dtype, torch.float32))


@sampled_entries.register_fake
def _(grad: Tensor, inputs: Tensor, matrix: Tensor | None, bias: Tensor | None, turned: bool) -> Tensor:
    k = sum(part.numel() for part in (matrix, bias) if part is not None)
    return grad.new_empty(k, dtype=torch.promote_types(grad.dtype, torch.float32))


@torch.library.custom_op("gossamer::looked", mutates_args=())
def looked_entries(grad: Tensor, ids: Tensor, indices: Tensor, padding: int | None) -> Tensor:
    """`looked`, float32 or wider."""
    return looked(grad, ids, indices, padding).to(torch.promote_types(grad.dtype, torch.float32))


@looked_entries.register_fake
def _(grad: Tensor, ids: Tensor, indices: Tensor, padding: int | None) -> Tensor:
    return grad.new_empty(indices.numel(), dtype=torch.promote_types(grad.dtype, torch.float32))


class Product(torch.autograd.Function):
    """Taps a product, for a compiler."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        inputs: Tensor,
        values: Tensor | None,
        shifts: Tensor | None,
        matrix: Tensor | None,
        bias: Tensor | None,
        turned: bool,
    ) -> Tensor:
        ctx.save_for_backward(inputs, matrix, bias)
        ctx.turned = turned
        ctx.k = (-1 if values is None else values.numel(), -1 if shifts is None else shifts.numel())
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inputs, matrix, bias = ctx.saved_tensors
        found, (k, shifted) = sampled_entries(grads[0], inputs, matrix, bias, ctx.turned), ctx.k
        by_shifts = found[max(k, 0) :] if shifted >= 0 else None
        return grads[0], None, found[:k] if k >= 0 else None, by_shifts, None, None, None


class Lookup(torch.autograd.Function):
    """Taps a look-up, for a compiler."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, values: Tensor, ids: Tensor, indices: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids, indices)
        ctx.padding = padding
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ids, indices = ctx.saved_tensors
        return grads[0], looked_entries(grads[0], ids, indices, ctx.padding), None, None, None
