"""Similarity of representations: how alike two models see the same tokens.

RSA (He et al. 2021 §4.1, after Laakso and Cottrell 2000): S = cosine similarities of the token vectors of one model, T of the
other; the Pearson correlation of their upper triangles. Linear CKA (Kornblith et al. 2019): ‖YᵀX‖² / (‖XᵀX‖·‖YᵀY‖), columns
centered, Frobenius norms. Both are 1 for a model and itself, and do not change under rotation and positive scaling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gossamer.errors import BadData

_BLOCK = 512  # rows of a similarity matrix at a time: it is never whole in memory


def rsa(x: Tensor, y: Tensor) -> float:
    """Representational similarity of the same n tokens in two spaces.

    Args:
        x, y: [n, d] and [n, d'], float; n ≥ 3.

    Returns:
        A correlation, from −1 to 1; NaN where the similarities of one of them are all alike.

    Raises:
        BadData: other shapes, or values that are not finite.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> round(rsa(x, 3 * x.flip(1)), 6)
    1.0
    """
    _check(x, y)
    x, y = (torch.nn.functional.normalize(z.float(), dim=1) for z in (x, y))
    n = len(x)
    count = n * (n - 1) / 2
    shift: tuple[float, float] | None = None  # moments about a value near the mean lose no digits
    sums = torch.zeros(5, dtype=torch.float64)
    for start in range(0, n, _BLOCK):
        upper = torch.ones(min(_BLOCK, n - start), n, dtype=torch.bool, device=x.device).triu(start + 1)
        s, t = ((z[start : start + _BLOCK] @ z.t())[upper].double() for z in (x, y))
        if shift is None:
            shift = float(s.mean()), float(t.mean())
        s, t = s - shift[0], t - shift[1]
        sums += torch.stack([s.sum(), t.sum(), s @ s, t @ t, s @ t]).cpu()
    a, b, aa, bb, ab = (sums / count).tolist()
    spread = math.sqrt(max(aa - a * a, 0.0)) * math.sqrt(max(bb - b * b, 0.0))
    return max(-1.0, min(1.0, (ab - a * b) / spread)) if spread > 1e-14 else math.nan


def cka(x: Tensor, y: Tensor) -> float:
    """Linear centered kernel alignment of the same n tokens in two spaces, from 0 to 1; arguments as of `rsa`.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> round(cka(x, 3 * x.flip(1)), 6)
    1.0
    """
    _check(x, y)
    x, y = (z.double() - z.double().mean(0) for z in (x, y))
    norms = torch.linalg.norm(x.t() @ x) * torch.linalg.norm(y.t() @ y)
    return float((y.t() @ x).square().sum() / norms) if norms > 0 else math.nan


def _check(x: Tensor, y: Tensor) -> None:
    if x.dim() != 2 or y.dim() != 2 or len(x) != len(y) or len(x) < 3:
        raise BadData(
            f"expected vectors of the same tokens, [n, d] and [n, d'] with n ≥ 3; got {list(x.shape)}, {list(y.shape)}"
        )
    for name, z in (("first", x), ("second", y)):
        if not bool(z.isfinite().all()):
            raise BadData(f"the {name} model's states are not all finite, so that no similarity is defined")
