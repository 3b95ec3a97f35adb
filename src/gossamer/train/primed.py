"""Where a fine-tuning starts on a primed base: φ and head from the `start.safetensors` beside the base's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from gossamer.delta.base import check, identity
from gossamer.delta.delta import Delta
from gossamer.delta.store import load
from gossamer.train.plan import row_of, settle
from gossamer.tunable.tuned import head_parameters

START = "start.safetensors"


def primed_start(
    base: str, method: str, options: Mapping[str, Any], k: int | None, model: nn.Module, head: Any
) -> tuple[Delta | None, str]:
    """The starting point that a base was primed with, and a remark; (None, "") for a base that is not primed.

    φ is used where the method, its options and the number of weights are those of the priming; the head where its
    shapes are the same, too.

    Raises:
        BaseMismatch: the file belongs to other weights than lie beside it. BadFile: it is no delta.
    """
    file = Path(base) / START
    if not file.is_file():
        return None, ""
    start = load(file)
    if not start.about.get("primed"):
        return None, ""
    check(start.base, identity(model), start.terms or start.base)
    settled = settle(row_of(method), dict(options))
    told = f"{base} was primed for {start.about['method']}"
    if start.about["method"] != method:
        return None, f"{told}; {method} starts from scratch on it"
    if start.about["options"] != settled or (k is not None and start.k != k):
        return None, f"{told} with other options or another number of weights; starting from scratch on it"
    if not start.terms and not start.grafts:
        return None, f"{told}, which has no starting point of its own"
    heads = head_parameters(model, head)
    fits = {n: t for n, t in start.head.items() if n in heads and heads[n].shape == t.shape}
    whole = heads.keys() == fits.keys()
    remark = f"{told}: starting from the primed values" + (" and head" if whole and fits else ", with a fresh head")
    return replace(start, head=fits if whole else {}), remark
