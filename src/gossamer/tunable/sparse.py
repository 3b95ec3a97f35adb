"""Sparse leaves: k values of a frozen model as an ordinary autograd parameter.

The chosen entries of all weights lie side by side in one leaf (one for each device and dtype). A weight W itself stays frozen
and always holds round(base + on + values). Where gradients are recorded, a module that multiplies by W or looks rows of it
up runs as it is and its output is tapped: the k entries of W's gradient are computed from the gradient of the output, and the
dense one never exists. Any other owner of W sees an alias of it, whose backward gathers them. A quantized W cannot be written:
its values lie on top of its product (`overlay`, `through`). So an optimizer, clipping, accumulation, AMP, DDP and `state_dict`
meet an ordinary parameter (`model.gossamer.values`), and no unselected weight can move.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from gossamer.delta.apply import Stack
from gossamer.delta.base import LEAVES
from gossamer.delta.delta import Delta
from gossamer.delta.overlay import Overlay
from gossamer.delta.patch import Patch, Sparse, Terms
from gossamer.delta.quantized import quantized
from gossamer.errors import BadPlan
from gossamer.tunable.alias import Aliases, Frame
from gossamer.tunable.bridge import Bridges, Chosen
from gossamer.tunable.compiled import traced
from gossamer.tunable.leaves import Leaves, Wanted
from gossamer.tunable.sampled import Layout
from gossamer.tunable.taps import Use, tap, use
from gossamer.tunable.through import Beneath, Through


class SparseLeaves(Leaves):
    """Attaches leaves of k values to a model; `layer` is what they add to the base, through the one writer."""

    flat = True  # whether weights share a leaf; else each has its own, by its name

    def __init__(self, model: nn.Module, stack: Stack, wanted: Wanted) -> None:
        assert wanted.support is not None
        self.model, self.stack, self.support, start = model, stack, wanted.support, wanted.start
        self.leaves: dict[str, nn.Parameter] = {}
        self.names: dict[str, list[str]] = {}  # leaf → the weights whose entries it holds, in order
        self.layer: dict[str, Terms] = {}
        container = nn.Identity()  # a model that is a Sequential runs its children: this one changes nothing
        for names in self._groups():
            weight = stack.parameters[names[0]]
            dtype = torch.promote_types(weight.dtype, torch.float32)
            parts = [_values_at(start, name, self.support[name]) for name in names]
            leaf = nn.Parameter(torch.cat(parts).to(weight.device, dtype))
            key = names[0] if not self.flat else f"values_{len(self.leaves)}" if self.leaves else "values"
            self.leaves[key], self.names[key] = leaf, names
            container.register_parameter(key.replace(".", "/"), leaf)
        self._seen: dict[str, tuple[int, int]] = {}
        self._point(self.leaves)
        stack.push(self.layer)
        model.add_module(LEAVES, container)
        self.active = True
        self._hooks: list[Any] = [
            register_optimizer_step_post_hook(self._after_step),
            model.register_load_state_dict_post_hook(lambda *_: self.write(self.leaves, force=True)),
        ]
        self._uses: dict[nn.Module, Use | None] = {module: use(module) for module in model.modules()}
        weights = {n: stack.parameters[n] for n in self.support if not quantized(stack.parameters[n])}
        self._aliases = Aliases(model, weights, self._make, rows=True, copies=True)
        self._through = Through(model, stack.parameters, self._beneath)

    def _groups(self) -> list[list[str]]:
        """The weights that share a leaf."""
        found: dict[Any, list[str]] = {}
        for name in self.support:
            weight = self.stack.parameters[name]
            found.setdefault((weight.device, weight.dtype) if self.flat else name, []).append(name)
        return list(found.values())

    def _point(self, keys: Iterable[str]) -> None:
        """Lets the layer hold the values of some leaves as they are now, entry by entry."""
        for key in keys:
            leaf = self.leaves[key]
            for name, values in zip(self.names[key], self._split(key, leaf.detach()), strict=True):
                weight = self.stack.parameters[name]
                before = self.layer[name][0][1] if name in self.layer else None
                indices = before.indices if isinstance(before, Sparse) else self.support[name]
                patch = Sparse(tuple(weight.shape), indices.to(weight.device), values)
                self.layer[name] = ((1.0, patch),)
            self._seen[key] = _state(leaf)

    def _split(self, key: str, leaf: Tensor) -> tuple[Tensor, ...]:
        """The values of each of a leaf's weights."""
        names = self.names[key]
        return (leaf,) if len(names) == 1 else leaf.split([self.support[name].numel() for name in names])

    def by_weight(self, leaves: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Name of a weight → its part of what is shaped like the leaves: values, gradients, moments."""
        return {
            name: part
            for key, tensor in leaves
            for name, part in zip(self.names[key], self._split(key, tensor), strict=True)
        }

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(self.leaves.values())

    # forward ------------------------------------------------------------------------------------------------------

    def _make(self, frames: list[Frame]) -> dict[str, Tensor]:
        """What stands in for some weights, where gradients are recorded. A module that is tapped keeps its weights."""
        if not torch.compiler.is_compiling():  # there, the steps of optimizers must do
            self.write(self.leaves)
        if not (self.active and torch.is_grad_enabled()):
            return {}
        frame, memo, weights = frames[-1], self._memo(frames), self.stack.parameters
        chosen = {name: Chosen(weights[name], self.indices(name), self.watcher(name)) for name in frame.names}
        tapped = self._tap(frame, memo, chosen)
        rest = [name for name in frame.names if name not in tapped]
        aliases = Bridges.apply([chosen[name] for name in rest], *(memo[name] for name in rest)) if rest else ()
        return tapped | dict(zip(rest, aliases, strict=True))  # type: ignore[arg-type]

    def _tap(self, frame: Frame, memo: dict[str, Tensor], chosen: dict[str, Chosen]) -> dict[str, Tensor]:
        """Taps the module that is entered if it can be; the weights that it keeps."""
        used = self._uses[frame.module]
        if used is None or not frame.args or not frame.own.keys() <= {"weight", "bias"}:
            return {}
        if "forward" in vars(frame.module):  # somebody has given this one a forward of its own
            return {}
        if any(chosen[name].saw for name in frame.own.values()):
            return {}
        own = {attribute: (chosen[name], memo[name]) for attribute, name in frame.own.items()}
        way = tap if not torch.compiler.is_compiling() else traced
        frame.tap = partial(way, used, frame.module, own)
        return {name: self.stack.parameters[name] for name in frame.own.values()}

    def _memo(self, frames: list[Frame]) -> dict[str, Tensor]:
        """The values of each weight, one and the same view for as long as the outermost forward lasts."""
        memo = frames[0].memo if frames else {}
        if not memo:
            memo.update(self.by_weight(self.leaves.items()))
        return memo

    def _beneath(self, name: str) -> Beneath:
        """What lies on top of a quantized weight, brought up to date."""
        trained = self.active and name in self.support
        self.write(self.leaves if trained else ())
        site = self.stack.sites.get(name)
        added = site.added if isinstance(site, Overlay) else None
        if not (trained and torch.is_grad_enabled()):
            return Beneath(added)
        values = self._memo(self._aliases.frames)[name]
        return Beneath(added, values, Layout(self.indices(name)), self.watcher(name))

    def watcher(self, name: str) -> Callable[[Tensor], None] | None:
        """Who must see the whole gradient of a weight in the backward of a forward that begins now: here, nobody.

        Leaves that revise their support ask for it. Where there is one, the gradient of the weight is formed.
        """
        return None

    def indices(self, name: str) -> Tensor:
        """The flat indices of a weight's entries, on the weight's device."""
        patch = self.layer[name][0][1]
        assert isinstance(patch, Sparse)
        return patch.indices

    # writing ------------------------------------------------------------------------------------------------------

    def write(self, keys: Iterable[str], *, force: bool = False) -> None:
        """Brings the weights up to date with leaves that have changed since they were last written."""
        if not self.active:
            return
        for key in keys:
            now = _state(self.leaves[key])
            if force or now != self._seen[key]:
                if now[0] != self._seen[key][0]:  # other memory: the model was moved, or somebody set `.data`
                    self._point([key])
                self._seen[key] = now
                self.stack.refresh(self.names[key])

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # an optimizer that writes through raw pointers or .data leaves the version counter alone, so do not ask it
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self.write([key for key, leaf in self.leaves.items() if id(leaf) in owned], force=True)

    def suspend(self) -> None:
        """Takes the layer off for a while: the model is what lies beneath."""
        self.active = False
        self.stack.pop(self.layer)

    def wake(self) -> None:
        self._point(self.leaves)
        self.stack.push(self.layer)
        self.active = True

    def patches(self) -> dict[str, Patch]:
        values = self.by_weight((key, leaf.detach().cpu()) for key, leaf in self.leaves.items())
        shapes = {name: tuple(self.stack.parameters[name].shape) for name in values}
        return {name: Sparse(shapes[name], self.support[name], part.clone()) for name, part in values.items()}

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


def _values_at(start: Delta | None, name: str, indices: Tensor) -> Tensor:
    """The values of a sparse delta at some entries of a parameter, 0 where it has none."""
    values = torch.zeros(indices.numel(), dtype=torch.float64 if start else torch.float32)
    for coefficient, patch in start.terms.get(name, ()) if start else ():
        if not isinstance(patch, Sparse):
            raise BadPlan(f"cannot start from {name!r}: only sparse deltas can be trained further at chosen entries")
        inside = torch.isin(indices, patch.indices)
        values[inside] += coefficient * patch.values[torch.isin(patch.indices, indices)].double()
    return values


def _state(leaf: nn.Parameter) -> tuple[int, int]:
    """Where a leaf's values lie, and how often they were written."""
    return leaf.data_ptr(), leaf._version
