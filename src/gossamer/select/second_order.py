"""sam: the Second-order Approximation Method. This is *not* sharpness-aware minimization, which has the same initials.

L(θ0 + δ) ≈ L + gᵀδ + ½ δᵀHδ with a diagonal H: the best δ_i is −g_i / h_i and lowers the loss by g_i² / (2 h_i), so the k
largest g_i² / h_i are the best choice of k weights (Fu et al. 2023). The paper then bounds H by a constant, which
cancels h and leaves g². Both are offered; h̃ = max(ĥ, 0) + mean |ĥ| is damped, since a near-zero h would select noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from gossamer.delta.support import Support
from gossamer.delta.topk import top_k
from gossamer.errors import BadPlan


def second_order(
    gradients: Mapping[str, Tensor],
    k: int,
    *,
    diagonal: Mapping[str, Tensor] | None = None,
    per_tensor: bool = False,
    without: Support | None = None,
) -> Support:
    """The k largest g²/h̃, or g² without a `diagonal`. Ranked by the root, |g|/√h̃, whose order float32 does not blur.

    Args:
        gradients: Σ_b g_b of each parameter (see `scoring.accumulate`).
        diagonal: ĥ of each (see `curvature.hutchinson`); any common positive factor of g and ĥ leaves the choice.
        without: entries never to be chosen.

    Raises:
        BadPlan: ĥ is 0 everywhere or not finite, so that g²/h̃ says nothing.

    >>> g = {"w": torch.tensor([[3.0, -4.0, 1.0], [0.0, 2.0, 5.0]])}
    >>> second_order(g, 2)["w"]
    tensor([1, 5])
    >>> second_order(g, 2, diagonal={"w": torch.tensor([[1.0, 16.0, 0.0], [1.0, 1.0, 100.0]])})["w"]
    tensor([0, 1])
    """
    if diagonal is None:
        return top_k(
            {name: (lambda g=g: g.abs()) for name, g in gradients.items()}, k, per_tensor=per_tensor, without=without
        )
    size = sum(h.numel() for h in diagonal.values())
    damping = math.fsum(float(h.abs().sum(dtype=torch.float64)) for h in diagonal.values()) / size
    if not (math.isfinite(damping) and damping > 0):
        raise BadPlan(
            f"the loss's estimated curvature has mean size {damping}, so weights cannot be ranked by it; use "
            "curvature='identity'"
        )

    def score(name: str) -> Tensor:
        return gradients[name].abs().div_(diagonal[name].clamp(min=0).add_(damping).sqrt_())

    return top_k(
        {name: (lambda name=name: score(name)) for name in gradients}, k, per_tensor=per_tensor, without=without
    )
