"""Peak memory of a piece of work, above what the process held before it."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

CUDA = "CUDA memory allocated"
RESIDENT = "resident memory above the start"
PROCESS = "largest resident memory of the process so far, which this system does not let us reset"


@dataclass
class Peak:
    """Filled when the `with` is left. `how` says what was measured; `nbytes` is None where nothing can be."""

    nbytes: int | None = None
    how: str = ""


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measures the peak of what runs inside: on CUDA what PyTorch allocated, else resident memory.

    Linux keeps the largest resident size (VmHWM) and lets a process reset its own; where it does not, the largest of
    the whole process is given, and said so.
    """
    found = Peak()
    gc.collect()
    _trim()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else _status("VmRSS")
    fresh = cuda or _reset()
    try:
        yield found
    finally:
        if cuda:
            found.nbytes, found.how = torch.cuda.max_memory_allocated() - (before or 0), CUDA
        elif fresh and before is not None and (peak := _status("VmHWM")) is not None:
            found.nbytes, found.how = max(peak - before, 0), RESIDENT
        else:
            found.nbytes, found.how = _process(), PROCESS


@contextmanager
def settled_memory() -> Iterator[None]:
    """Keeps what is loaded by now out of the searches for garbage that every measurement begins with: 0.3 s each otherwise."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def total_memory() -> int | None:
    """Bytes of the machine's memory, None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # no such thing on Windows
        return None


def _trim() -> None:
    """Gives freed memory back to the system where glibc can, so that reusing it does not hide a cell's need."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _reset() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int | None:
    """A memory figure of /proc/self/status, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else None


def _process() -> int | None:
    try:
        import resource
    except ImportError:  # no such thing on Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
