"""Sparse leaves: k values of a frozen model as ordinary autograd parameters.

For each touched weight W there is one leaf `values` of its chosen entries. W itself stays frozen and always holds
round(base + on + values); while gradients are recorded, the module that owns W sees an alias of W whose backward gathers
the k entries of W's gradient into the leaf. So an optimizer, clipping, accumulation, AMP, DDP and `state_dict` meet k
ordinary parameters (`model.gossamer`), and no unselected weight can move.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from gossamer.delta.apply import Layer, Stack
from gossamer.delta.base import LEAVES
from gossamer.delta.patch import Sparse
from gossamer.delta.support import Support


class Bridge(torch.autograd.Function):
    """An alias of a frozen weight whose gradient flows, k entries of it, to the leaf. Differentiable twice."""

    @staticmethod
    def forward(weight: Tensor, values: Tensor, indices: Tensor) -> Tensor:
        return weight.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        _, values, ctx.indices = inputs
        ctx.dtype = values.dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        return None, _gather(grads[0], ctx.indices).to(ctx.dtype), None


def _gather(grad: Tensor, indices: Tensor) -> Tensor:
    """The entries of a weight's gradient at sorted flat indices; of an embedding's, only rows of the batch exist."""
    if not grad.is_sparse:
        return grad.reshape(-1).index_select(0, indices)
    grad = grad.coalesce()
    rows, values = grad.indices()[0], grad.values()  # [r], [r, width]
    width = values.shape[1]
    wanted = indices // width
    slots = torch.searchsorted(rows, wanted).clamp_(max=rows.numel() - 1)
    here = rows[slots] == wanted
    found = values.new_zeros(indices.numel())
    found[here] = values.reshape(-1)[(slots * width + indices % width)[here]]
    return found


class SparseLeaves:
    """Attaches k leaves to a model; `layer` is what they add to the base, through the one writer."""

    def __init__(self, model: nn.Module, stack: Stack, support: Support, start: dict[str, Tensor]) -> None:
        self.model, self.stack, self.support = model, stack, support
        self.leaves: dict[str, nn.Parameter] = {}
        self.layer: Layer = {}
        container = nn.Module()
        for name, indices in support.items():
            weight = stack.parameters[name]
            dtype = torch.promote_types(weight.dtype, torch.float32)
            values = start[name].to(dtype) if name in start else torch.zeros(indices.numel(), dtype=dtype)
            leaf = nn.Parameter(values.to(weight.device, copy=True))
            self.leaves[name] = leaf
            self.layer[name] = ((1.0, Sparse(tuple(weight.shape), indices.to(weight.device), leaf)),)  # type: ignore[index]
            container.register_parameter(name.replace(".", "/"), leaf)
        self._seen = {name: leaf._version for name, leaf in self.leaves.items()}
        stack.push(self.layer)
        model.add_module(LEAVES, container)
        self.active = True
        self._hooks = [register_optimizer_step_post_hook(self._after_step), *self._install()]

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(self.leaves.values())

    def _install(self) -> list[Any]:
        """Hooks on the whole model and on each owner: the first serves modules that read another's weight, the second
        serves what is recomputed under gradient checkpointing, outside the model's own forward."""
        owners: dict[nn.Module, list[tuple[str, str]]] = {}
        names = {id(self.stack.parameters[name]): name for name in self.leaves}
        for module in self.model.modules():
            for attribute, parameter in module._parameters.items():
                if id(parameter) in names:
                    owners.setdefault(module, []).append((attribute, names[id(parameter)]))
        everything = [(module, *place) for module, places in owners.items() for place in places]
        found = {module: [(module, *place) for place in places] for module, places in owners.items()}
        found[self.model] = everything
        return [hook for module, places in found.items() for hook in self._swap(module, places)]

    def _swap(self, module: nn.Module, places: list[tuple[nn.Module, str, str]]) -> list[Any]:
        undo: list[tuple[nn.Module, str, Any, bool | None]] = []

        def enter(module: nn.Module, args: Any) -> None:
            self.write([name for _, _, name in places])
            if not (self.active and torch.is_grad_enabled()):
                return
            made: dict[str, Tensor] = {}
            for owner, attribute, name in places:
                if name not in made:
                    weight = self.stack.parameters[name]
                    made[name] = Bridge.apply(weight, self.leaves[name], self.indices(name))  # type: ignore[assignment]
                # an owner swaps even where the whole model has done so: a backward runs the youngest nodes first, so
                # that an alias made just before its use frees the dense gradient at once, and one made at the start last
                sparse = owner.sparse if isinstance(owner, nn.Embedding) else None
                undo.append((owner, attribute, owner._parameters[attribute], sparse))
                owner._parameters[attribute] = made[name]  # type: ignore[assignment]
                if isinstance(owner, nn.Embedding):
                    owner.sparse = True  # its gradient is then the rows of the batch, not a copy of the table

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            while undo:
                owner, attribute, before, sparse = undo.pop()
                owner._parameters[attribute] = before
                if isinstance(owner, nn.Embedding) and sparse is not None:
                    owner.sparse = sparse

        return [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave, always_call=True),
        ]

    def indices(self, name: str) -> Tensor:
        """The flat indices of a leaf's entries, on the weight's device."""
        patch = self.layer[name][0][1]
        device = self.stack.parameters[name].device
        assert isinstance(patch, Sparse)
        if patch.indices.device != device:  # the model was moved after tuning began
            patch = Sparse(patch.shape, patch.indices.to(device), patch.values)
            self.layer[name] = ((1.0, patch),)  # type: ignore[index]
        return patch.indices

    def write(self, names: list[str] | None = None, *, force: bool = False) -> None:
        """Brings the weights up to date with leaves that have changed since they were last written."""
        if not self.active:
            return
        names = list(self.leaves) if names is None else names
        stale = [name for name in names if force or self._seen[name] != self.leaves[name]._version]
        self.stack.refresh(stale)
        self._seen |= {name: self.leaves[name]._version for name in stale}

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # an optimizer that writes through raw pointers or .data leaves the version counter alone, so do not ask it
        mine = {id(leaf): name for name, leaf in self.leaves.items()}
        moved = [mine[id(p)] for group in optimizer.param_groups for p in group["params"] if id(p) in mine]
        if moved:
            self.write(moved, force=True)

    def suspend(self) -> None:
        """Takes the layer off for a while: the model is what lies beneath."""
        self.write()
        self.active = False
        self.stack.pop(self.layer)

    def wake(self) -> None:
        self.stack.push(self.layer)
        self.active = True
        self._seen = {name: leaf._version for name, leaf in self.leaves.items()}

    def values(self, name: str) -> Tensor:
        """δ at the chosen entries of a parameter."""
        return self.leaves[name].detach()

    def add_l1_gradient(self, strength: float) -> None:
        """Adds strength · sign(δ) to the gradients of the leaves."""
        for leaf in self.leaves.values():
            if leaf.grad is not None:
                leaf.grad.add_(leaf.detach().sign(), alpha=strength)

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        if self.active:
            self.stack.pop(self.layer)
        delattr(self.model, LEAVES)
