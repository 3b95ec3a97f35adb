"""Through: how gradients pass a quantized linear layer, and reach sparse leaves that lie on top of it.

The layer runs on a detached input, so that its library records nothing: under autograd torchao would keep a float copy of
every weight until the backward, and 8 bits would save no memory. In the backward the weight is dequantized for one product:

    ∂x = ∂y·(Ŵ + S)        ∂δ = the k entries of ∂yᵀ·x (`sampled`)

Ŵ is what the weight dequantizes to. Where the layer rounds its input, too, this is the straight-through gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gossamer.delta.overlay import Added
from gossamer.delta.quantized import plain, quantized
from gossamer.tunable.alias import refuse_copy
from gossamer.tunable.bridge import Saw, gather
from gossamer.tunable.sampled import Layout, sampled


class Beneath(NamedTuple):
    """What of a quantized weight counts in the forward that begins now."""

    added: Added | None  # S, if anything lies on the weight
    leaf: Tensor | None = None  # its values, if it is trained
    layout: Layout | None = None  # of the leaf's entries
    saw: Saw | None = None  # who must see the whole gradient


class Through:
    """Hooks on all quantized linear layers of a model, trained or not.

    Args:
        model: whose layers they are.
        weights: name → weight, of the backbone.
        beneath: name → what counts; asked when a forward of the weight's layer begins.
    """

    def __init__(
        self, model: nn.Module, weights: Mapping[str, nn.Parameter], beneath: Callable[[str], Beneath]
    ) -> None:
        self.beneath = beneath
        names = {id(weight): name for name, weight in weights.items()}
        self._hooks: list[Any] = []
        for module in model.modules():
            if isinstance(module, nn.Linear) and quantized(module.weight):
                self._hooks += self._hook(module, names.get(id(module.weight)))

    def _hook(self, owner: nn.Linear, name: str | None) -> list[Any]:
        entered: list[tuple[Tensor, Beneath]] = []  # the input of the forward under way, with its history

        def enter(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
            entered.clear()  # a linear layer does not run within itself; an interrupted forward may have left something
            if module is not owner:
                refuse_copy(unless=True)
                return None
            found = Beneath(None) if name is None else self.beneath(name)
            if not torch.is_grad_enabled():
                return None
            inputs = args[0] if args else kwargs["input"]
            entered.append((inputs, found))
            return ((inputs.detach(), *args[1:]), kwargs) if args else (args, {**kwargs, "input": inputs.detach()})

        def leave(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            if not entered or module is not owner:
                return None
            inputs, found = entered.pop()
            return Passed.apply(output, inputs, found.leaf, owner.weight, found)  # type: ignore[return-value]

        return [
            owner.register_forward_pre_hook(enter, with_kwargs=True),
            owner.register_forward_hook(leave),
        ]

    def remove(self) -> None:
        """Takes the hooks off."""
        for hook in self._hooks:
            hook.remove()


class Passed(torch.autograd.Function):
    """Passes the output of a quantized layer on, and gives gradients to its input and its leaf. Differentiable once."""

    @staticmethod
    def forward(
        ctx: Any, output: Tensor, inputs: Tensor, leaf: Tensor | None, weight: Tensor, found: Beneath
    ) -> Tensor:
        added = found.added
        # the values too, so that autograd raises where they change between forward and backward
        ctx.save_for_backward(None if leaf is None else inputs, None if added is None else added.values)
        ctx.where = None if added is None else added.where
        ctx.weight, ctx.found, ctx.dtype = weight, found, inputs.dtype
        return output.detach()  # no view, so that the model may go on in place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (grad,), (inputs, values) = grads, ctx.saved_tensors
        leaf, layout, saw = ctx.found.leaf, ctx.found.layout, ctx.found.saw
        entries = through = None
        if leaf is not None and saw is not None:
            whole = grad.flatten(0, -2).t() @ inputs.flatten(0, -2).to(grad.dtype)
            saw(whole)
            entries = gather(whole, layout.matrix).to(leaf.dtype)
        elif leaf is not None:
            entries, _ = sampled(grad, inputs, layout)
        if ctx.needs_input_grad[1]:
            matrix = plain(ctx.weight).to(grad.dtype)  # dequantized for us alone
            if values is not None:
                matrix.view(-1).index_add_(0, ctx.where, values.to(grad.dtype))
            through = (grad @ matrix).to(ctx.dtype)
        return grad, through, entries if entries is None or leaf is None else entries.to(leaf.dtype), None, None
