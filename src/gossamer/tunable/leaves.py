"""What every tunable gives: trainable leaves on a frozen model, their change as patches, and a way off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from gossamer.delta.delta import Delta
from gossamer.delta.graft import Graft
from gossamer.delta.patch import Patch
from gossamer.delta.support import Support


@dataclass(frozen=True)
class Wanted:
    """What is to be made trainable, and how."""

    names: list[str]  # weights of the backbone that may change
    support: Support | None = None  # the entries of them that may, for tunables that train chosen ones
    start: Delta | None = None  # values to start from
    options: Mapping[str, Any] = field(default_factory=dict)  # the method's own
    seed: int = 0
    k: int | None = None  # how many entries may change, for tunables that see to it themselves
    avoid: Support | None = None  # entries that may never be chosen, for the same
    revise: Callable[..., Support] | None = None  # the rule by which a support is revised (`select.grow_drop`)


class Leaves(Protocol):
    """Trainable leaves on a model. Made by ``kind(model, stack, wanted)``; they write weights through the stack only.

    What has a body here is what most kinds do; it is meant to be kept or replaced whole, not extended.
    """

    def parameters(self) -> Iterator[nn.Parameter]:
        """The leaves, for an optimizer."""
        ...

    def patches(self) -> dict[str, Patch]:
        """The change so far, by name of the weight; values on the CPU, not shared with the leaves."""
        ...

    def grafts(self) -> tuple[Graft, ...]:
        """The added modules so far, values as those of `patches`; none by default."""
        return ()

    def add_penalty_gradient(self, strength: float) -> None:
        """Adds strength · ∂Ω to the gradients of the leaves; Ω is Σ|δ|, or what the leaves penalize in its place."""
        ...

    def facts(self, m: int) -> dict[str, Any]:
        """What training found out besides the change and the delta should say, {} where there is nothing; plain JSON."""
        return {}

    def kept(self) -> Support | None:
        """The support that training itself has settled on, where it does."""
        return None

    def extra(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides the leaves' values, {} where there is nothing."""
        return {}

    def load_extra(self, extra: Mapping[str, Tensor]) -> None:
        """Takes back what `extra` gave."""
        return

    def suspend(self) -> None:
        """Puts what lies beneath in the leaves' place for a while."""
        ...

    def wake(self) -> None:
        """Ends `suspend`."""
        ...

    def detach(self) -> None:
        """Takes the leaves off: the model is what lies beneath, bit for bit."""
        ...


@runtime_checkable
class Scheduled(Protocol):
    """Leaves that change their ways as training goes on, and so must know how long it will be."""

    def begin(self, steps: int) -> None:
        """Is told the number of optimizer steps of the whole phase."""
        ...
