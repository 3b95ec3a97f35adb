"""What cells say about a claim, by the rule that its file fixed. Pure: cells in, numbers and a word out.

A side of a comparison is the cells with one value on the compared axis. For each seed it is one number: cells that differ in
`reduce.axis` become one by `reduce.by`, and what still differs (tasks, for instance) is averaged; a seed that lacks a cell does
not count. Then

    beats    the paired t-interval of `paired`: holds, does not, cannot tell and the difference that could have been seen
    matches  the same for difference + least: the subject is not worse by more than `least`
    always   nothing is drawn at random: holds if every single difference is above `least`, does not otherwise

With better: smaller the difference is control − subject. A claim of several comparisons holds if all hold, does not if one does
not, and else cannot be told. Comparisons are not adjusted for their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any

from gossamer.study.kinds.kind import kind_of
from gossamer.study.paired import CANNOT_TELL, DOES_NOT, HOLDS, Paired, paired
from gossamer.study.spec import AXES, Compare, Reduce, Study
from gossamer.study.wanted import Axes, Wanted, title

Key = tuple[tuple[str, Any], ...]  # axes and their values
_BY = {"mean": fmean, "max": max, "min": min, "span": lambda v: max(v) - min(v)}


@dataclass(frozen=True)
class Difference:
    """Subject − control of one comparison, over all it spans (`where` {}) or at one place of the grid."""

    subject: Any
    control: Any
    where: Axes
    a: Mapping[int, float]
    b: Mapping[int, float]
    found: Paired | None  # None: no seed that both have

    @property
    def verdict(self) -> str:
        return self.found.verdict if self.found else CANNOT_TELL


@dataclass(frozen=True)
class Verdict:
    """Of a claim. `missing`: cells without a number that the comparisons need."""

    word: str
    compares: Sequence[tuple[Compare, Sequence[Difference]]]
    missing: int

    @property
    def detectable(self) -> float | None:
        """The smallest difference that every comparison that could not be told would have seen; None: without intervals."""
        blind = [d.found for _, one in self.compares for d in one if d.verdict == CANNOT_TELL]
        known = [found.detectable for found in blind if found and found.detectable is not None]
        return max(known) if known and len(known) == len(blind) else None


def judge(study: Study, cells: Sequence[Wanted]) -> Verdict | None:
    """The verdict on a study's claim; None where the file compares nothing.

    Args:
        cells: those that a verdict is made of, `Planned.finals`.
    """
    if not study.compare:
        return None
    compares, missing = [], 0
    for compare in study.compare:
        metric = metric_of(study, compare)
        at = [one for one in cells if matches(one.axes, compare.at, compare.axis)]
        sides = {*compare.subject, *compare.control}
        missing += sum(number(one, metric) is None for one in at if one.axes[compare.axis] in sides)
        pairs = [(s, c) for s in compare.subject for c in (compare.control or [None])]
        compares.append((compare, [difference(compare, metric, at, s, c, {}) for s, c in pairs]))
    words = {d.verdict for _, differences in compares for d in differences}
    word = DOES_NOT if DOES_NOT in words else CANNOT_TELL if CANNOT_TELL in words or not words else HOLDS
    return Verdict(word, compares, missing)


def metric_of(study: Study, compare: Compare | None = None) -> str:
    """The number that a comparison is of, or a study without any."""
    return (compare.metric if compare else None) or kind_of(study.kind).metric


def number(one: Wanted, metric: str) -> float | None:
    """What a cell says of a metric; None where it failed or has not run. `memory` counts too."""
    record = one.record or {}
    value = record.get("values", {}).get(metric, record.get(metric) if metric == "memory" else None)
    return None if "error" in record or value is None or not math.isfinite(value) else float(value)


def difference(
    compare: Compare, metric: str, cells: Sequence[Wanted], subject: Any, control: Any, where: Axes
) -> Difference:
    """One subject against one control (or the constant), over the cells that match `where`."""
    there = [one for one in cells if matches(one.axes, where, compare.axis)]
    a = _side(compare, metric, there, subject)
    b = (
        dict.fromkeys(a, compare.constant or 0.0)
        if compare.constant is not None
        else _side(compare, metric, there, control)
    )
    if compare.reduce is None and compare.says == "always":
        return Difference(subject, control, where, a, b, _always(compare, metric, there, subject, control))
    shift = compare.least if compare.says == "matches" else 0.0
    sign = 1 if compare.better == "larger" else -1
    ours, theirs = {s: sign * v + shift for s, v in a.items()}, {s: sign * v for s, v in b.items()}
    if compare.says == "always":
        exact = _exact(compare, [value - theirs[seed] for seed, value in ours.items() if seed in theirs])
        return Difference(subject, control, where, a, b, exact)
    found = paired(ours, theirs, least=0.0 if shift else compare.least)
    if found and shift:  # said of the difference itself
        moved = {name: value - shift for name in ("mean", "low", "high") if (value := getattr(found, name)) is not None}
        found = replace(found, **moved)
    return Difference(subject, control, where, a, b, found)


def places(compare: Compare, cells: Sequence[Wanted]) -> list[Axes]:
    """Every place of the grid that a comparison spans: values of the axes that vary beside those compared, reduced and paired."""
    fixed = {compare.axis, "seed", *([compare.reduce.axis] if compare.reduce else [])}
    free = [axis for axis in AXES if axis not in fixed]
    there = [one for one in cells if matches(one.axes, compare.at, compare.axis)]
    vary = [axis for axis in free if len({one.axes[axis] for one in there if one.axes[axis] is not None}) > 1]
    found = {tuple((axis, one.axes[axis]) for axis in vary): None for one in there
             if all(one.axes[axis] is not None for axis in vary)}  # fmt: skip
    return [dict(key) for key in found if key]


def groups(cells: Sequence[Wanted]) -> dict[Key, list[Wanted]]:
    """Cells that differ in their seed only, by their other axes, in the order of the grid."""
    found: dict[Key, list[Wanted]] = {}
    for one in cells:
        found.setdefault(tuple((axis, one.axes[axis]) for axis in AXES if axis != "seed"), []).append(one)
    return found


def describe(compare: Compare, metric: str) -> str:
    """A comparison as its file fixed it, in words."""
    many = lambda values: ", ".join(map(str, values))  # noqa: E731
    against = many(compare.control) if compare.control else f"the constant {compare.constant:g}"
    what = f"{compare.reduce.by} over {compare.reduce.axis} of {metric}" if compare.reduce else metric
    rule = {"beats": f"beats {against}, by a claimed {compare.least:g} or more" if compare.least else f"beats {against}",
            "matches": f"is not worse than {against} by more than {compare.least:g}",
            "always": f"is better than {against} by more than {compare.least:g} in every cell"}[compare.says]  # fmt: skip
    at = f" at {title(compare.at)}" if compare.at else ""
    return f"{compare.axis} {many(compare.subject)}{at} {rule} ({what}; {compare.better} is better)"


def matches(axes: Axes, at: Axes, but: str) -> bool:
    """Whether a cell lies at a place; a density, where it means nothing to a method, says nothing against it."""
    return all(
        axis == but or axes[axis] == value or (axis == "density" and axes[axis] is None) for axis, value in at.items()
    )


def _side(compare: Compare, metric: str, cells: Sequence[Wanted], value: Any) -> dict[int, float]:
    """One number a seed; seeds that lack one of the side's cells are left out."""
    mine = [one for one in cells if one.axes[compare.axis] == value]
    by_seed: dict[int, list[Wanted]] = {}
    for one in mine:
        by_seed.setdefault(one.axes["seed"], []).append(one)
    found = {}
    for seed, some in by_seed.items():
        numbers = [(one.axes, number(one, metric)) for one in some]
        if all(value is not None for _, value in numbers):
            found[seed] = fmean(_reduced(compare.reduce, [(axes, v) for axes, v in numbers if v is not None]))
    return found


