"""The chosen entries of a weight gradient aᵀ·b, without ever forming the dense one.

`sampled.c`, compiled when the wheel is built, does it on CPUs for float32 and bfloat16 (see there how). Everywhere else, and
under a second derivative, the dense product is formed and gathered: the fallback and the oracle.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

TILE = 64  # tokens a tile, as in sampled.c
_LIBRARY = Path(__file__).with_name("_sampled.so")


class Layout(NamedTuple):
    """Where the chosen entries of a matrix lie; made once for a support."""

    flat: Tensor  # [k] int64, sorted
    rows: Tensor  # [k] int32
    columns: Tensor  # [k] int32

    @classmethod
    def of(cls, flat: Tensor, width: int) -> Layout:
        """The layout of sorted flat indices into a matrix of `width` columns."""
        return cls(flat, (flat // width).to(torch.int32), (flat % width).to(torch.int32))


def sampled(a: Tensor, b: Tensor, layout: Layout) -> Tensor:
    """Σ_t a[t, row] · b[t, column] for each chosen entry.

    Args:
        a: [..., rows] gradients, b: [..., columns] inputs, of the same leading shape (the tokens), any strides, any float
            dtype each.
        layout: entries of the [rows, columns] matrix aᵀ·b.

    Returns:
        [k] float32 from the compiled kernel; else in the dtype of the dense product.

    >>> a, b = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])
    >>> sampled(a, b, Layout.of(torch.tensor([1, 5]), 3)).tolist()  # of [[1, 3, 5], [2, 4, 8]]
    [3.0, 8.0]
    """
    a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
    if torch.is_grad_enabled() or not _fits(a) or not _fits(b) or _library() is None:
        return dense_then_gather(a, b, layout)
    a, b = _rows_apart(a), _rows_apart(b)
    k, widths = layout.flat.numel(), a.shape[1] + b.shape[1]
    room = a.shape[1] * b.shape[1] // (widths * TILE + k)  # parts whose scratch the dense gradient would hold
    parts = max(1, min(torch.get_num_threads(), -(-a.shape[0] // TILE), room))
    sums = torch.zeros(parts, k, dtype=torch.float32, device="cpu")  # whatever the defaults are
    scratch = torch.empty(parts * widths * TILE + TILE, dtype=torch.float32, device="cpu")
    aligned = -(-scratch.data_ptr() // 64) * 64
    work = _Work(
        a.data_ptr(), b.data_ptr(), a.shape[0], a.shape[1], b.shape[1], a.stride(0), b.stride(0), k,
        layout.rows.data_ptr(), layout.columns.data_ptr(), sums.data_ptr(), aligned, parts,
        a.dtype == torch.bfloat16, b.dtype == torch.bfloat16, 0,
    )  # fmt: skip
    kernel, parallel = _library()  # type: ignore[misc]
    kernel(ctypes.byref(work), parallel)
    return sums[0]


def dense_then_gather(a: Tensor, b: Tensor, layout: Layout) -> Tensor:
    """The same by way of the dense product; differentiable."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    return (a.to(dtype).t() @ b.to(dtype)).reshape(-1).index_select(0, layout.flat)


def build() -> str:
    """Which way `sampled` goes on this machine, in words."""
    found = _library()
    if found is None:
        return "dense gradient, then gather (no compiled kernel: build gossamer where there is a C compiler)"
    return f"compiled kernel for CPU, float32 and bfloat16, {'shared' if found[1] else 'single'} threads"


class _Work(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("a", "b")),
        *((name, ctypes.c_int64) for name in ("tokens", "a_width", "b_width", "a_stride", "b_stride", "k")),
        *((name, ctypes.c_void_p) for name in ("rows", "cols", "sums", "scratch")),
        *((name, ctypes.c_int32) for name in ("parts", "a_half", "b_half", "next")),
    ]


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
