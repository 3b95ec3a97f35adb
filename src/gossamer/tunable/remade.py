"""Remade: what the graph can make again from tensors that it holds anyway need not be kept a second time.

A sampled weight gradient needs the input of its product. Where that is the output of an activation or of an elementwise
product, autograd has kept what went into it; so the backward computes it anew, by the same operation on the same tensors
and hence to the same bits. The input of the operation is read at this point of the backward anyway, to differentiate it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Again = Callable[..., Tensor]  # what was kept → the tensor

_hooks = getattr(getattr(torch._C, "_autograd", None), "_top_saved_tensors_default_hooks", None)


def remade(tensor: Tensor) -> tuple[tuple[Tensor, ...], Again]:
    """What to keep of a tensor, and the function that makes it again of that.

    >>> x = torch.tensor([0.5], requires_grad=True)
    >>> y = functional.gelu(2 * x)
    >>> kept, again = remade(y)
    >>> kept[0].tolist(), bool(again(*kept) == y)
    ([1.0], True)
    """
    node = tensor.grad_fn
    fresh = tensor._version == 0  # else somebody has changed it since, perhaps where the graph does not see it
    if (
        fresh and node is not None and _hooks is not None and not _hooks(True)
    ):  # under hooks a saved tensor is read only once
        way = _WAYS.get(node.name())
        kept, again = way(node) if way else ((), _same)
        if kept and all(part is not None for part in kept):
            return kept, again
    return (tensor,), _same


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _gelu(node: Any) -> tuple[tuple[Tensor, ...], Again]:
    approximate = node._saved_approximate
    return (node._saved_self,), lambda x: functional.gelu(x, approximate=approximate)


_WAYS: dict[str, Callable[[Any], tuple[tuple[Tensor, ...], Again]]] = {
    "GeluBackward0": _gelu,
    "SiluBackward0": lambda node: ((node._saved_self,), functional.silu),
    "MulBackward0": lambda node: ((node._saved_self, node._saved_other), torch.mul),  # None: a constant factor
}
