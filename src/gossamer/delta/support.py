"""Support: which entries of which parameters. Sorted flat indices a parameter, with set operations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Support(Mapping[str, Tensor]):
    """Maps a parameter's name to its chosen entries, [k_i] int64, sorted and unique; empty ones are left out."""

    indices: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        kept = {name: self.indices[name] for name in sorted(self.indices) if self.indices[name].numel()}
        object.__setattr__(self, "indices", kept)

    def __getitem__(self, name: str) -> Tensor:
        return self.indices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def k(self) -> int:
        """Number of chosen entries."""
        return sum(found.numel() for found in self.indices.values())

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Support)
            and self.indices.keys() == other.indices.keys()
            and all(torch.equal(self[name], other[name]) for name in self)
        )

    __hash__ = None  # type: ignore[assignment]

    def __or__(self, other: Support) -> Support:
        """Entries in either."""
        names = self.keys() | other.keys()
        return Support({n: torch.unique(torch.cat([s[n] for s in (self, other) if n in s])) for n in names})

    def __and__(self, other: Support) -> Support:
        """Entries in both."""
        return Support({n: self[n][torch.isin(self[n], other[n])] for n in self.keys() & other.keys()})

    def __sub__(self, other: Support) -> Support:
        """Entries of this one that the other lacks."""
        return Support({n: self[n][~torch.isin(self[n], other[n])] if n in other else self[n] for n in self})

    def jaccard(self, other: Support) -> float:
        """|A ∩ B| / |A ∪ B|; 1.0 for two empty supports."""
        either = (self | other).k
        return (self & other).k / either if either else 1.0
