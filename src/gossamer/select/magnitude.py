"""magnitude: the k entries with the largest |θ0| (or the smallest)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from gossamer.delta.quantized import plain
from gossamer.delta.support import Support
from gossamer.delta.topk import top_k


def magnitude(
    parameters: Mapping[str, Tensor],
    k: int,
    *,
    smallest: bool = False,
    per_tensor: bool = False,
    without: Support | None = None,
) -> Support:
    """The k entries with the largest |θ0|; `smallest` takes the other end. None of `without`.

    >>> import torch
    >>> magnitude({"w": torch.tensor([[3.0, -4.0, 1.0], [0.0, 2.0, 5.0]])}, 2)["w"]
    tensor([1, 5])
    """

    def size(parameter: Tensor) -> Tensor:
        score = plain(parameter).detach().abs()
        return score.neg_() if smallest else score

    scores = {n: (lambda p=p: size(p)) for n, p in parameters.items()}
    return top_k(scores, k, per_tensor=per_tensor, without=without)
