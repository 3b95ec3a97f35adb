"""Where a delta came from, through sums and multiples: plain JSON, each part with its coefficient."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def scaled(about: Mapping[str, Any], coefficient: float) -> Mapping[str, Any]:
    """The provenance of a multiple."""
    if coefficient == 1.0:
        return about
    return {**_task(about), "method": "composed", "parts": [[coefficient * c, part] for c, part in _parts(about)]}


def parents(a: Mapping[str, Any], b: Mapping[str, Any], heads: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """A sum's provenance: all parts, the base, and the task of whoever brings the head (if no one, the common task).

    `heads` is the provenance of those that bring one, the first of which counts.
    """
    tasks = [about["task"] for about in list(heads)[:1] or (a, b) if "task" in about]
    known = {**_task(b), **_task(a)}
    if tasks and tasks[0] == tasks[-1]:
        known["task"] = tasks[0]
    else:
        known.pop("task", None)
    return {**known, "method": "composed", "parts": [list(part) for part in _parts(a) + _parts(b)]}


def _parts(about: Mapping[str, Any]) -> list[tuple[float, Any]]:
    return [(c, part) for c, part in about["parts"]] if "parts" in about else [(1.0, dict(about))]


def _task(about: Mapping[str, Any]) -> dict[str, Any]:
    return {key: about[key] for key in ("task", "base") if key in about}
