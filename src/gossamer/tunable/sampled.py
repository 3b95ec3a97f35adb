"""The chosen entries of the gradients of a matrix and its bias, without ever forming the dense ones.

`sampled.c`, compiled when the wheel is built, does it on CPUs for float32 and bfloat16 (see there how), `sampled_triton.py` on
GPUs where that is asked for and faster. Everywhere else, and under a second derivative, the dense product is formed and
gathered: the fallback and the oracle.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

TILE = 64  # tokens a tile, as in sampled.c
DENSE = 0.4  # share of a matrix from which the dense product is faster (`benchmarks kernel`)
_LIBRARY = Path(__file__).with_name("_sampled.so")
_kept = threading.local()  # scratch memory, up to a few MiB a thread: fresh pages cost more than the sums


class Layout(NamedTuple):
    """Which entries are wanted: flat indices, sorted int64, into the matrix and into the bias; None: not any."""

    matrix: Tensor | None
    bias: Tensor | None = None
    turned: bool = False  # the matrix is [inputs, outputs], not [outputs, inputs]


def sampled(grad: Tensor, inputs: Tensor | None, layout: Layout) -> tuple[Tensor | None, Tensor | None]:
    """The chosen entries of gradᵀ·inputs (turned: inputsᵀ·grad), and those of the sum of grad over tokens.

    Args:
        grad: [..., outputs], the gradient of x·Wᵀ + b. inputs: [..., inputs], x, of the same leading shape (the tokens);
            None will do where only entries of the bias are wanted. Any strides, any float dtype each.
        layout: the entries.

    Returns:
        [k] and [k'], or None; float32 from the compiled kernel, else in the dtype of the dense product.

    >>> grad, x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
    >>> matrix, bias = sampled(grad, x, Layout(torch.tensor([1, 5]), torch.tensor([0])))  # of [[1, 3, 5], [2, 4, 8]]
    >>> matrix.tolist(), bias.tolist()
    ([3.0, 8.0], [4.0])
    """
    grad = grad.reshape(-1, grad.shape[-1])
    if layout.matrix is None or inputs is None:
        return None, None if layout.bias is None else grad.sum(0).index_select(0, layout.bias)
    inputs = inputs.reshape(-1, inputs.shape[-1])
    many = layout.matrix.numel() > DENSE * grad.shape[-1] * inputs.shape[-1]
    if grad.is_cuda and torch.backends.cudnn.benchmark and not many and not torch.is_grad_enabled():
        return _on_gpu(grad, inputs, layout)
    if many or torch.is_grad_enabled() or not _fits(grad) or not _fits(inputs) or _library() is None:
        return dense_then_gather(grad, inputs, layout)
    a, b = (_rows_apart(x) for x in ((inputs, grad) if layout.turned else (grad, inputs)))
    bias = layout.matrix[:0] if layout.bias is None else layout.bias
    k_matrix, k_bias = layout.matrix.numel(), bias.numel()
    k, widths = k_matrix + k_bias, a.shape[1] + b.shape[1] + 2
    room = a.shape[1] * b.shape[1] // (widths * TILE + k)  # parts whose scratch the dense gradient would hold
    parts = max(1, min(torch.get_num_threads(), -(-a.shape[0] // TILE), room))
    sums = torch.zeros(parts, k, dtype=torch.float32, device="cpu")  # whatever the defaults are
    scratch = _scratch(parts * widths * TILE + 2 * k)
    work = _Work(
        a.data_ptr(), b.data_ptr(), a.shape[0], a.shape[1], b.shape[1], a.stride(0), b.stride(0),
        layout.matrix.data_ptr(), bias.data_ptr(), k_matrix, k_bias, sums.data_ptr(),
        scratch, scratch + 4 * parts * widths * TILE, scratch + 4 * (parts * widths * TILE + k), parts,
        a.dtype == torch.bfloat16, b.dtype == torch.bfloat16, layout.turned, 0,
    )  # fmt: skip
    kernel, parallel = _library()  # type: ignore[misc]
    kernel(ctypes.byref(work), parallel)
    return sums[0, :k_matrix], None if layout.bias is None else sums[0, k_matrix:]


def dense_then_gather(grad: Tensor, inputs: Tensor, layout: Layout) -> tuple[Tensor, Tensor | None]:
    """The same by way of the dense product; differentiable."""
    dtype = torch.promote_types(grad.dtype, inputs.dtype)
    grad, inputs = grad.to(dtype), inputs.to(dtype)
    product = inputs.t() @ grad if layout.turned else grad.t() @ inputs
    assert layout.matrix is not None
    matrix = product.reshape(-1).index_select(0, layout.matrix)
    return matrix, None if layout.bias is None else grad.sum(0).index_select(0, layout.bias)


def _on_gpu(grad: Tensor, inputs: Tensor, layout: Layout) -> tuple[Tensor | None, Tensor | None]:
    from gossamer.tunable.sampled_triton import entries, faster  # triton is not everywhere

    a, b = (inputs, grad) if layout.turned else (grad, inputs)
    assert layout.matrix is not None
    if not faster(a, b, layout.matrix, lambda: dense_then_gather(grad, inputs, layout._replace(bias=None))[0]):
        return dense_then_gather(grad, inputs, layout)
    bias = None if layout.bias is None else grad.sum(0).index_select(0, layout.bias)
    return entries(a, b, layout.matrix), bias


def build() -> str:
    """Which way `sampled` goes on this machine, in words."""
    found = _library()
    if found is None:
        return "dense gradient, then gather (no compiled kernel: build gossamer where there is a C compiler)"
    return f"compiled kernel for CPU, float32 and bfloat16, {'shared' if found[1] else 'single'} threads"


class _Work(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("a", "b")),
        *((name, ctypes.c_int64) for name in ("tokens", "a_width", "b_width", "a_stride", "b_stride")),
        *((name, ctypes.c_void_p) for name in ("flat", "bias")),
        *((name, ctypes.c_int64) for name in ("k_flat", "k_bias")),
        *((name, ctypes.c_void_p) for name in ("sums", "scratch", "rows", "cols")),
        *((name, ctypes.c_int32) for name in ("parts", "a_half", "b_half", "turned", "next")),
    ]


def _scratch(floats: int) -> int:
    """The address, a multiple of 64, of scratch for so many floats, kept for this thread."""
    room = getattr(_kept, "room", None)
    if room is None or room.numel() < floats + TILE:
        room = _kept.room = torch.empty(floats + TILE, dtype=torch.float32, device="cpu")
    return -(-room.data_ptr() // 64) * 64


@cache
def _library() -> tuple[Any, Any] | None:
    """The kernel, and the framework's own OpenMP entry, so that no second pool of threads contends for the cores."""
    try:
        kernel = ctypes.CDLL(str(_LIBRARY)).gossamer_sampled
    except (OSError, AttributeError):
        return None
    kernel.argtypes, kernel.restype = (ctypes.POINTER(_Work), ctypes.c_void_p), None
    try:
        parallel = ctypes.cast(ctypes.CDLL(torch._C.__file__).GOMP_parallel, ctypes.c_void_p)
    except (OSError, AttributeError):
        parallel = None  # another runtime: one thread does all parts
    return kernel, parallel


def _fits(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.bfloat16)


def _rows_apart(tensor: Tensor) -> Tensor:
    """The tensor with its columns side by side; expanded or transposed ones are copied."""
    return tensor if tensor.stride(1) == 1 or tensor.shape[1] == 1 else tensor.contiguous()
