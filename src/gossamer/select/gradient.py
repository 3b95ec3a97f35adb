"""gradient: the k entries with the largest |Σ_b g_b|, the mean gradient at θ0.

Fu et al. (2023) derive g²/h and bound h by a constant, which leaves this order; it is what their public code computes.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gossamer.delta.support import Support
from gossamer.delta.topk import top_k


def gradient(
    gradients: Mapping[str, Tensor], k: int, *, per_tensor: bool = False, without: Support | None = None
) -> Support:
    """The k largest |g|; `gradients` holds Σ_b g_b of each parameter (see `scoring.accumulate`). None of `without`.

    >>> import torch
    >>> gradient({"w": torch.tensor([[3.0, -4.0, 1.0], [0.0, 2.0, 5.0]])}, 2)["w"]
    tensor([1, 5])
    """
    return top_k({n: (lambda g=g: g.abs()) for n, g in gradients.items()}, k, per_tensor=per_tensor, without=without)
