"""Quantized weights: how they are recognized and read. Nobody writes them.

A weight is quantized if it is a tensor that wraps others (`__tensor_flatten__`) and says its values with a `dequantize`
of its own, as torchao's and optimum-quanto's do. One may calculate with it, but no chosen entry of it can be set: sparse
values lie on top of the product with it (see `overlay`). Its values are what it dequantizes to, and so its identity is
that of a base that was quantized and turned back into floats: another base than the one before.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from gossamer.errors import BadPlan

_PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def quantized(weight: Tensor) -> bool:
    """Whether a weight holds other numbers than its values, and can say what these are."""
    return hasattr(weight, "__tensor_flatten__") and type(weight).dequantize is not Tensor.dequantize


def plain(weight: Tensor) -> Tensor:
    """The values of a weight as an ordinary tensor of its dtype: itself, detached, or what it dequantizes to."""
    found = weight.detach()
    return found.dequantize().to(weight.dtype) if quantized(weight) else found


def wrapped(weight: Tensor) -> list[Tensor]:
    """The tensors that a quantized weight wraps."""
    names = weight.__tensor_flatten__()[0]  # type: ignore[attr-defined]
    return [getattr(weight, name) for name in names]


def writable(weight: Tensor) -> bool:
    """Whether chosen entries of a weight can be set in place."""
    return weight.dtype in _PLAIN and not quantized(weight)


def need_floats(weights: Mapping[str, Tensor], who: str) -> None:
    """Raises BadPlan if one of the weights cannot be written: `who` needs them whole."""
    closed = [name for name, weight in weights.items() if not writable(weight)]
    if closed:
        others = f" (and {len(closed) - 1} more)" if len(closed) > 1 else ""
        raise BadPlan(
            f"{who} needs weights as floating-point numbers, and {closed[0]!r}{others} is quantized; over a quantized base "
            "choose random, magnitude, bitfit or an adapter, or leave such weights out (exclude=), or load them in float32 "
            "or bfloat16"
        )
