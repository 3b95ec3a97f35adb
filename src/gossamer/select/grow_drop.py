"""grow_drop: revises a support of constant size (SpIEL, Ansell et al. 2024): the smallest |δ| go, the best scores come.

Quota per tensor: of its k_i entries, n = round(rate · k_i) are dropped and n are grown, so k never changes. A dropped
entry whose score is among the best comes back at once; being in both supports, it is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gossamer.delta.support import Support


def grow_drop(
    support: Support,
    deltas: Mapping[str, Tensor],  # [k_i] δ at the support
    candidates: Mapping[str, tuple[Tensor, Tensor]],  # flat indices [c] and scores [c] ≥ 0, of the support's own too
    *,
    rate: float,
) -> Support:
    """The next support: in each tensor n = round(rate · k_i) smallest |δ| leave and the n best candidates enter.

    Candidates that stay anyway, or whose score is 0, do not count; where they are too few, the largest of the dropped
    stay. Ties go to the lowest index; of dropped entries that tie, the highest comes back. At rate 1 everything is replaced.

    >>> grow_drop(Support({"w": torch.tensor([1, 4])}), {"w": torch.tensor([0.5, -2.0])},
    ...           {"w": (torch.tensor([2, 3, 4]), torch.tensor([1.0, 3.0, 9.0]))}, rate=0.5)["w"]
    tensor([3, 4])
    """
    none = (torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    return Support({n: _revised(i, deltas[n], *candidates.get(n, none), rate=rate) for n, i in support.items()})


def _revised(old: Tensor, delta: Tensor, index: Tensor, score: Tensor, *, rate: float) -> Tensor:
    n = round(rate * old.numel())
    smallest_first = old[delta.abs().sort(stable=True).indices]
    dropped, stay = smallest_first[:n], smallest_first[n:]
    place = index.argsort()
    index, score = index[place], score[place]
    free = (score > 0) & ~torch.isin(index, stay)
    index, score = index[free], score[free]
    grown = index[score.sort(descending=True, stable=True).indices[:n]]
    back = dropped.flip(0)
    back = back[~torch.isin(back, grown)][: n - grown.numel()]
    return torch.cat([stay, grown, back]).sort().values
