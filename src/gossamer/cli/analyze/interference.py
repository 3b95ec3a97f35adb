"""gossamer analyze interference: what deltas are to one another, and what each loses in their sum."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from gossamer.analyze.interference import Interference
from gossamer.analyze.interference import interference as meet
from gossamer.analyze.picture import plot as draw
from gossamer.cli.output import Flag, console, emit, named, picture, quiet, table
from gossamer.delta.delta import Delta
from gossamer.delta.store import load
from gossamer.errors import BadPlan


def interference(
    *deltas: str,
    data: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    base: str | None = None,
    plot: Path | None = None,
    json: Flag = False,
) -> None:
    """Say what deltas of one base have in common, and predict what each loses in their sum; with data, measure it.

    Parameters
    ----------
    deltas
        Files of two or more deltas. Each is called by its file's name without the ending, or as in name=file.
    data
        Labelled data of some of the deltas, as name=file, to measure what each keeps of its task in the sums.
    base
        The base, where it is no longer where the deltas were trained.
    plot
        Write a picture (.png, .svg or .pdf): who loses what by whom, and overlap, conflicts and cosine by layer.
    json
        Print the facts as JSON.
    """
    picture(plot)
    paths = named(deltas)
    if len(paths) < 2:
        raise BadPlan(f"analyze interference is between two or more deltas; got {len(paths)}")
    sources = _sources(data or [], paths)
    if base and not sources:
        raise BadPlan("--base is the model that --data are measured on; give --data too")
    loaded = {name: load(path) for name, path in paths.items()}
    found = meet(*loaded.values(), names=list(paths))
    if plot:
        draw(found, plot)
    measured = _measured(paths, sources, base) if sources else []
    if json:
        emit(_facts(found, measured))
        return
    _print(found, loaded)
    if measured:
        rows = [[row.name, " + ".join(row.others), row.metric, *(f"{look.score:.4f}" for look in _looks(row)),
                 *(f"{look.loss:.4f}" for look in _looks(row)), _number(row.share), _number(_predicted(found, row))]
                for row in measured]  # fmt: skip
        columns = ["delta", "with", "metric", "without", "alone", "in the sum", "loss without", "alone", "in the sum",
                   "share of the gain lost", "predicted"]  # fmt: skip
        console.print(table("measured: what each keeps of its task", columns, rows))
    if plot:
        console.print(f"picture: {plot}")


def _print(found: Interference, loaded: dict[str, Delta]) -> None:
    columns = [
        "pair",
        "overlap",
        "by chance",
        "sign conflicts",
        "of the mass",
        "cosine",
        "norm b/a",
        "a loses",
        "b loses",
    ]
    rows = [[" + ".join(pair), f"{m.jaccard:.3%}", f"{m.chance:.3%}", f"{m.conflict:.1%}", f"{m.conflict_mass:.1%}",
             f"{m.cosine:+.4f}", f"{m.ratio:.3g}", *(_number(share) for share in m.predicted)]
            for pair, m in found.pairs.items()]  # fmt: skip
    console.print(table("pairs (a + b); losses are predicted, as shares of what each gained", columns, rows))
    columns = [
        "layer",
        *(f"{' + '.join(pair)}: {what}" for pair in found.pairs for what in ("overlap", "conflicts", "cosine")),
    ]
    layers = list(next(iter(found.layers.values())))
    rows = [[layer, *(cell for there in found.layers.values() for cell in (
        f"{there[layer].jaccard:.3%}", f"{there[layer].conflict:.1%}", f"{there[layer].cosine:+.3f}"))]
            for layer in layers if any(there[layer].a and there[layer].b for there in found.layers.values())]  # fmt: skip
    if len(found.pairs) <= 3 and rows:
        console.print(table("layer by layer, where both change something", columns, rows))
    if len(found.names) > 2:
        total = [[name, _number(share)] for name, share in found.predicted.items()]
        console.print(table("in the sum of all", ["delta", "predicted loss"], total))
    modules = [name for name, delta in loaded.items() if delta.grafts]
    if modules:
        console.print(f"the modules that {', '.join(modules)} add take no part in this", highlight=False)


def _sources(given: list[str], paths: dict[str, Path]) -> dict[str, str]:
    sources: dict[str, str] = {}
    for one in given:
        name, sign, source = one.partition("=")
        if not sign or not source or name not in paths:
            raise BadPlan(f"--data {one}: expected name=file, the name one of {', '.join(paths)}")
        if name in sources:
            raise BadPlan(f"--data names {name!r} twice; give it once")
        sources[name] = source
    return sources


def _measured(paths: dict[str, Path], sources: dict[str, str], base: str | None) -> list[Any]:
    quiet()
    from gossamer.train.together import Together

    together = Together(paths, base)
    rows = []
    for name, source in sources.items():
        others = tuple(other for other in paths if other != name)
        groups = [(other,) for other in others] + ([others] if len(others) > 1 else [])
        rows += together.measure(name, source, groups)
    return rows


def _looks(row: Any) -> tuple[Any, Any, Any]:
    return row.without, row.alone, row.summed


def _predicted(found: Interference, row: Any) -> float:
    return found.loss(row.name, row.others[0]) if len(row.others) == 1 else found.predicted[row.name]


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "—"


def _facts(found: Interference, measured: list[Any]) -> dict[str, Any]:
    finite = {name: share if math.isfinite(share) else None for name, share in found.predicted.items()}
    return {
        "names": list(found.names),
        "pairs": [{"deltas": list(pair), **met.facts(), "layers": {layer: m.facts() for layer, m in found.layers[pair].items()}}
                  for pair, met in found.pairs.items()],
        "predicted": finite,
        "measured": [{
            "delta": row.name, "with": list(row.others), "metric": row.metric, "examples": row.examples,
            "score": {"without": row.without.score, "alone": row.alone.score, "sum": row.summed.score, "lost": row.lost},
            "loss": {"without": row.without.loss, "alone": row.alone.loss, "sum": row.summed.loss},
            "share_lost": row.share if math.isfinite(row.share) else None,
            "predicted": (share if math.isfinite(share := _predicted(found, row)) else None),
        } for row in measured],
    }  # fmt: skip
