"""Grafts on a model: one forward hook a place, which runs all that stands there in order of level. No weight is written.

A bottleneck runs on its module's output (the first one, where that is a tuple). An invertible one runs on the output of
every embedding that shares the weight of the one it names (encoder and decoder), and its inverse on what the model's
output embedding is given, where the model has one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.delta.base import backbone
from gossamer.delta.graft import Graft
from gossamer.errors import BaseMismatch, Clash


@dataclass(eq=False)
class Scion:
    """A graft on a model: with its own values, or with those that a module holds, of the `names` there (training)."""

    graft: Graft
    holder: nn.Module | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    moved: Mapping[str, Tensor] = field(default_factory=dict)

    def tensors(self, like: Tensor) -> Mapping[str, Tensor]:
        """The values on a state's device, and at least in float32."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        if self.holder is not None:
            # read anew each time, so that functional_call and copies of the model see their own
            return {part: getattr(self.holder, name).to(like.device, dtype) for part, name in self.names.items()}
        if not self.moved or any(t.device != like.device or t.dtype != dtype for t in self.moved.values()):
            with torch.inference_mode(False):  # else a later training above it could not use what is kept here
                self.moved = {part: tensor.to(like.device, dtype) for part, tensor in self.graft.tensors.items()}
        return self.moved

    def run(self, h: Tensor, *, inverse: bool) -> Tensor:
        graft = self.graft
        if h.shape[-1] != graft.width:
            raise BaseMismatch(
                f"the graft at {graft.place!r} takes states of width {graft.width} and was given {h.shape[-1]}; load the "
                "base that it was trained on"
            )
        tensors = self.tensors(h)
        wide = h.to(torch.promote_types(h.dtype, torch.float32))
        return (graft.inverse if inverse else graft.forward)(wide, tensors).to(h.dtype)


class Bed:
    """What stands at one module: the scions in order of level, and the hook that runs them."""

    def __init__(self, module: nn.Module, inverse: bool) -> None:
        self.scions: list[Scion] = []
        add: Any = module.register_forward_pre_hook if inverse else module.register_forward_hook
        self.hook = add(self._before if inverse else self._after)

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        for scion in self.scions:
            h = scion.run(h, inverse=False)
        return (h, *output[1:]) if isinstance(output, tuple) else h

    def _before(self, module: nn.Module, args: Any) -> Any:
        h = args[0]
        for scion in reversed(self.scions):
            h = scion.run(h, inverse=True)
        return (h, *args[1:])


class Grafted:
    """All that is grafted onto one backbone."""

    def __init__(self) -> None:
        self.beds: dict[tuple[nn.Module, bool], Bed] = {}

    def check(self, model: nn.Module, grafts: Iterable[Graft]) -> None:
        """Raises BaseMismatch for a place that the model lacks, Clash for one that is taken. Changes nothing."""
        taken = {(s.graft.place, s.graft.level) for bed in self.beds.values() for s in bed.scions}
        for graft in grafts:
            sites(model, graft)
            if (graft.place, graft.level) in taken:
                raise Clash(taken_twice(graft))

    def put(self, model: nn.Module, scions: Iterable[Scion]) -> None:
        """Puts checked scions on."""
        for scion in scions:
            for module, inverse in sites(model, scion.graft):
                if (module, inverse) not in self.beds:
                    self.beds[module, inverse] = Bed(module, inverse)
                bed = self.beds[module, inverse]
                bed.scions = sorted([*bed.scions, scion], key=lambda each: each.graft.level)

    def take(self, scions: Iterable[Scion]) -> None:
        """Takes scions off; those that are not on do not matter."""
        gone = {id(scion) for scion in scions}
        for site, bed in list(self.beds.items()):
            bed.scions = [scion for scion in bed.scions if id(scion) not in gone]
            if not bed.scions:
                bed.hook.remove()
                del self.beds[site]

    def clear(self) -> list[Scion]:
        """Takes all off, and says what that was."""
        scions = {id(scion): scion for bed in self.beds.values() for scion in bed.scions}
        self.take(scions.values())
        return list(scions.values())

    def replant(self, model: nn.Module) -> None:
        """Follows a model some of whose modules were replaced by others of the same name."""
        self.put(model, self.clear())


def sites(model: nn.Module, graft: Graft) -> list[tuple[nn.Module, bool]]:
    """The modules at which a graft runs, and whether its inverse does. Raises BaseMismatch."""
    below = dict(backbone(model).named_modules())
    if graft.place not in below:
        raise BaseMismatch(
            f"the delta adds a module at {graft.place!r}, which this model lacks; load the base it was trained on"
        )
    module = below[graft.place]
    found = out_width(module)
    if found not in (None, graft.width):
        raise BaseMismatch(
            f"wrong base: {graft.place!r} gives states of width {found} where the delta's added module takes {graft.width}"
        )
    if graft.kind == "bottleneck":
        return [(module, False)]
    weight = getattr(module, "weight", None)
    tied = [m for m in below.values() if isinstance(m, nn.Embedding) and m.weight is weight]
    output = getattr(model, "get_output_embeddings", lambda: None)()
    return [*((m, False) for m in tied or [module]), *([(output, True)] if isinstance(output, nn.Module) else [])]


def out_width(module: nn.Module) -> int | None:
    """The width of what a linear or embedding layer gives; None for other modules.

    A linear layer is any module with a matrix `weight`: its bias tells the output side where it stores the transpose.
    """
    if isinstance(module, nn.MultiheadAttention):
        return module.embed_dim
    weight = module._parameters.get("weight")
    if weight is None or weight.dim() != 2:
        return None
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return weight.shape[1]
    bias = module._parameters.get("bias")
    return bias.numel() if bias is not None and bias.numel() in weight.shape else weight.shape[0]


def taken_twice(graft: Graft) -> str:
    """What to say where two unlike grafts want one place and level."""
    return (
        f"two different added modules want level {graft.level} at {graft.place!r}; train one of them at another level "
        f"(level={graft.level + 1} runs above), or keep one: dataclasses.replace(delta, grafts=()) drops them"
    )
