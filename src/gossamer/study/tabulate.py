"""A study's cells as facts (JSON) and tables: scores with differences, costs, failures, and whose results these are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from gossamer.study.cell import versions
from gossamer.study.kinds.kind import kind_of
from gossamer.study.ledger import Ledger
from gossamer.study.paired import CANNOT_TELL
from gossamer.study.prepare import load_known, opened
from gossamer.study.report import Rows, decimal, mean_of, mega
from gossamer.study.run import LEDGER
from gossamer.study.spec import AXES, Study
from gossamer.study.verdict import (
    Difference,
    Key,
    Verdict,
    describe,
    difference,
    groups,
    judge,
    matches,
    metric_of,
    number,
    places,
)
from gossamer.study.wanted import Combination, Planned, planned, title

Facts = dict[str, Any]


def looked(file: Path, profile: str | None, out: Path) -> tuple[Study, Planned, list[str]]:
    """A study's file with what a folder holds for it; see `gathered`. Raises BadPlan with every mistake of the file."""
    study, found = opened(file, profile)
    return study, *gathered(study, found, out)


def gathered(study: Study, found: Sequence[Combination], out: Path) -> tuple[Planned, list[str]]:
    """The cells of a study with what its folder holds for them, and remarks. Reads neither data nor bases."""
    ledger, known = Ledger(out / LEDGER).look(), load_known(out)
    plan = planned(study, found, known, ledger.cells)
    return plan, _remarks(plan, ledger, known.gossamer)


def status(study: Study, plan: Planned, remarks: Sequence[str]) -> Facts:
    """How far a study is: cells done, failed with their errors, and missing; seconds spent and about left."""
    cells = {one.cell: one for one in plan.cells}
    done = [one for one in cells.values() if one.record and "error" not in one.record]
    failed = [one for one in cells.values() if one.record and "error" in one.record]
    spent = [one.record["values"]["seconds"] for one in done if one.record]
    missing = len(cells) - len(done) - len(failed)
    return {"study": str(study.path), "profile": study.profile, "cells": len(cells) + plan.later, "done": len(done),
            "failed": [{"cell": one.cell, "axes": dict(one.axes), "error": one.record["error"]} for one in failed if one.record],
            "missing": missing + plan.later, "seconds": round(sum(spent), 1),
            "left": round(fmean(spent) * (missing + plan.later), 1) if spent else None, "notes": list(remarks)}  # fmt: skip


def tabulated(study: Study, plan: Planned, remarks: Sequence[str]) -> Facts:
    """All that tables and report show, as plain JSON."""
    cells = plan.finals
    metrics = list(dict.fromkeys([*(metric_of(study, one) for one in study.compare), kind_of(study.kind).metric]))
    rows = [_row(key, some, metrics) for key, some in groups(cells).items()]
    verdict = judge(study, cells)
    facts = {"claim": study.claim.model_dump() if study.claim else None, "kind": study.kind, "profile": study.profile,
             "metrics": metrics, "seeds": study.grid.seeds, "rows": rows, "verdict": _said(study, verdict, cells),
             "notes": [*remarks, *_notes(study, plan, verdict)], **_status(study, plan)}  # fmt: skip
    return facts


def score_table(facts: Facts) -> Rows:
    """Means and spreads over seeds of each number that decides, majority baselines beside them, a row a place of the grid."""
    vary = _varying(facts)
    majority = any(row["majority"] is not None for row in facts["rows"])
    columns = [
        *vary,
        *(part for metric in facts["metrics"] for part in (metric, "sd")),
        *(["majority"] if majority else []),
        "seeds",
    ]
    rows = []
    for row in facts["rows"]:
        numbers = [text for metric in facts["metrics"] for text in (
            decimal(row["values"].get(metric, {}).get("mean")), decimal(row["values"].get(metric, {}).get("sd")))]  # fmt: skip
        rows.append([*(_word(row["axes"][axis]) for axis in vary), *numbers,
                     *([decimal(row["majority"])] if majority else []), str(row["n"])])  # fmt: skip
    return columns, rows


def difference_table(facts: Facts) -> Rows:
    """Each comparison as its file fixed it: over all it spans, then place by place."""
    rows = []
    for compare in facts["verdict"]["compares"] if facts["verdict"] else []:
        for one in compare["differences"]:
            name = f"{one['subject']} − {compare['constant'] if one['control'] is None else one['control']}"
            name = name if compare["better"] == "larger" else f"{name}, turned round"
            rows.append([compare["metric"], name, one["where"] or "all", str(one["n"]), *_interval(one)])
    return ["of", "difference", "where", "n", "mean [95 %]", "verdict"], rows


def cost_table(facts: Facts) -> Rows:
    """What cells trained, stored and took, on average."""
    vary = _varying(facts)
    rows = [[*(_word(row["axes"][axis]) for axis in vary), row["rates"], "" if row["k"] is None else f"{row['k']:,.0f}",
             mega(row["bytes"]), *("" if row[name] is None else f"{row[name]:.1f}" for name in ("seconds", "cpu_seconds")),
             mega(row["memory"])] for row in facts["rows"]]  # fmt: skip
    return [*vary, "rate", "trained weights", "file, MB", "seconds", "CPU seconds", "peak memory, MB"], rows


