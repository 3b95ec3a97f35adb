"""Places: where the replaced values of a file stand, by the fewest bytes; see docs/format.md, version 3. Nothing is trusted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.delta import codec
from gossamer.delta.patch import Replaced
from gossamer.errors import BadFile


def replaced_in(left: dict[str, Tensor], listed: list[Any]) -> dict[str, Replaced]:
    """The replacements that a description lists; takes their tensors out of those that are left."""
    names = [name for name, _, _ in listed]
    if not all(isinstance(name, str) for name in names):
        raise BadFile("the name of a replaced parameter is not text; the file is damaged")
    if not names or names != sorted(set(names)):
        raise BadFile("replaced parameters are listed twice, out of order or not at all; the file is damaged")
    return {name: _set(left, name, shape, how) for name, shape, how in listed}


def placed(patch: Replaced) -> tuple[str, Tensor | None]:
    """Where replaced values stand, as the fewest bytes: ("dense", None), ("positions", code) or ("mask", bits)."""
    if patch.indices is None:
        return "dense", None
    n, where = math.prod(patch.shape), patch.indices.cpu().numpy()
    if where.size * 2 < n:  # in a denser set most gaps are 0, which Golomb's code writes as the mask does
        code = codec.encode(where, n)
        if code.size < (n + 7) // 8:
            return "positions", torch.from_numpy(code)
    chosen = np.zeros(n, bool)
    chosen[where] = True
    return "mask", torch.from_numpy(np.packbits(chosen))


def _set(left: dict[str, Tensor], name: str, listed: Any, how: str) -> Replaced:
    shape, values = shape_of(listed), left.pop(f"set.{name}.values")
    if how == "dense":
        return Replaced(shape, None, values)
    if how not in ("positions", "mask"):
        raise BadFile(f"the places of {name!r} are of unknown kind {how!r}; upgrade gossamer, or the file is damaged")
    n, packed = math.prod(shape), left.pop(f"set.{name}.{how}").numpy()
    if packed.dtype != np.uint8 or packed.ndim != 1 or n >= 1 << 62:
        raise BadFile(f"the places of {name!r} are no bytes, or of a parameter that cannot be; the file is damaged")
    if how == "positions":
        try:
            return Replaced(shape, torch.from_numpy(codec.decode(packed, values.numel(), n)), values)
        except BadFile as error:
            raise BadFile(f"tensor 'set.{name}.positions': {error}") from None
    if packed.size != (n + 7) // 8:
        raise BadFile(f"the places of {name!r} have a wrong length; the file is damaged")
    bits = np.unpackbits(packed)
    if bits[n:].any():
        raise BadFile(f"the mask of {name!r} goes on behind its end; the file is damaged")
    return Replaced(shape, torch.from_numpy(np.flatnonzero(bits[:n])), values)


def shape_of(listed: Any) -> tuple[int, ...]:
    """The shape that a description lists. Raises BadFile."""
    if not isinstance(listed, list) or not all(type(size) is int and size >= 0 for size in listed):
        raise BadFile(f"{listed!r} is not the shape of a tensor; the file is damaged")
    return tuple(listed)