def _reduced(how: Reduce | None, numbers: Sequence[tuple[Axes, float]]) -> list[float]:
    if how is None:
        return [value for _, value in numbers]
    bundles: dict[Key, list[float]] = {}
    for axes, value in numbers:
        key = tuple((axis, axes[axis]) for axis in AXES if axis != how.axis)
        bundles.setdefault(key, []).append(value)
    if how.by == "sd":
        return [stdev(some) if len(some) > 1 else 0.0 for some in bundles.values()]
    return [float(_BY[how.by](some)) for some in bundles.values()]


def _always(compare: Compare, metric: str, cells: Sequence[Wanted], subject: Any, control: Any) -> Paired | None:
    """Every cell of the subject against the control's cell at the same place."""
    place = lambda one: tuple(v for axis, v in one.axes.items() if axis != compare.axis)  # noqa: E731
    theirs = {place(one): number(one, metric) for one in cells if one.axes[compare.axis] == control}
    sign, found = 1 if compare.better == "larger" else -1, []
    for one in cells:
        if one.axes[compare.axis] == subject:
            mine = number(one, metric)
            other = compare.constant if compare.constant is not None else theirs.get(place(one))
            if mine is None or other is None:
                return None
            found.append(sign * (mine - other))
    return _exact(compare, found)


def _exact(compare: Compare, differences: Sequence[float]) -> Paired | None:
    if not differences:
        return None
    word = HOLDS if all(d > compare.least for d in differences) else DOES_NOT
    sd = stdev(differences) if len(differences) > 1 else None
    return Paired(len(differences), fmean(differences), sd, min(differences), max(differences), None, word)
