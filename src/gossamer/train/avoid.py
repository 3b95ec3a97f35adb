"""avoid: the weights that earlier deltas change, so that a new one can be chosen apart from them.

Deltas with disjoint supports do not touch one another's entries: in their sum each entry has exactly the change that its own
delta gave it (tasks in a stream, Guo et al. 2021). Answers are another matter: a sum still moves the model for all tasks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import or_

from torch import Tensor, nn

from gossamer.delta.apply import Stack
from gossamer.delta.base import check
from gossamer.delta.delta import Delta
from gossamer.delta.patch import fingerprint
from gossamer.delta.support import Support
from gossamer.errors import BadPlan, NotLinear
from gossamer.train.plan import Method, cannot_avoid

Avoid = Delta | Support | Iterable[Delta | Support]


def avoided(model: nn.Module, row: Method, avoid: Avoid) -> tuple[Support | None, list[str]]:
    """All entries to avoid, and a digest of each delta or support that was given; (None, []) for none.

    Raises:
        BadPlan: the method cannot avoid weights, a delta has dense or low-rank changes, or an entry lies outside the model.
        BaseMismatch: a delta was trained on another base.
    """
    given = [avoid] if isinstance(avoid, Delta | Support) else list(avoid)
    if not given:
        return None, []
    if wrong := cannot_avoid(row):
        raise BadPlan(wrong)
    stack = Stack.over(model)
    found, digests = [], []
    for i, one in enumerate(given):
        if isinstance(one, Delta):
            check(one.base, stack.identity(), one.layer)
        found.append(support := _support(one, i))
        for name, indices in support.items():
            size = stack.parameters[name].numel() if name in stack.parameters else 0
            if int(indices[-1]) >= size:
                raise BadPlan(
                    f"avoid[{i}] names entry {int(indices[-1]):,} of {name!r}, of which this model has {size:,}; give deltas or "
                    "supports of this base"
                )
        digests.append(one.digest if isinstance(one, Delta) else _digest(support))
    return reduce(or_, found), digests


def check_left(k: int, available: Mapping[str, Tensor], avoid: Support | None) -> None:
    """Raises BadPlan if fewer than k of the weights that may be chosen are left without those to avoid."""
    total = sum(p.numel() for p in available.values())
    taken = sum(indices.numel() for name, indices in (avoid or {}).items() if name in available)
    if avoid is not None and k > total - taken:
        raise BadPlan(
            f"k = {k:,} is more than the {total - taken:,} weights that are left of {total:,} without the {taken:,} to "
            "avoid; lower k or the density, or avoid fewer deltas"
        )


def _support(one: object, i: int) -> Support:
    if isinstance(one, Support):
        return Support({name: indices.cpu() for name, indices in one.items()})
    if not isinstance(one, Delta):
        raise BadPlan(f"avoid[{i}] is a {type(one).__name__}; expected a Delta or a Support")
    try:
        return Support({name: indices.cpu() for name, indices in one.support.items()})
    except NotLinear as error:
        raise BadPlan(f"avoid[{i}] changes whole weights, which leaves nothing there to choose: {error}") from None


def _digest(support: Support) -> str:
    told = "".join(name + fingerprint(indices) for name, indices in support.items())
    return hashlib.sha256(told.encode()).hexdigest()[:32]
