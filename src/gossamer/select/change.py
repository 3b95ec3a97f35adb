"""change: the k entries that a first training moved furthest, |θ1 − θ0| (LT-SFT, Ansell et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gossamer.delta.support import Support
from gossamer.delta.topk import apportion, free, top_k
from gossamer.errors import BadPlan


def change(
    differences: Mapping[str, Tensor],
    k: int,
    *,
    without: Support | None = None,
    avoid: Support | None = None,
    kept: Support | None = None,
    per_tensor: bool = False,
) -> Support:
    """The k largest |θ1 − θ0| that are in neither `without` nor `avoid`; `differences` holds θ1 − θ0 of each parameter.

    `without` is what earlier rounds chose, `avoid` what may never be chosen: a tensor's share is of what is left.

    Entries that are `kept` (a support that training has already settled on) count as moved even if they came back to θ0.

    Raises:
        BadPlan: fewer than k entries moved (or, `per_tensor`, fewer than a tensor's share), so that the rest of the
            choice would be arbitrary.

    >>> change({"w": torch.tensor([[3.0, -4.0, 1.0], [0.0, 2.0, 5.0]])}, 2)["w"]
    tensor([1, 5])
    """

    def moved(name: str) -> Tensor:
        score = differences[name].detach().abs().reshape(-1)  # a tensor of its own, for as long as it is ranked
        if kept and name in kept:
            score[kept[name]] = score[kept[name]].clamp(min=torch.finfo(score.dtype).tiny)
        for barred in (without, avoid):
            if barred and name in barred:
                score[barred[name]] = 0.0
        return score

    available = {name: int(torch.count_nonzero(moved(name))) for name in differences}
    shares = apportion(free({n: d.numel() for n, d in differences.items()}, avoid), k) if per_tensor else {}
    lacking = [name for name, share in shares.items() if available[name] < share]
    if sum(available.values()) < k or lacking:
        where = f" (too few in {lacking[0]!r} for its share)" if lacking else ""
        where += ", apart from those to avoid" if avoid else ""
        raise BadPlan(
            f"k = {k:,} weights were asked for but only {sum(available.values()):,} moved in the first phase{where}; "
            "train it longer or at a larger rate, or lower the density"
        )
    return top_k(
        {name: (lambda name=name: moved(name)) for name in differences}, k, per_tensor=per_tensor, without=avoid
    )
