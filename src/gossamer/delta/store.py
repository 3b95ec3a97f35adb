"""One delta, one file: safetensors with a JSON description, checksums, near-entropy positions. See docs/format.md.

All sparse patches of one value dtype share one position stream: their parameters, in the listed order, are laid end to
end, so that a file costs no header a parameter. Nothing is trusted: every tensor is checked before a Delta is made.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gossamer.delta import codec
from gossamer.delta.base import Record
from gossamer.delta.delta import Delta
from gossamer.delta.patch import Dense, LowRank, Patch, Sparse
from gossamer.errors import BadFile, BadPlan, Clash, GossamerError

FORMAT = 1
_VALUES = {"bfloat16", "float16", "float32", "float64"}


def save(delta: Delta, path: str | PathLike[str], *, force: bool = False) -> int:
    """Writes a delta, coalesced, to `path`: a temporary file, fsync, rename. Returns the number of bytes.

    Raises:
        Clash: `path` exists and `force` is off.
        BadPlan: a value is NaN or infinite.
        GossamerError: the file cannot be written (no space, no permission); nothing is left behind.
    """
    path = Path(path)
    if path.exists() and not force:
        raise Clash(f"{path} exists; choose another name, or overwrite it with force=True (--force)")
    tensors, description = _pack(delta.coalesce())
    described = json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False)
    metadata = {"gossamer": described, "sha256": hashlib.sha256(described.encode()).hexdigest()}
    _write(path, tensors, metadata)
    return path.stat().st_size


def load(path: str | PathLike[str]) -> Delta:
    """Reads a delta. Raises BadFile, naming the tensor, on anything that `save` cannot have written."""
    path = Path(path)
    if not path.is_file():
        raise BadFile(f"{path} is not a file; a delta is one .safetensors file written by Delta.save")
    try:
        with safe_open(str(path), "pt") as file:
            description = _describe(file.metadata() or {}, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise BadFile(f"{path} cannot be read as a delta: {error}; it is truncated, damaged or of another kind") from None
    _verify(tensors, description.get("tensors"))
    try:
        return _unpack(tensors, description)
    except (KeyError, TypeError, ValueError, AttributeError, BadPlan) as error:
        raise BadFile(f"{path} describes itself inconsistently ({type(error).__name__}: {error}); it is damaged") from None


def atomic(path: Path, write: Any) -> None:
    """Calls write(temporary path), makes it durable and renames it to `path`; on failure nothing is left behind."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        write(temporary)
        sync(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise GossamerError(f"cannot write {path}: {error}; free some space or choose another place") from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def sync(path: str | Path) -> None:
    """Makes a file's bytes, or a folder's entries, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    atomic(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def _pack(delta: Delta) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {f"head.{name}": tensor for name, tensor in delta.head.items()}
    sparse: dict[str, list[tuple[str, Sparse]]] = {}
    for name, terms in delta.terms.items():
        for _, patch in terms:
            if isinstance(patch, Sparse):
                sparse.setdefault(_dtype(patch.values), []).append((name, patch))
            elif isinstance(patch, Dense):
                tensors[f"dense.{name}"] = patch.values
            else:
                tensors[f"lowrank.{name}.left"], tensors[f"lowrank.{name}.right"] = patch.left, patch.right
    for dtype, patches in sparse.items():
        starts = np.cumsum([0] + [math.prod(patch.shape) for _, patch in patches])
        flat = [patch.indices.cpu().numpy() + start for (_, patch), start in zip(patches, starts[:-1], strict=True)]
        positions = codec.encode(np.concatenate(flat), int(starts[-1]))
        tensors[f"sparse.{dtype}.positions"] = torch.from_numpy(positions)
        tensors[f"sparse.{dtype}.values"] = torch.cat([patch.values for _, patch in patches])
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise BadPlan(f"{name!r} holds NaN or infinite values, so it is not saved; training diverged: lower the rate")
    return tensors, {
        "format": FORMAT,
        "base": [[n, list(r.shape), r.dtype, dict(r.digests)] for n, r in delta.base.items()],
        "sparse": {dtype: [[n, list(patch.shape)] for n, patch in patches] for dtype, patches in sparse.items()},
        "tensors": {name: [_dtype(t), list(t.shape), _sha256(t)] for name, t in tensors.items()},
        "about": delta.about,
    }


def _describe(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    if "gossamer" not in metadata:
        raise BadFile(f"{path} is a safetensors file but no gossamer delta; make one with `gossamer fit` or `diff`")
    described = metadata["gossamer"]
    description = json.loads(described)
    version = description.get("format") if isinstance(description, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise BadFile(f"{path} has format version {version}; this gossamer reads up to {FORMAT}: upgrade gossamer")
    if version != FORMAT or metadata.keys() != {"gossamer", "sha256"}:
        raise BadFile(f"{path} has format version {version!r}, which this gossamer does not know; it is damaged")
    if hashlib.sha256(described.encode()).hexdigest() != metadata["sha256"]:
        raise BadFile(f"{path}: the description does not match its checksum; the file is damaged")
    return description


def _verify(tensors: Mapping[str, Tensor], listed: Any) -> None:
    if not isinstance(listed, dict) or listed.keys() != tensors.keys():
        raise BadFile("the tensors in the file are not those that its description lists; the file is damaged")
    for name, tensor in tensors.items():
        if listed[name] != [_dtype(tensor), list(tensor.shape), _sha256(tensor)]:
            raise BadFile(f"tensor {name!r} does not match its checksum, shape or dtype; the file is damaged")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise BadFile(f"tensor {name!r} holds NaN or infinite values; the file is damaged or was made from a diverged run")


def _unpack(tensors: dict[str, Tensor], description: dict[str, Any]) -> Delta:
    left = dict(tensors)
    terms: dict[str, list[tuple[float, Patch]]] = {}
    for dtype, listed in description["sparse"].items():
        positions, values = left.pop(f"sparse.{dtype}.positions"), left.pop(f"sparse.{dtype}.values")
        if dtype not in _VALUES or _dtype(values) != dtype or positions.dtype != torch.uint8 or values.dim() != 1:
            raise BadFile(f"tensor 'sparse.{dtype}.values' is not a list of {dtype} values; the file is damaged")
        for name, patch in _split(listed, positions, values):
            terms.setdefault(name, []).append((1.0, patch))
    head = {name.removeprefix("head."): left.pop(name) for name in list(left) if name.startswith("head.")}
    for name in [name for name in left if name.startswith("dense.")]:
        terms.setdefault(name.removeprefix("dense."), []).append((1.0, Dense(left.pop(name))))
    for name in [name for name in left if name.startswith("lowrank.") and name.endswith(".left")]:
        stem = name.removesuffix(".left")
        patch = LowRank(left.pop(name), left.pop(f"{stem}.right"))
        terms.setdefault(stem.removeprefix("lowrank."), []).append((1.0, patch))
    if left:
        raise BadFile(f"tensor {min(left)!r} has no place in a delta; the file is damaged")
    base = {name: Record(tuple(shape), dtype, digests) for name, shape, dtype, digests in description["base"]}
    for name, found in terms.items():
        if name in base and any(patch.shape != base[name].shape for _, patch in found):
            raise BadFile(f"the patch of {name!r} has another shape than the base it names; the file is damaged")
    return Delta({name: tuple(found) for name, found in terms.items()}, base, head, description["about"])


def _split(listed: list[Any], positions: Tensor, values: Tensor) -> list[tuple[str, Sparse]]:
    shapes = [tuple(shape) for _, shape in listed]
    if any(not isinstance(size, int) or size < 0 for shape in shapes for size in shape):
        raise BadFile("a sparse patch has an impossible shape; the file is damaged")
    sizes = [math.prod(shape) for shape in shapes]
    if sum(sizes) >= 1 << 62 or len({name for name, _ in listed}) < len(listed):
        raise BadFile("the sparse patches are too large or named twice; the file is damaged")
    starts = np.cumsum([0, *sizes]).astype(np.int64)
    decoded = codec.decode(positions.numpy(), values.numel(), int(starts[-1]))
    bounds = np.searchsorted(decoded, starts)
    found = []
    for (name, _), shape, start, a, b in zip(listed, shapes, starts, bounds, bounds[1:], strict=False):
        # copies, so that a parameter's patch does not keep the whole file in memory
        found.append((name, Sparse(shape, torch.from_numpy(decoded[a:b] - start), values[a:b].clone())))
    return found


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _sha256(tensor: Tensor) -> str:
    return hashlib.sha256(memoryview(tensor.reshape(-1).view(torch.uint8).numpy())).hexdigest()