def _row(key: Key, cells: Sequence[Any], metrics: Sequence[str]) -> Facts:
    good = [one.record for one in cells if one.record and "error" not in one.record]
    values: Facts = {}
    for metric in metrics:
        found = {one.axes["seed"]: v for one in cells if (v := number(one, metric)) is not None}
        values[metric] = {"by seed": {str(s): v for s, v in found.items()}, "mean": fmean(found.values()) if found else None,
                          "sd": stdev(found.values()) if len(found) > 1 else None}  # fmt: skip
    mean = lambda name: mean_of(r["values"].get(name) for r in good)  # noqa: E731
    names = {name for record in good for name in record.get("lists", {})}
    return {"axes": dict(key), "n": len(good), "values": values, "majority": mean("majority"), "k": mean("k"),
            "bytes": mean("bytes"), "seconds": mean("seconds"), "cpu_seconds": mean("cpu_seconds"),
            "memory": max((r["memory"] for r in good if r.get("memory") is not None), default=None),
            "metric": next((r["metric"] for r in good if "metric" in r), None),
            "rates": ", ".join(sorted({f"{r['config']['lr']:g}" for r in good})),
            "lists": {name: [r["lists"][name] for r in good if name in r["lists"]] for name in sorted(names)}}  # fmt: skip


def _said(study: Study, verdict: Verdict | None, cells: Sequence[Any]) -> Facts | None:
    if verdict is None:
        return None
    compares = []
    for compare, differences in verdict.compares:
        metric = metric_of(study, compare)
        rows = []
        for one in differences:
            rows.append(_told(one))
            at = [cell for cell in cells if matches(cell.axes, compare.at, compare.axis)]
            rows += [
                _told(difference(compare, metric, at, one.subject, one.control, where))
                for where in places(compare, cells)
            ]
        told = compare.model_dump(include={"constant", "better", "axis", "says", "least"})
        compares.append({**told, "rule": describe(compare, metric), "metric": metric, "differences": rows})
    return {"word": verdict.word, "detectable": verdict.detectable, "missing": verdict.missing, "compares": compares}


def _told(one: Difference) -> Facts:
    found = asdict(one.found) if one.found else {"n": 0, "mean": None, "low": None, "high": None, "detectable": None}
    return {"subject": one.subject, "control": one.control, "where": title(one.where), **found, "verdict": one.verdict,
            "pairs": {str(s): [one.a[s], one.b[s]] for s in one.a if s in one.b}}  # fmt: skip


def _interval(one: Facts) -> list[str]:
    if one["mean"] is None:
        return ["", f"{CANNOT_TELL} (nothing to compare)"]
    if one["low"] is None:
        return [f"{one['mean']:+.4f}", f"{one['verdict']} ({'one seed' if one['n'] < 2 else 'no spread'})"]
    word = one["verdict"]
    if word == CANNOT_TELL and one["detectable"] is not None:
        word += f" ({one['detectable']:.4f})"
    return [f"{one['mean']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]", word]


def _status(study: Study, plan: Planned) -> Facts:
    found = status(study, plan, ())
    return {name: found[name] for name in ("cells", "done", "failed", "missing")}


def _notes(study: Study, plan: Planned, verdict: Verdict | None) -> list[str]:
    done = [one.record for one in plan.finals if one.record and "error" not in one.record]
    notes = []
    if verdict and verdict.missing:
        notes.append(
            f"{verdict.missing} cells that are compared have no number yet: the verdict is of the others, and may change"
        )
    if done and {r.get("split") for r in done} == {"eval"} and study.grid.tune:
        notes.append("scores are of the data that chose rates and epochs, and so too high: give the tasks test data")
    if any(one.trial for one in plan.cells):
        notes.append(
            f"tuned: each rate was chosen by held-out data at seed {study.grid.seeds[0]}, as many trials for each method"
        )
    notes.append("intervals are over seeds, on one test set, and not adjusted for the number of comparisons")
    notes.append("cannot tell (d): a difference of d or more would have been seen at this spread and number of seeds")
    return notes


def _remarks(plan: Planned, ledger: Ledger, of: str) -> list[str]:
    """Whose results these are: other versions and machines are said, and results that are not of this study's cells."""
    used = {one.cell: one.record for one in plan.cells if one.record}
    remarks = []
    mixed = Counter(_plain(record["versions"]) for record in used.values())
    if len(mixed) > 1:
        told = "; ".join(f"{count} cells with {text}" for text, count in mixed.most_common())
        remarks.append(f"cells were made with different versions, so that pairs may not be exact: {told}")
    if len({repr(record["machine"]) for record in used.values()}) > 1:
        remarks.append("cells were made on different machines: their times do not compare")
    if of != versions()["gossamer"]:
        remarks.append(
            f"these are results of gossamer {of}, and this is {versions()['gossamer']}: `study run` makes all anew"
        )
    others = Counter(
        record.get("versions", {}).get("gossamer") for name, record in ledger.cells.items() if name not in used
    )
    if others:
        told = ", ".join(f"{count} of gossamer {version}" for version, count in others.most_common())
        remarks.append(f"{sum(others.values())} results in the folder are of other cells and not used ({told})")
    if ledger.torn:
        remarks.append(f"{ledger.torn} lines of {ledger.path.name} were cut off by a kill")
    return remarks


def _plain(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _varying(facts: Facts) -> list[str]:
    """The axes that vary, and the method in any case."""
    rows = facts["rows"]
    return [
        axis
        for axis in AXES
        if axis != "seed" and (axis == "method" or len({repr(row["axes"][axis]) for row in rows}) > 1)
    ]


def _word(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
