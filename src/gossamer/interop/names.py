"""A model's parameters by the names that other libraries give them: full names, whatever class stood around the backbone."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from gossamer.delta.base import Identity, backbone, base_parameters, outer_parameters, record
from gossamer.delta.patch import Dense, round_once
from gossamer.errors import BadPlan, BaseMismatch


@dataclass(frozen=True)
class Place:
    """Where a foreign name points: a parameter of the backbone (canonical name), or one of the head (full name)."""

    name: str
    inside: bool
    parameter: nn.Parameter | None  # None: of a head that this model class does not have


class Names:
    """Looks foreign names up in a model. A head of another class keeps its name and has no parameter."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.bottom = model, backbone(model)
        self.full = dict(model.named_parameters(remove_duplicate=False))
        self.below = dict(self.bottom.named_parameters(remove_duplicate=False))
        self.canonical = {id(p): name for name, p in base_parameters(model).items()}
        self.outer = {id(p): name for name, p in outer_parameters(model).items()}
        self.prefix = f"{getattr(self.bottom, 'base_model_prefix', '')}."

    def find(self, name: str) -> Place:
        """The place of a full name (also one in a model whose backbone stands alone, and the other way around)."""
        inner = name.removeprefix(self.prefix)
        parameter = self.full.get(name)
        parameter = self.below.get(inner) if parameter is None else parameter
        if parameter is None:
            return Place(name, False, None)
        if id(parameter) in self.canonical:
            return Place(self.canonical[id(parameter)], True, parameter)
        return Place(self.outer[id(parameter)], False, parameter)

    def module(self, name: str) -> nn.Module | None:
        """The module of a full name, by the same rules."""
        there = dict(self.model.named_modules())
        return there.get(name) or dict(self.bottom.named_modules()).get(name.removeprefix(self.prefix))

    def users(self, parameter: nn.Parameter) -> int:
        """How many modules use a parameter."""
        return sum(p is parameter for module in self.model.modules() for p in module._parameters.values())

    def full_name(self, canonical: str) -> str:
        """The name in the whole model of a parameter of the backbone. Raises BaseMismatch."""
        wanted = self.below.get(canonical)
        if wanted is None:
            raise BaseMismatch(f"the delta changes {canonical!r}, which this model lacks; load its base")
        return next(name for name, parameter in self.full.items() if parameter is wanted)

    def identity(self, without: frozenset[str] = frozenset()) -> Identity:
        """The identity of the base, leaving out weights (full or canonical names) that no checkpoint gave."""
        gone = {self.find(name).name for name in without}
        return {name: record(p) for name, p in base_parameters(self.model).items() if name not in gone}


def replacing(place: Place, values: Tensor) -> Dense:
    """The patch after which a parameter holds these values, bit for bit. Raises BadPlan where no difference can say so."""
    assert place.parameter is not None
    base = place.parameter.detach().cpu()
    if values.shape != base.shape:
        raise BaseMismatch(
            f"wrong base: {place.name!r} is {list(base.shape)} here and {list(values.shape)} in the file"
        )
    exact = values.double() - base.double()
    for stored in (exact.float(), exact):
        if bool((round_once(base.double() + stored.double(), base.dtype) == values.to(base.dtype)).all()):
            return Dense(stored)
    raise BadPlan(f"{place.name!r}: no difference in float64 gives the new values; they are too far from the base's")


def prefix_of(touched: Iterable[str], known: Iterable[str], there: Collection[str]) -> str:
    """The one prefix under which a checkpoint holds all touched parameters, whose names are relative to the backbone.

    Args:
        touched: names that must be there.
        known: further names of the base, asked only where several prefixes would do.
        there: the checkpoint's names.

    Raises:
        BaseMismatch: no prefix does, or several do.
    """
    wanted = sorted(touched)
    if not wanted:
        return ""
    ends = {name for name in there if name == wanted[0] or name.endswith("." + wanted[0])}
    found = sorted(end.removesuffix(wanted[0]) for end in ends)
    found = [prefix for prefix in found if all(prefix + name in there for name in wanted)]
    if len(found) > 1:
        base = list(known)
        scores = [sum(prefix + name in there for name in base) for prefix in found]
        best = [prefix for prefix, score in zip(found, scores, strict=True) if score == max(scores)]
        found = best if len(best) == 1 else found
    if not found:
        raise BaseMismatch(
            f"the checkpoint has no tensor {wanted[0]!r}, under no prefix that all {len(wanted)} touched parameters share "
            f"(it holds {', '.join(sorted(there)[:3])}, …); give the base that the delta was trained on"
        )
    if len(found) > 1:
        raise BaseMismatch(
            f"the checkpoint holds {wanted[0]!r} under several prefixes ({', '.join(map(repr, found))}), so the delta's names "
            "do not say which is meant; pass prefix="
        )
    return found[0]
