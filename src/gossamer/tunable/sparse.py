"""Sparse leaves: k values of a frozen model as ordinary autograd parameters.

For each touched weight W there is one leaf `values` of its chosen entries. W itself stays frozen and always holds
round(base + on + values); while gradients are recorded, the module that owns W sees an alias of W whose backward gathers
the k entries of W's gradient into the leaf. So an optimizer, clipping, accumulation, AMP, DDP and `state_dict` meet k
ordinary parameters (`model.gossamer`), and no unselected weight can move.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from gossamer.delta.apply import Layer, Stack
from gossamer.delta.base import LEAVES
from gossamer.delta.delta import Delta
from gossamer.delta.patch import Patch, Sparse
from gossamer.errors import BadPlan
from gossamer.tunable.leaves import Leaves, Wanted

Place = tuple[nn.Module, str, str]  # owner, attribute, name of the weight


class Bridge(torch.autograd.Function):
    """An alias of a frozen weight whose gradient flows, k entries of it, to the leaf. Differentiable twice."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor, indices: Tensor) -> Tensor:
        # written the old way, without setup_context: a quarter of the time, and there are hundreds of these a step
        ctx.indices, ctx.dtype = indices, values.dtype
        return weight.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        return None, _gather(grads[0], ctx.indices).to(ctx.dtype), None


def _gather(grad: Tensor, indices: Tensor) -> Tensor:
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


class Frame(NamedTuple):
    """One forward under way: what its entry swapped, so that its end can undo it."""

    module: nn.Module
    undo: list[tuple[nn.Module, str, Any, bool | None]]  # owner, attribute, what was there, Embedding.sparse


