"""Aliases: while forwards run, other tensors stand in the place of frozen weights, so that gradients reach leaves.

A weight's owner, the owner's parent and the whole model are hooked. The owner's hook serves nearly every use. The
others serve modules that read another's weight (attention reads its output projection's); the parent's does so also for
what gradient checkpointing computes again, outside the model's own forward. Where the owner multiplies by its weight, its
output can be tapped in place of an alias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gossamer.errors import BadPlan

Place = tuple[nn.Module, str, str]  # owner, attribute, name of the weight
Tap = Callable[[Tensor, Tensor, bool], Tensor]  # inputs, output, whether the weight is [inputs, outputs] → new output


class Frame(NamedTuple):
    """One forward under way: what its entry swapped, so that its end can undo it."""

    module: nn.Module
    undo: list[tuple[nn.Module, str, Any, bool | None]]  # owner, attribute, what was there, Embedding.sparse
    memo: dict[Any, Any]  # whatever the maker of aliases wants to remember until the forward ends
    tapped: str | None  # the weight whose product is tapped, by `tap`, when the forward ends
    tap: Tap | None


Make = Callable[[list[str], list[Frame]], Mapping[str, Tensor]]


class Aliases:
    """Hooks on a model that swap aliases in and out.

    Args:
        model: whose weights they are.
        weights: name → weight.
        make: names of weights, frames of the forwards under way (the outermost first, the entered one last) → the alias
            of each, or {} where the weights themselves will do.
        tap: name of a weight whose owner multiplies by it → what then stands for the output, or None for an alias after
            all. `Frame.tapped` tells `make` that its alias of that weight is not needed: the weight itself will do.
        rows: let an embedding's gradient be the rows of the batch, not a copy of the table.
        copies: whether a copy of the model, which keeps the weights but not their aliases, may run without gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, nn.Parameter],
        make: Make,
        *,
        tap: Callable[[str], Tap | None] = lambda name: None,
        rows: bool,
        copies: bool,
    ) -> None:
        self.model, self.make, self.tap, self.rows, self.copies = model, make, tap, rows, copies
        self.frames: list[Frame] = []  # of the modules whose forward is under way
        names = {id(weight): name for name, weight in weights.items()}
        found: dict[nn.Module, list[Place]] = {}
        for parent in model.modules():
            for owner in (parent, *parent.children()):
                for attribute, parameter in owner._parameters.items():
                    if id(parameter) in names:
                        place = (owner, attribute, names[id(parameter)])
                        for module in {parent, model}:
                            if place not in found.setdefault(module, []):
                                found[module].append(place)
        self._hooks = [hook for module, places in found.items() for hook in self._swap(module, places)]

    def _swap(self, hooked: nn.Module, places: list[Place]) -> list[Any]:
        names = list(dict.fromkeys(name for _, _, name in places))
        turned = _turned(hooked)
        product = next((n for owner, a, n in places if owner is hooked and a == "weight" and turned is not None), None)

        def enter(module: nn.Module, args: Any) -> None:
            if module is not hooked:
                if torch.is_grad_enabled() or not self.copies:
                    raise BadPlan(
                        "a copy of a tuned model cannot be trained (deepcopy, or DataParallel over several GPUs): tune the "
                        "copy itself, or use DistributedDataParallel"
                    )
                return
            if hooked is self.model and not any(frame.module is hooked for frame in self.frames):
                self.undo(to=0)  # an interrupted forward may have left something
            tapping = product is not None and args and torch.is_grad_enabled() and not torch.compiler.is_compiling()
            tap = self.tap(product) if tapping and product is not None else None
            frame = Frame(hooked, [], {}, product if tap else None, tap)
            self.frames.append(frame)
            made = self.make(names, self.frames)
            for owner, attribute, name in places if made else ():
                # an owner swaps even where the whole model has done so: a backward runs the youngest nodes first, so
                # that an alias made just before its use frees the dense gradient at once, and one made at the start last
                table = owner if isinstance(owner, nn.Embedding) and not owner.scale_grad_by_freq else None
                table = table if self.rows and not torch.compiler.is_compiling() else None
                frame.undo.append(
                    (owner, attribute, owner._parameters[attribute], None if table is None else table.sparse)
                )
                owner._parameters[attribute] = made[name]  # type: ignore[assignment]
                if table is not None:
                    table.sparse = True  # its gradient is then the rows of the batch, not a copy of the table

        def leave(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            depth = next((i for i in reversed(range(len(self.frames))) if self.frames[i].module is module), None)
            if depth is None:
                return None
            frame = self.frames[depth]
            self.undo(to=depth)
            if frame.tap is None or not frame.undo or not isinstance(output, Tensor):  # or the forward has failed
                return None
            return frame.tap(args[0], output, bool(turned))

        return [
            hooked.register_forward_pre_hook(enter),
            hooked.register_forward_hook(leave, always_call=True, prepend=True),  # before what others do to the output
        ]

    def undo(self, to: int) -> None:
        """Takes back the swaps of all frames but the first `to`, the last first."""
        while len(self.frames) > to:
            for owner, attribute, before, sparse in reversed(self.frames.pop().undo):
                owner._parameters[attribute] = before
                if sparse is not None:
                    owner.sparse = sparse  # type: ignore[assignment]

    def remove(self) -> None:
        """Takes the hooks off, and every alias out."""
        for hook in self._hooks:
            hook.remove()
        self.undo(to=0)


def _turned(owner: nn.Module) -> bool | None:
    """Whether a module multiplies by its weight as [inputs, outputs]; None if it does something else with it."""
    if type(owner).forward is nn.Linear.forward:
        return False
    return True if type(owner).__name__ == "Conv1D" and hasattr(owner, "nf") else None  # GPT-2's Linear, transposed
