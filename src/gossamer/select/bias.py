"""bitfit: every bias vector and nothing else (Ben-Zaken et al. 2022). k is what it is."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gossamer.delta.support import Support
from gossamer.errors import BadPlan


def bias(parameters: Mapping[str, Tensor]) -> Support:
    """All entries of every one-dimensional parameter whose own name says bias: LayerNorm's and attention's included.

    >>> bias({"a.weight": torch.zeros(2, 2), "a.bias": torch.zeros(2)})["a.bias"]
    tensor([0, 1])
    """
    found = {n: torch.arange(p.numel()) for n, p in parameters.items() if p.dim() == 1 and "bias" in n.split(".")[-1]}
    if not found:
        raise BadPlan("bitfit trains bias vectors, and this model's backbone has none; choose another method")
    return Support(found)
