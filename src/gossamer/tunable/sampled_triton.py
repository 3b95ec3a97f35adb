"""The chosen entries of a weight gradient on a GPU, in Triton, and whether they are faster there than the dense product.

As in `sampled.c`: result[e] = sum over tokens t of a[t, row of e] · b[t, column of e]. Both sides are transposed first, so that
an entry is a dot product of two contiguous runs. The tokens are cut into parts with sums of their own, which are added in
order: the same bits on every run. fp16, bf16 and fp32 go in, fp32 accumulates.

A GPU's dense product runs on its matrix units, so that which way is faster depends on the layer and the density. It is
measured, by `faster`, on the first batch of each shape, and the results are compared; as timing may come out otherwise
in another run, this is done where the user has asked for it: `torch.backends.cudnn.benchmark = True`, PyTorch's switch for
choosing kernels by timing. Elsewhere a GPU gathers from the dense product.
"""

# pyright: reportPossiblyUnboundVariable=false, reportIndexIssue=false, reportMissingImports=false
from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # a build of torch without it
    triton = None

ENTRIES, TOKENS, SPAN = 64, 64, 1024  # entries a program, tokens a step of it, tokens a part
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_chosen: dict[tuple[object, ...], bool] = {}  # device, dtypes, widths, k, bits of the tokens → is it?

if triton is not None:

    @triton.jit
    def _entries(
        a,
        b,
        flat,
        sums,
        tokens,
        k,
        width,
        a_stride,
        b_stride,
        many: tl.constexpr,
        step: tl.constexpr,
        span: tl.constexpr,
    ):  # type: ignore[no-untyped-def]
        e = tl.program_id(0).to(tl.int64) * many + tl.arange(0, many)
        part = tl.program_id(1).to(tl.int64)
        inside = e < k
        index = tl.load(flat + e, mask=inside, other=0)
        x, y = a + (index // width) * a_stride, b + (index % width) * b_stride
        total = tl.zeros([many], dtype=tl.float32)
        for start in range(0, span, step):
            t = part * span + start + tl.arange(0, step)
            there = inside[:, None] & (t < tokens)[None, :]
            left = tl.load(x[:, None] + t[None, :], mask=there, other=0.0).to(tl.float32)
            right = tl.load(y[:, None] + t[None, :], mask=there, other=0.0).to(tl.float32)
            total += tl.sum(left * right, 1)
        tl.store(sums + part * k + e, total, mask=inside)


def entries(a: Tensor, b: Tensor, flat: Tensor) -> Tensor:
    """The entries `flat` of aᵀ·b.

    Args:
        a: [tokens, rows]. b: [tokens, columns]; fp16, bf16 or fp32 each. flat: [k] int64, row · columns + column.

    Returns:
        [k] float32.
    """
    tokens, k = a.shape[0], flat.numel()
    parts = max(1, -(-tokens // SPAN))
    sums = torch.zeros(parts, k, dtype=torch.float32, device=a.device)
    if tokens and k:
        a, b = a.t().contiguous(), b.t().contiguous()
        grid = (-(-k // ENTRIES), parts)
        _entries[grid](
            a, b, flat, sums, tokens, k, b.shape[0], a.stride(0), b.stride(0), many=ENTRIES, step=TOKENS, span=SPAN
        )
    return sums.sum(0)


def faster(a: Tensor, b: Tensor, flat: Tensor, dense: Callable[[], Tensor]) -> bool:
    """Whether `entries` is right and takes less time than `dense` here; measured once a shape, not under determinism."""
    if triton is None or a.device.type != "cuda":
        return False
    if a.dtype not in DTYPES or b.dtype not in DTYPES or torch.are_deterministic_algorithms_enabled():
        return False
    size = (a.shape[0] - 1).bit_length()
    key = (a.device, a.dtype, b.dtype, a.shape[1], b.shape[1], flat.numel(), size)
    if key not in _chosen:
        _chosen[key] = agree(entries(a, b, flat), dense()) and _time(lambda: entries(a, b, flat)) < _time(dense)
    return _chosen[key]


def agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two results are one but for rounding (2 % of the largest); if not, a warning says that the kernel is left out."""
    same = bool((found - expected.float()).abs().max() <= 0.02 * expected.float().abs().max().clamp_min(1e-30))
    if not same:
        warnings.warn(
            "gossamer's GPU kernel disagrees with the dense product on this device and is not used", stacklevel=2
        )
    return same


def _time(run: Callable[[], Tensor], *, repeats: int = 5) -> float:
    """The least of some timings, in milliseconds."""
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for start, end in marks:
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return min(start.elapsed_time(end) for start, end in marks)
