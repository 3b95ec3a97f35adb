"""From two states to a delta: the k largest changes with what they leave out, or every changed value, to the bit.

States are mappings of names to tensors and may read them when asked (`interop.checkpoint`): one tensor of each is held
at a time. Names that only the new state has are its head. Lossless means *set*, not added: a sum cannot make −0.0, nor
every 16-bit value; what changed is found by comparing bits. All values of a tensor are kept where a mask of the changed
ones would cost more bytes than leaving the others out saves: from 1 − 1/(8 · bytes a value) on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer.delta.base import Identity, Record, more, record
from gossamer.delta.delta import VALUES, Delta
from gossamer.delta.patch import Replaced, Sparse, fingerprint, round_once
from gossamer.delta.topk import check_k, top_k
from gossamer.errors import BadPlan, BaseMismatch

State = Mapping[str, Tensor]
Seen = Callable[[str], None]
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def between(
    old: State,
    new: State,
    *,
    density: float | None = None,
    k: int | None = None,
    lossless: bool = False,
    values: str = "fp32",
    about: Mapping[str, Any] | None = None,
    seen: Seen = lambda name: None,
) -> Delta:
    """The delta that leads from `old` to `new`. See `Delta.between`.

    Args:
        old: canonical name → float tensor of the base's backbone.
        new: the same names, shapes; whatever else it has is the task head.
        density: keep this share of the weights, those with the largest |new − old| over all tensors, exactly top-k.
        k: how many, in place of a density. Entries that did not change are never kept.
        lossless: keep every changed value instead, as a replacement: applied to `old`, it gives `new` bit for bit.
        values: "fp32" or "bf16", what kept changes are rounded to (not with lossless).
        about: provenance to add. `residual` is noted, ‖new − old − delta‖ / ‖new − old‖, and for lossless the digests
            `parent` and `child` of both states.
        seen: called with the name of each tensor that is done.

    Raises:
        BadPlan: not exactly one of the three is given; a tensor is not of floats, or a changed one not finite.
        BaseMismatch: a name is missing in `new`, a shape differs or, with lossless, a dtype.
    """
    if (density is not None) + (k is not None) + lossless != 1:
        raise BadPlan(f"density={density}, k={k}, lossless={lossless}: give exactly one of the three")
    if values not in VALUES:
        raise BadPlan(f"values={values!r}; expected one of {', '.join(VALUES)}")
    lacking = [name for name in old if name not in new]
    if lacking or not old:
        what = f"lacks {lacking[0]!r}{more(lacking)}" if old else "has no base: the old state is empty"
        raise BaseMismatch(f"the new state {what}; both must be states of one model")
    make = partial(_lossless, old, new, seen) if lossless else partial(_largest, old, new, density, k, values, seen)
    parts, identity, facts = make()
    head = {name: new[name].detach().cpu().clone() for name in new if name not in old}
    for name, tensor in head.items():
        _finite(name, tensor)
    return Delta(base=identity, head=head, about={"method": "diff", **facts, **(about or {})}, **parts)


Made = tuple[dict[str, Any], Identity, dict[str, Any]]


def _lossless(old: State, new: State, seen: Seen) -> Made:
    replaced: dict[str, Replaced] = {}
    identity: dict[str, Record] = {}
    parent, child = hashlib.sha256(), hashlib.sha256()
    for name in old:
        before, after = _pair(old, new, name)
        if before.dtype != after.dtype:
            raise BaseMismatch(
                f"{name!r} is {before.dtype} in the base and {after.dtype} in the new state, so it cannot be lossless; save "
                "both in one dtype, or keep the largest changes (density, k)"
            )
        known = identity[name] = record(before)
        digest = known.digests[known.dtype]
        parent.update(f"{name} {digest}\n".encode())
        bits = _BITS[before.element_size()]
        ours, theirs = (tensor.reshape(-1).view(bits).cpu().numpy() for tensor in (before, after))
        changed = ours != theirs  # by NumPy: on one thread as fast as memory, and no waiting on a busy machine
        count = int(np.count_nonzero(changed))
        if count:
            # the file codes places at one bit an entry or less (places.placed), so this compares what is written
            whole = 8 * (changed.size - count) * before.element_size() <= changed.size
            where = None if whole else np.flatnonzero(changed)
            values = torch.from_numpy(theirs.copy() if where is None else theirs[where]).view(after.dtype)
            _finite(name, values)
            replaced[name] = Replaced(tuple(after.shape), None if where is None else torch.from_numpy(where), values)
            digest = fingerprint(after)[:32]
        child.update(f"{name} {digest}\n".encode())
        seen(name)
    # k and m as training notes them; a whole replaced tensor counts in full
    facts = {"parent": parent.hexdigest()[:32], "child": child.hexdigest()[:32], "residual": 0.0, "lossless": True,
             "k": sum(p.count for p in replaced.values()), "m": _size(identity)}  # fmt: skip
    return {"terms": {}, "replaced": replaced}, identity, facts


def _largest(old: State, new: State, density: float | None, k: int | None, values: str, seen: Seen) -> Made:
    identity: dict[str, Record] = {}
    double = False
    for name in old:
        before, after = _pair(old, new, name)
        double |= torch.float64 in (before.dtype, after.dtype)
        identity[name] = record(before)
    m = _size(identity)
    if density is not None and not 0 < density <= 1:
        raise BadPlan(f"density={density}: expected a share above 0 and at most 1")
    k = max(1, int(m * density)) if density is not None else k
    assert k is not None
    check_k(k, m)
    wide = torch.float64 if double else torch.float32

    def change(name: str) -> Tensor:
        return new[name].detach().to(wide, copy=True).sub_(old[name].detach()).reshape(-1)

    def score(name: str) -> Tensor:
        return change(name).abs_()

    support = top_k({name: partial(score, name) for name in old}, k)
    patches: dict[str, Sparse] = {}
    whole, left = [], []
    for name in old:
        moved = change(name)
        if not bool(moved.isfinite().all()):
            raise BadPlan(f"{name!r} holds NaN or infinite values in one of the states; did training diverge?")
        whole.append(_square(moved))
        if name in support:
            where = support[name]
            where = where[moved[where] != 0]
            kept = moved[where] if double else new[name].reshape(-1)[where].double() - old[name].reshape(-1)[where]
            rounded = round_once(kept.double(), VALUES[values])
            _finite(name, rounded)
            moved[where] = (kept.double() - rounded.double()).to(wide)
            if where.numel():
                patches[name] = Sparse(identity[name].shape, where, rounded)
        left.append(_square(moved))
        seen(name)
    norm, rest = math.sqrt(math.fsum(whole)), math.sqrt(math.fsum(left))
    facts = {"residual": rest / norm if norm else 0.0, "lossless": False, "values": values, "m": m,
             "k": sum(patch.count for patch in patches.values())}  # fmt: skip
    return {"terms": {name: ((1.0, patch),) for name, patch in patches.items()}}, identity, facts


def _pair(old: State, new: State, name: str) -> tuple[Tensor, Tensor]:
    before, after = old[name].detach().contiguous(), new[name].detach().contiguous()
    if before.shape != after.shape:
        rows = before.dim() and before.shape[1:] == after.shape[1:]
        how = "rows were added or removed, as when a vocabulary is resized; " if rows else ""
        raise BaseMismatch(
            f"{name!r} has shape {list(before.shape)} in the base and {list(after.shape)} in the new state; {how}"
            "a delta keeps shapes: give the base that was fine-tuned, resized as it was"
        )
    for tensor in (before, after):
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise BadPlan(f"{name!r} holds {tensor.dtype}; a delta is made of float weights: dequantize both states")
    return before, after


def _finite(name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise BadPlan(f"{name!r} holds NaN or infinite values in the new state; did training diverge?")


def _square(moved: Tensor) -> float:
    return sum(float(part.double().square().sum()) for part in moved.split(1 << 20))


def _size(identity: Identity) -> int:
    return sum(math.prod(known.shape) for known in identity.values())
