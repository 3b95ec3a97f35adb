"""Sparse leaves: k values of a frozen model as ordinary autograd parameters.

For each touched weight W there is one leaf `values` of its chosen entries. W itself stays frozen and always holds
round(base + on + values); while gradients are recorded, the module that owns W sees an alias of W whose backward gathers
the k entries of W's gradient into the leaf. A Linear's output is tapped instead: its k entries are computed from the gradient
of the output and the input, and the dense gradient of W never exists. A quantized W cannot be written: its values lie on
top of its product (`overlay`, `through`). So an optimizer, clipping, accumulation, AMP, DDP
and `state_dict` meet k ordinary parameters (`model.gossamer`), and no unselected weight can move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from gossamer.delta.apply import Layer, Stack
from gossamer.delta.base import LEAVES
from gossamer.delta.delta import Delta
from gossamer.delta.overlay import Overlay
from gossamer.delta.patch import Patch, Sparse
from gossamer.delta.quantized import quantized
from gossamer.errors import BadPlan
from gossamer.tunable.alias import Aliases, Frame, Tap
from gossamer.tunable.bridge import Bridge, Tapped
from gossamer.tunable.leaves import Leaves, Wanted
from gossamer.tunable.sampled import Layout
from gossamer.tunable.through import Beneath, Through


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
        stack.push(self.layer)
        model.add_module(LEAVES, container)
        self.active = True
        self._hooks: list[Any] = [register_optimizer_step_post_hook(self._after_step)]
        weights = {n: stack.parameters[n] for n in self.leaves if not quantized(stack.parameters[n])}
        self._aliases = Aliases(model, weights, self._make, tap=self._tap, rows=True, copies=True)
        self._layouts: dict[str, Layout] = {}
        self._through = Through(model, stack.parameters, self._beneath)

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(self.leaves.values())

    def _make(self, names: list[str], frames: list[Frame]) -> dict[str, Tensor]:
        """The aliases of some weights, where gradients are recorded. A product that is tapped needs none."""
        self.write(names)
        if not (self.active and torch.is_grad_enabled()):
            return {}
        weights, tapped = self.stack.parameters, frames[-1].tapped
        return {name: weights[name] if name == tapped else self._alias(name) for name in names}

    def _alias(self, name: str) -> Tensor:
        weight, leaf = self.stack.parameters[name], self.leaves[name]
        return Bridge.apply(weight, leaf, self.indices(name), self.watcher(name))  # type: ignore[return-value]

    def _tap(self, name: str) -> Tap | None:
        """What makes of a product's output one whose gradient also reaches the leaf."""
        if self.watcher(name) is not None:
            return None
        weight, leaf, layout = self.stack.parameters[name], self.leaves[name], self.layout(name)
        return lambda inputs, output, turned: Tapped.apply(output, inputs, leaf, weight, layout, turned)  # type: ignore[return-value]

    def _beneath(self, name: str) -> Beneath:
        """What lies on top of a quantized weight, brought up to date."""
        trained = self.active and name in self.leaves
        self.write([name] if trained else [])
        site = self.stack.sites.get(name)
        added = site.added if isinstance(site, Overlay) else None
        if not trained:
            return Beneath(added)
        return Beneath(added, self.leaves[name], self.layout(name), self.watcher(name))

    def watcher(self, name: str) -> Callable[[Tensor], None] | None:
        """Who must see the whole gradient of a weight in the backward of a forward that begins now: here, nobody.

        Leaves that revise their support ask for it. Where there is one, the gradient of the weight is formed.
        """
        return None

    def indices(self, name: str) -> Tensor:
        """The flat indices of a leaf's entries, on the weight's device."""
        patch = self.layer[name][0][1]
        device = self.stack.parameters[name].device
        assert isinstance(patch, Sparse)
        if patch.indices.device != device:  # the model was moved after tuning began
            patch = Sparse(patch.shape, patch.indices.to(device), patch.values)
            self.layer[name] = ((1.0, patch),)  # type: ignore[index]
        return patch.indices

    def layout(self, name: str) -> Layout:
        """Where a leaf's entries lie in their matrix."""
        indices = self.indices(name)
        if name not in self._layouts or self._layouts[name].flat is not indices:
            self._layouts[name] = Layout.of(indices, self.stack.parameters[name].shape[-1])
        return self._layouts[name]

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

    def add_penalty_gradient(self, strength: float) -> None:
        """Adds strength · sign(δ) to the gradients of the leaves."""
        for leaf in self.leaves.values():
            if leaf.grad is not None:
                leaf.grad.add_(leaf.detach().sign(), alpha=strength)

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._aliases.remove()
        self._through.remove()
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
