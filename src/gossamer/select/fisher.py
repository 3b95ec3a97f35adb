"""fisher: the k entries with the largest empirical Fisher information Σ_b g_b², one example at a time.

Also the task-driven mask of Child-Tuning (Xu et al. 2021, Child-D) and of FISH masks (Sung et al. 2021).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gossamer.delta.support import Support
from gossamer.delta.topk import top_k


def fisher(
    squares: Mapping[str, Tensor], k: int, *, per_tensor: bool = False, without: Support | None = None
) -> Support:
    """The k largest Σ_b g_b²; `squares` holds that sum for each parameter (see `scoring.accumulate`). None of `without`.

    >>> import torch
    >>> fisher({"w": torch.tensor([[3.0, 4.0, 1.0], [0.0, 2.0, 5.0]])}, 2)["w"]
    tensor([1, 5])
    """
    return top_k(squares, k, per_tensor=per_tensor, without=without)
