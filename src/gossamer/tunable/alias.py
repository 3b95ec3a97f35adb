"""Aliases: while forwards run, other tensors stand in the place of frozen weights, so that gradients reach leaves.

A weight's owner, the owner's parent and the whole model are hooked. The owner's hook serves nearly every use. The
others serve modules that read another's weight (attention reads its output projection's); the parent's does so for what
gradient checkpointing computes again, outside the model's own forward. Where it is known how an owner uses its weights
(`taps.py`), its output can be tapped in place of aliases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.errors import BadPlan

Place = tuple[nn.Module, str, str]  # owner, attribute, name of the weight
Swap = tuple[nn.Module, str, Any, bool | None]  # owner, attribute, what was there, Embedding.sparse
Tap = Callable[[tuple[Any, ...], Tensor], Tensor]  # arguments of a forward and its output → new output


class Frame:
    """One forward under way: what its entry swapped, so that its end can undo it."""

    __slots__ = ("aliased", "args", "memo", "module", "names", "own", "tap", "undo")

    def __init__(self, module: nn.Module, args: tuple[Any, ...], names: list[str], own: Mapping[str, str]) -> None:
        self.module, self.args = module, args
        self.aliased = False  # whether aliases were put for it: not where no gradients were recorded
        self.names = names  # the weights that may need aliases
        self.own = own  # attribute → name, of the weights that it owns
        self.tap: Tap | None = None  # what makes a new output of its output; its own weights then need no alias
        self.undo: list[Swap] = []
        self.memo: dict[Any, Any] = {}  # whatever the maker of aliases wants to remember until the forward ends


Make = Callable[[list[Frame]], Mapping[str, Tensor]]


class Aliases:
    """Hooks on a model that swap aliases in and out.

    Args:
        model: whose weights they are.
        weights: name → weight.
        make: frames of the forwards under way (the outermost first, the entered one last) → name → what stands in for the
            weight, for any of the entered frame's names; it may set `tap`.
        rows: let an embedding's gradient be the rows of the batch, not a copy of the table.
        copies: whether a copy of the model, which keeps the weights but not their aliases, may run without gradients.
        every: whether `make` is asked about all that a forward within the model's own may read; else about what its
            module owns, since the model's has put aliases of the rest.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, nn.Parameter],
        make: Make,
        *,
        rows: bool = False,
        copies: bool = False,
        every: bool = False,
    ) -> None:
        self.model, self.make, self.rows, self.copies, self.every = model, make, rows, copies, every
        self.frames: list[Frame] = []  # of the modules whose forward is under way
        names = {id(weight): name for name, weight in weights.items()}
        found: dict[nn.Module, list[Place]] = {model: []}
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
        own = {attribute: name for owner, attribute, name in places if owner is hooked}
        frames, of = self.frames, {name: [place for place in places if place[2] == name] for name in names}

        def enter(module: nn.Module, args: Any) -> None:
            if module is not hooked:
                refuse_copy(unless=self.copies)
                return
            if frames and hooked is self.model and not any(frame.module is hooked for frame in frames):
                self.undo(to=0)  # an interrupted forward may have left something
            covered = bool(frames) and frames[0].module is self.model and frames[0].aliased and not self.every
            frame = Frame(hooked, args, list(own.values()) if covered else names, own)
            frames.append(frame)
            if covered and not own:
                return
            made = self.make(frames)
            frame.aliased = bool(made)
            for name, alias in made.items():
                for owner, attribute, _ in of[name]:
                    self._put(frame, owner, attribute, alias)

        def leave(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            depth = len(frames) - 1
            while depth >= 0 and frames[depth].module is not module:
                depth -= 1
            if depth < 0:
                return None
            tap = frames[depth].tap
            try:
                if tap is None or output is None:  # or the forward has failed
                    return None
                if not args or not isinstance(output, Tensor):
                    raise BadPlan(
                        f"another hook made of a {type(module).__name__}'s input or output something else than tensors, so "
                        "that its tuned weights would get no gradient; register such hooks after tuning has begun"
                    )
                return tap(args, output)
            finally:
                self.undo(to=depth)

        return [
            hooked.register_forward_pre_hook(enter),
            hooked.register_forward_hook(leave, always_call=True, prepend=True),  # before what others do to the output
        ]

    def _put(self, frame: Frame, owner: nn.Module, attribute: str, alias: Tensor) -> None:
        # an owner swaps even where the whole model has done so: a backward runs the youngest nodes first, so that an
        # alias made just before its use frees the dense gradient at once, and one made at the start last
        table = owner if owner is frame.module and isinstance(owner, nn.Embedding) else None
        if table is None or not self.rows or table.scale_grad_by_freq or torch.compiler.is_compiling():
            table = None
        frame.undo.append((owner, attribute, owner._parameters[attribute], None if table is None else table.sparse))
        owner._parameters[attribute] = alias  # type: ignore[assignment]
        if table is not None:
            table.sparse = True  # its gradient is then the rows of the batch, not a copy of the table

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


def refuse_copy(*, unless: bool) -> None:
    """Raises BadPlan where a copy of a tuned model runs: `unless` it may, without gradients."""
    if torch.is_grad_enabled() or not unless:
        raise BadPlan(
            "a copy of a tuned model cannot be trained (deepcopy, or DataParallel over several GPUs): tune the copy itself, "
            "or use DistributedDataParallel"
        )
