"""Pictures of a study's facts, as SVG texts for one page: curves with bands, dots of every seed, and lines by layer."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from gossamer.study.spec import AXES

Facts = Mapping[str, Any]
ACROSS = ("density", "size", "rate")  # axes that a curve may run along


def pictures(facts: Facts) -> dict[str, str]:
    """Title → SVG: for each number that decides a curve along every axis that varies, or dots; for lists, lines by place."""
    made = {}
    for metric in facts["metrics"]:
        curves = [axis for axis in ACROSS if len(_values(facts, axis)) > 1]
        for axis in curves:
            made[f"{metric} by {axis}: mean and 95 % band over seeds"] = _curve(facts, metric, axis)
        if not curves:
            made[f"{metric}: a dot a seed, a bar at the mean"] = _dots(facts, metric)
    for compare in facts["verdict"]["compares"] if facts["verdict"] else []:
        if any(one["low"] is not None for one in compare["differences"]):
            made[f"differences of {compare['metric']} with 95 % intervals"] = _intervals(compare)
    for name in dict.fromkeys(name for row in facts["rows"] for name in row["lists"]):
        made[f"{name}: mean over seeds, place by place"] = _lines(facts, name)
    return made


def _curve(facts: Facts, metric: str, axis: str) -> str:
    figure, panel = _new(4.2)
    places = {value: at for at, value in enumerate(_values(facts, axis))}
    numbers = all(isinstance(value, int | float) for value in places)
    series: dict[str, list[tuple[float, Sequence[float]]]] = {}
    for row in facts["rows"]:
        value, scores = row["axes"][axis], list(row["values"][metric]["by seed"].values())
        if scores:
            label = _label(facts, row, but=axis)
            if value is None:
                panel.axhline(fmean(scores), linestyle=":", linewidth=1, color="grey")
                panel.annotate(
                    label, (0.01, fmean(scores)), xycoords=("axes fraction", "data"), fontsize=7, color="grey"
                )
            else:
                series.setdefault(label, []).append((float(value) if numbers else places[value], scores))
    for label, points in series.items():
        points.sort(key=lambda point: point[0])
        xs, means = [x for x, _ in points], [fmean(scores) for _, scores in points]
        halves = [_half(scores) for _, scores in points]
        (line,) = panel.plot(xs, means, marker=".", label=label)
        low, high = (
            [m - h for m, h in zip(means, halves, strict=True)],
            [m + h for m, h in zip(means, halves, strict=True)],
        )
        panel.fill_between(xs, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    if numbers:
        panel.set_xscale("log")
    else:
        panel.set_xticks(range(len(places)), [str(value) for value in places])
    _majority(facts, panel, across=True)
    panel.set(xlabel=axis, ylabel=metric)
    panel.legend(fontsize=7)
    return _svg(figure)


def _dots(facts: Facts, metric: str) -> str:
    rows = facts["rows"][::-1]
    figure, panel = _new(1.2 + 0.3 * len(rows))
    for height, row in enumerate(rows):
        scores = list(row["values"][metric]["by seed"].values())
        panel.plot(scores, [height] * len(scores), "o", color="tab:blue", alpha=0.5, markeredgewidth=0)
        if scores:
            panel.plot([fmean(scores)], [height], "|", color="black", markersize=14, markeredgewidth=2)
        if row["majority"] is not None and metric == "score":
            panel.plot([row["majority"]], [height], "x", color="tab:red", markersize=6)
    panel.set_yticks(range(len(rows)), [_label(facts, row) for row in rows], fontsize=7)
    more = "; red cross: majority baseline" if metric == "score" else ""
    panel.set_xlabel(f"{metric}{more}")
    panel.grid(axis="y", alpha=0.3)
    return _svg(figure)


def _intervals(compare: Facts) -> str:
    known = [one for one in compare["differences"] if one["low"] is not None][::-1]
    figure, panel = _new(1.2 + 0.3 * len(known))
    for height, one in enumerate(known):
        panel.plot([one["low"], one["high"]], [height, height], color="black", linewidth=1)
        panel.plot([one["mean"]], [height], "o", color="black", markersize=4)
    names = [f"{one['subject']} − {compare['constant'] if one['control'] is None else one['control']}, {one['where'] or 'all'}"
             for one in known]  # fmt: skip
    panel.set_yticks(range(len(known)), names, fontsize=7)
    panel.axvline(0, color="tab:red", linestyle="--", linewidth=1)
    if compare["least"]:
        side = -compare["least"] if compare["says"] == "matches" else compare["least"]
        panel.axvline(side, color="tab:red", linestyle=":", linewidth=1)
    panel.set_xlabel(f"difference of {compare['metric']} (dotted: the claimed {compare['least']:g})")
    return _svg(figure)


def _lines(facts: Facts, name: str) -> str:
    figure, panel = _new(3.6)
    for row in facts["rows"]:
        seeds = row["lists"].get(name, [])
        if seeds:
            panel.plot([fmean(values) for values in zip(*seeds, strict=False)], marker=".", label=_label(facts, row))
    panel.set(xlabel="place", ylabel=name)
    panel.legend(fontsize=7)
    return _svg(figure)


def _majority(facts: Facts, panel: Any, *, across: bool) -> None:
    known = {row["majority"] for row in facts["rows"] if row["majority"] is not None}
    if across and len(known) == 1 and "score" in panel.get_ylabel() + facts["metrics"][0]:
        panel.axhline(known.pop(), color="tab:red", linestyle="--", linewidth=1, label="majority baseline")


def _values(facts: Facts, axis: str) -> list[Any]:
    return list(dict.fromkeys(row["axes"][axis] for row in facts["rows"] if row["axes"][axis] is not None))


def _label(facts: Facts, row: Facts, but: str = "") -> str:
    vary = [
        axis for axis in AXES if axis not in ("seed", but) and len({repr(r["axes"][axis]) for r in facts["rows"]}) > 1
    ]
    return ", ".join(str(row["axes"][axis]) for axis in vary if row["axes"][axis] is not None) or str(
        row["axes"]["method"]
    )


def _half(scores: Sequence[float]) -> float:
    from scipy.stats import t

    return float(t.ppf(0.975, len(scores) - 1)) * stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0


def _new(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height), layout="constrained")  # no pyplot: no state, and any thread
    panel = figure.subplots()
    panel.grid(alpha=0.25)
    return figure, panel


def _svg(figure: Any) -> str:
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "gossamer", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
