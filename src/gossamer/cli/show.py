"""gossamer show: what a delta is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape

from gossamer.analyze.where import by_layer, where
from gossamer.analyze.where import plot as draw
from gossamer.cli.output import Flag, console, emit, scores_table, size, table
from gossamer.delta.delta import Delta
from gossamer.delta.store import load


def show(
    delta: Path,
    *,
    plot: Path | None = None,
    json: Flag = False,
) -> None:
    """Say what a delta is: base, method, task, scores, density, bytes, and where its changes lie.

    Parameters
    ----------
    delta
        A delta's file.
    plot
        Write a heat map of where the changes lie, layers × modules, to this picture (.png, .svg or .pdf).
    json
        Print the facts as JSON.
    """
    loaded = load(delta)
    about: dict[str, Any] = dict(loaded.about)
    places = where(loaded)
    head = sum(tensor.numel() for tensor in loaded.head.values())
    layers = by_layer(places)
    facts = {
        "file": str(delta),
        "bytes": delta.stat().st_size,
        "base": about.get("base"),
        "method": about.get("method"),
        "options": about.get("options", {}),
        "k": loaded.k,
        "m": loaded.m,
        "density": loaded.density,
        "head": head,
        "grafts": [
            {
                "place": g.place,
                "kind": g.kind,
                "width": g.width,
                "inner": g.inner,
                "activation": g.activation,
                "level": g.level,
                "weights": g.count,
            }
            for g in loaded.grafts
        ],
        "values": about.get("values"),
        "norm": loaded.norm(),
        "task": about.get("task"),
        "scores": about.get("scores", {}),
        "baseline": about.get("baseline", {}),
        "seed": about.get("seed"),
        "on": about.get("on", []),
        "versions": about.get("versions", {}),
        "layers": {layer: {"weights": n, "changed": c, "norm": norm} for layer, (n, c, norm) in layers.items()},
    }
    if plot:
        draw(loaded, plot)
    if json:
        emit(facts)
        return
    task = about.get("task") or {}
    changed = loaded.k - sum(graft.count for graft in loaded.grafts)
    lines = [
        ("base", facts["base"] or "not named"),
        ("method", " ".join([str(facts["method"]), *(f"{n}={v}" for n, v in facts["options"].items())])),
        ("weights", f"{changed:,} of {loaded.m:,} ({changed / max(loaded.m, 1):.3%}), and a head of {head:,}"),
        *(("added modules", line) for line in added(loaded)),
        ("file", f"{size(facts['bytes'])}, values {facts['values']}; a full copy in float32 is {size(4 * loaded.m)}"),
        ("norm of the change", f"{facts['norm']:.4g}"),
    ]
    if task:
        labels = task.get("labels")
        says = (
            f"{len(labels)} labels ({', '.join(labels[:8])}{', …' if len(labels) > 8 else ''})"
            if labels
            else "a number"
        )
        lines.append(("task", f"{task['name']}: {' + '.join(task['fields'])} → {says}"))
    if facts["on"]:
        lines.append(("on top of", ", ".join(part["file"] for part in facts["on"])))
    for name, value in lines:
        console.print(f"[bold]{name:>18}[/]  {escape(str(value))}", highlight=False)
    if facts["scores"]:
        console.print(scores_table("scores after training", facts["scores"], facts["baseline"], task.get("metric", "")))
    rows = [[layer, f"{n:,}", f"{c:,}", f"{c / n:.3%}", f"{norm:.3g}"] for layer, (n, c, norm) in layers.items()]
    console.print(table("where the changes lie", ["layer", "weights", "changed", "density", "norm"], rows))
    if plot:
        console.print(f"heat map: {plot}")


def added(delta: Delta) -> list[str]:
    """What modules a delta adds, a line for those of one make."""
    makes: dict[str, list[int]] = {}
    for graft in delta.grafts:
        make = f"{graft.kind} of {graft.width} → {graft.inner} → {graft.width}, {graft.activation}, level {graft.level}"
        makes.setdefault(make, []).append(graft.count)
    return [f"{len(counts)} × {make}: {sum(counts):,} weights" for make, counts in makes.items()]