class SparseLeaves(Leaves):
    """Attaches k leaves to a model; `layer` is what they add to the base, through the one writer."""

    def __init__(self, model: nn.Module, stack: Stack, wanted: Wanted) -> None:
        assert wanted.support is not None
        self.model, self.stack, self.support, start = model, stack, wanted.support, wanted.start
        self.leaves: dict[str, nn.Parameter] = {}
        self.layer: Layer = {}
        container = nn.Identity()  # a model that is a Sequential runs its children: this one changes nothing
        for name, indices in self.support.items():
            weight = stack.parameters[name]
            dtype = torch.promote_types(weight.dtype, torch.float32)
            values = torch.zeros(indices.numel()) if start is None else _values_at(start, name, indices)
            leaf = nn.Parameter(values.to(weight.device, dtype, copy=True))
            self.leaves[name] = leaf
            self.layer[name] = ((1.0, Sparse(tuple(weight.shape), indices.to(weight.device), leaf)),)  # type: ignore[index]
            container.register_parameter(name.replace(".", "/"), leaf)
        self._seen = {name: leaf._version for name, leaf in self.leaves.items()}
        self._frames: list[Frame] = []  # of the modules whose forward is under way
        stack.push(self.layer)
        model.add_module(LEAVES, container)
        self.active = True
        self._hooks = [register_optimizer_step_post_hook(self._after_step), *self._install()]

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(self.leaves.values())

    def _install(self) -> list[Any]:
        """Hooks on each owner of a touched weight, on its parent and on the whole model.

        The owner's serve nearly every use. The others serve modules that read another's weight (attention reads its
        output projection's); the parent's do so also for what gradient checkpointing computes again, outside the
        model's own forward.
        """
        names = {id(self.stack.parameters[name]): name for name in self.leaves}
        found: dict[nn.Module, list[Place]] = {}
        for parent in self.model.modules():
            for owner in (parent, *parent.children()):
                for attribute, parameter in owner._parameters.items():
                    if id(parameter) in names:
                        place = (owner, attribute, names[id(parameter)])
                        for module in {parent, self.model}:
                            if place not in found.setdefault(module, []):
                                found[module].append(place)
        return [hook for module, places in found.items() for hook in self._swap(module, places)]

    def _swap(self, hooked: nn.Module, places: list[Place]) -> list[Any]:
        names = list(dict.fromkeys(name for _, _, name in places))

        def enter(module: nn.Module, args: Any) -> None:
            if module is not hooked:
                if torch.is_grad_enabled():
                    raise BadPlan(
                        "a copy of a tuned model cannot be trained (deepcopy, or DataParallel over several GPUs): tune the "
                        "copy itself, or use DistributedDataParallel"
                    )
                return
            if hooked is self.model and not any(frame.module is hooked for frame in self._frames):
                self._undo(to=0)  # an interrupted forward may have left something
            self.write(names)
            frame = Frame(hooked, [])
            self._frames.append(frame)
            if not (self.active and torch.is_grad_enabled()):
                return
            made: dict[str, Tensor] = {}
            for owner, attribute, name in places:
                if name not in made:
                    weight = self.stack.parameters[name]
                    made[name] = Bridge.apply(weight, self.leaves[name], self.indices(name))  # type: ignore[assignment]
                # an owner swaps even where the whole model has done so: a backward runs the youngest nodes first, so
                # that an alias made just before its use frees the dense gradient at once, and one made at the start last
                table = owner if isinstance(owner, nn.Embedding) and not owner.scale_grad_by_freq else None
                table = None if torch.compiler.is_compiling() else table
                frame.undo.append(
                    (owner, attribute, owner._parameters[attribute], None if table is None else table.sparse)
                )
                owner._parameters[attribute] = made[name]  # type: ignore[assignment]
                if table is not None:
                    table.sparse = True  # its gradient is then the rows of the batch, not a copy of the table

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            depth = next((i for i in reversed(range(len(self._frames))) if self._frames[i].module is module), None)
            if depth is not None:
                self._undo(to=depth)

        return [
            hooked.register_forward_pre_hook(enter),
            hooked.register_forward_hook(leave, always_call=True),
        ]

    def _undo(self, to: int) -> None:
        """Takes back the swaps of all frames but the first `to`, the last first."""
        while len(self._frames) > to:
            for owner, attribute, before, sparse in reversed(self._frames.pop().undo):
                owner._parameters[attribute] = before
                if sparse is not None:
                    owner.sparse = sparse  # type: ignore[assignment]

    def indices(self, name: str) -> Tensor:
        """The flat indices of a leaf's entries, on the weight's device."""
        patch = self.layer[name][0][1]
        device = self.stack.parameters[name].device
        assert isinstance(patch, Sparse)
        if patch.indices.device != device:  # the model was moved after tuning began
            patch = Sparse(patch.shape, patch.indices.to(device), patch.values)
            self.layer[name] = ((1.0, patch),)  # type: ignore[index]
        return patch.indices

    def write(self, names: list[str], *, force: bool = False) -> None:
        """Brings the weights up to date with leaves that have changed since they were last written."""
        if not self.active:
            return
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
        self.active = False
        self.stack.pop(self.layer)

    def wake(self) -> None:
        self.stack.push(self.layer)
        self.active = True
        self._seen = {name: leaf._version for name, leaf in self.leaves.items()}

    def patches(self) -> dict[str, Patch]:
        shapes = {name: tuple(self.stack.parameters[name].shape) for name in self.leaves}
        return {
            name: Sparse(shapes[name], self.support[name], leaf.detach().cpu().clone())
            for name, leaf in self.leaves.items()
        }

    def extra(self) -> dict[str, Tensor]:
        return {}

    def load_extra(self, extra: Mapping[str, Tensor]) -> None:
        pass

    def add_l1_gradient(self, strength: float) -> None:
        """Adds strength · sign(δ) to the gradients of the leaves."""
        for leaf in self.leaves.values():
            if leaf.grad is not None:
                leaf.grad.add_(leaf.detach().sign(), alpha=strength)

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._undo(to=0)
        if self.active:
            self.stack.pop(self.layer)
        delattr(self.model, LEAVES)


def _values_at(start: Delta, name: str, indices: Tensor) -> Tensor:
    """The values of a sparse delta at some entries of a parameter, 0 where it has none."""
    values = torch.zeros(indices.numel(), dtype=torch.float64)
    for coefficient, patch in start.terms.get(name, ()):
        if not isinstance(patch, Sparse):
            raise BadPlan(f"cannot start from {name!r}: only sparse deltas can be trained further at chosen entries")
        inside = torch.isin(indices, patch.indices)
        values[inside] += coefficient * patch.values[torch.isin(patch.indices, indices)].double()
    return values
