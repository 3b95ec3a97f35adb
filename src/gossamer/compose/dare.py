"""dare: drop entries at random, rescale the rest, add (Yu et al. 2024, "Language Models are Super Mario").

    δ̃_i = m_i ⊙ δ_i / (1 − p),   m_i ~ Bernoulli(1 − p) entry by entry,   result  λ · Σ_i δ̃_i

The expectation is Σ δ_i. Entries that a sparse delta does not touch are 0 in any case, so none is drawn for them.
Each delta's draws come from the seed and its own digest: they do not depend on the order or on the other deltas.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gossamer.compose.parts import assemble, by_name, check, dtype_of, keeper, no_grafts, pack, widest
from gossamer.delta.delta import Delta
from gossamer.delta.patch import Terms
from gossamer.delta.terms import exact, union
from gossamer.errors import BadPlan


def dare(
    deltas: Sequence[Delta],
    *,
    drop: float = 0.9,
    scale: float = 1.0,
    seed: int = 0,
    head: int | None = None,
    values: str | None = None,
) -> Delta:
    """The sum of some deltas after DARE.

    Args:
        drop: p, the chance that an entry is dropped, from 0 and below 1.
        scale: λ.
        seed: of the draws, a whole number from 0.
        head, values: as for `linear`.

    Raises:
        BadPlan, BaseMismatch, Clash: as for `linear`; NotLinear: a delta adds modules.
    """
    check(deltas, "dare", drop=drop, scale=scale, seed=seed)
    no_grafts(deltas, "dare")
    if not 0 <= drop < 1:
        raise BadPlan(f"drop={drop:g} of dare; expected a chance from 0 and below 1")
    if int(seed) != seed or seed < 0:
        raise BadPlan(f"seed={seed!r} of dare; expected a whole number from 0")
    dtype = dtype_of(values)
    drawn = [np.random.default_rng([int(seed), int(delta.digest, 16)]) for delta in deltas]
    found = {}
    for name, parts in by_name(deltas).items():
        shape = next(patch.shape for terms in parts for _, patch in terms)
        everything = tuple(term for terms in parts for term in terms)
        where = union(everything)
        total = torch.zeros(torch.Size(shape).numel() if where is None else where.numel(), dtype=torch.float64)
        for terms, rng in zip(parts, drawn, strict=True):
            if terms:
                own = union(terms)
                entries = _dropped(terms, own, rng, drop)
                total[_slots(where, own)] += entries
        found[name] = pack(shape, where, total * (scale / (1 - drop)), dtype or widest(everything))
    how = {"method": "dare", "drop": drop, "scale": scale, "seed": int(seed)} | ({"values": values} if values else {})
    return assemble(found, [(1.0, delta) for delta in deltas], keeper(deltas, head), how)


def _dropped(terms: Terms, where: Tensor | None, rng: np.random.Generator, drop: float) -> Tensor:
    entries = exact(terms, where)
    return entries * torch.from_numpy(rng.random(entries.numel()) >= drop)


def _slots(where: Tensor | None, own: Tensor | None) -> Tensor | slice:
    """Where a delta's entries lie in the union of all; both may be all entries (None)."""
    if own is None:
        return slice(None)
    return own if where is None else torch.searchsorted(where, own)
