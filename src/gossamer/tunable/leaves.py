"""What every tunable gives: trainable leaves on a frozen model, their change as patches, and a way off again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

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


class Leaves(Protocol):
    """Trainable leaves on a model. Made by ``kind(model, stack, wanted)``; they write weights through the stack only."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """The leaves, for an optimizer."""
        ...

    def patches(self) -> dict[str, Patch]:
        """The change so far, by name of the weight; values on the CPU, not shared with the leaves."""
        ...

    def grafts(self) -> tuple[Graft, ...]:
        """The added modules so far, values as those of `patches`; none by default."""
        return ()

    def add_l1_gradient(self, strength: float) -> None:
        """Adds strength · sign(δ) to the gradients of the leaves."""
        ...

    def extra(self) -> dict[str, Tensor]:
        """What a checkpoint must hold besides the leaves' values, {} where there is nothing."""
        ...

    def load_extra(self, extra: Mapping[str, Tensor]) -> None:
        """Takes back what `extra` gave."""
        ...

    def suspend(self) -> None:
        """Puts what lies beneath in the leaves' place for a while."""
        ...

    def wake(self) -> None:
        """Ends `suspend`."""
        ...

    def detach(self) -> None:
        """Takes the leaves off: the model is what lies beneath, bit for bit."""
        ...
