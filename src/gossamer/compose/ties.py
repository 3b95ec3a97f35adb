"""ties: trim, elect a sign, mean of those that agree (Yadav et al. 2023, "TIES-Merging").

    trim    τ̂_i = the `density` · n_i largest entries of δ_i by magnitude, over all parameters; the rest 0
    elect   γ = sgn Σ_i τ̂_i                                    entry by entry
    merge   τ = mean of τ̂_i over {i : sgn τ̂_i = γ}
    result  λ · τ

Deviations: n_i is the number of entries that δ_i touches, not of the model's weights (the same for a dense delta), so
that trimming means something for sparse ones. Where Σ is exactly 0 no sign is elected, and the entry is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gossamer.compose.parts import assemble, by_name, check, dtype_of, keeper, no_grafts, pack, widest
from gossamer.delta.delta import Delta
from gossamer.delta.patch import Terms
from gossamer.delta.support import Support
from gossamer.delta.terms import exact, union
from gossamer.delta.topk import top_k
from gossamer.errors import BadPlan


def ties(
    deltas: Sequence[Delta],
    *,
    density: float = 0.2,
    scale: float = 1.0,
    head: int | None = None,
    values: str | None = None,
) -> Delta:
    """TIES of some deltas.

    Args:
        density: share of each delta's own entries that is kept, above 0 and at most 1.
        scale: λ.
        head, values: as for `linear`.

    Raises:
        BadPlan, BaseMismatch, Clash: as for `linear`; NotLinear: a delta adds modules.
    """
    check(deltas, "ties", density=density, scale=scale)
    no_grafts(deltas, "ties")
    if not 0 < density <= 1:
        raise BadPlan(f"density={density:g} of ties; expected a share above 0 and at most 1")
    dtype, kept = dtype_of(values), [trim(delta, density) for delta in deltas]
    found = {}
    for name, parts in by_name(deltas).items():
        chosen = [support[name] for support in kept if name in support]
        if not chosen:
            continue
        shape = next(patch.shape for terms in parts for _, patch in terms)
        where = torch.unique(torch.cat(chosen))
        sums, counts = torch.zeros(2, where.numel(), dtype=torch.float64), torch.zeros(2, where.numel())
        for terms, support in zip(parts, kept, strict=True):  # both signs apart, so that one pass elects and merges
            if name not in support:
                continue
            own = union(terms)
            at = support[name] if own is None else torch.searchsorted(own, support[name])
            entries, slots = exact(terms, own)[at], torch.searchsorted(where, support[name])
            for side, signed in enumerate((entries.clamp(min=0), entries.clamp(max=0))):
                sums[side, slots] += signed
                counts[side, slots] += signed != 0
        mean = sums / counts.clamp(min=1)
        sign = sums.sum(0).sign()
        total = scale * torch.where(sign > 0, mean[0], torch.where(sign < 0, mean[1], 0.0))
        found[name] = pack(shape, where, total, dtype or widest(term for terms in parts for term in terms))
    how = {"method": "ties", "density": density, "scale": scale} | ({"values": values} if values else {})
    return assemble(found, [(1.0, delta) for delta in deltas], keeper(deltas, head), how)


def trim(delta: Delta, density: float) -> Support:
    """The largest entries of a delta by magnitude, `density` of all that it touches but at least one."""
    wheres = {name: union(terms) for name, terms in delta.terms.items()}
    first = {name: terms[0][1] for name, terms in delta.terms.items()}
    sizes = {n: torch.Size(first[n].shape).numel() if w is None else w.numel() for n, w in wheres.items()}
    count = sum(sizes.values())
    if not count:
        return Support({})
    k = max(1, int(density * count + 0.5))
    scores = {name: _magnitudes(terms, wheres[name]) for name, terms in delta.terms.items() if sizes[name]}
    places = top_k(scores, k)
    return Support({n: at if (where := wheres[n]) is None else where[at] for n, at in places.items()})


def _magnitudes(terms: Terms, where: Tensor | None) -> Callable[[], Tensor]:
    return lambda: exact(terms, where).abs()
