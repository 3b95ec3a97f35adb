"""Products with weights that hold an adapter's entries while they run, and their gradients, sampled at those entries."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gossamer.delta.lend import Loan, lent, written
from gossamer.tunable.remade import remade
from gossamer.tunable.sampled import Layout, sampled
from gossamer.tunable.taps import looked


class Entries(NamedTuple):
    """The entries of some active adapters together."""

    names: tuple[str, ...]
    matrix: Tensor  # [k_w] int64, flat, sorted, unique
    bias: Tensor  # [k_b]
    slots: tuple[Tensor, ...]  # of each adapter, where its values lie among k_w + k_b; none for a single adapter


def loans_of(base: nn.Module, entries: Entries, values: Tensor, *, bias: bool = True) -> list[Loan]:
    """What to write where, for a module's weight and bias."""
    k = entries.matrix.numel()
    found = [(base.weight, entries.matrix, values[:k])] if k else []
    return [*found, (base.bias, entries.bias, values[k:])] if bias and entries.bias.numel() else found  # type: ignore[list-item]


class Product(torch.autograd.Function):
    """x·Wᵀ + b (turned: x·W + b) with changed entries. Differentiable once, in x and the values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, base: nn.Module, entries: Entries, turned: bool) -> Tensor:
        ctx.base, ctx.entries, ctx.turned, ctx.dtype = base, entries, turned, x.dtype
        kept, ctx.again = remade(x) if ctx.needs_input_grad[1] and entries.matrix.numel() else ((), None)
        ctx.save_for_backward(values, *kept)
        with lent(loans_of(base, entries, values.detach())):
            return base(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, *kept = ctx.saved_tensors
        entries, grad, through, found = ctx.entries, grads[0].contiguous(), None, None
        if ctx.needs_input_grad[1]:
            layout = Layout(
                entries.matrix if ctx.again else None, entries.bias if entries.bias.numel() else None, ctx.turned
            )
            parts = sampled(grad, ctx.again(*kept) if ctx.again else None, layout)
            found = torch.cat([part.to(values.dtype) for part in parts if part is not None])
        if ctx.needs_input_grad[0]:
            with lent(loans_of(ctx.base, entries, values, bias=False)):
                weight = ctx.base.weight.detach().to(grad.dtype)
                through = (grad @ (weight.t() if ctx.turned else weight)).to(ctx.dtype)
        return through, found, None, None, None


class Lookup(torch.autograd.Function):
    """W[x] with changed entries. Differentiable once, in the values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ids: Tensor, base: nn.Embedding, entries: Entries) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.indices, ctx.padding, ctx.dtype = entries.matrix, base.padding_idx, values.dtype
        with lent(loans_of(base, entries, values.detach())):
            return base(ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (ids,) = ctx.saved_tensors
        return looked(grads[0], ids, ctx.indices, ctx.padding).to(ctx.dtype), None, None, None


class Placed(torch.autograd.Function):
    """A copy of a small weight with changed entries. Differentiable in the values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, frozen: Tensor, where: Tensor) -> Tensor:
        ctx.save_for_backward(where)
        ctx.dtype = values.dtype
        copy = frozen.clone()
        written([(copy, where, values.detach())])
        return copy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (where,) = ctx.saved_tensors
        return grads[0].reshape(-1).index_select(0, where).to(ctx.dtype), None, None
