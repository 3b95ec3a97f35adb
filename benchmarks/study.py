"""Studies: what the engine adds to its cells' own time, and how fast many finished cells are tabulated.

overhead: MiniLM, cells of 20 steps (a short cell makes it look worse than it is); all of `study run` but data and base looked at
before the first cell, which is a figure of its own. table: 10,000 made-up cells in 1,000 places of a grid, in one process.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import Figure
from gossamer.study.job import Job, work
from gossamer.study.ledger import Cell
from gossamer.study.prepare import opened
from gossamer.study.run import run
from gossamer.study.tabulate import cost_table, difference_table, gathered, score_table, tabulated
from gossamer.study.wanted import Known, planned


def measure(*, quick: bool = False) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        return [
            *_overhead(Path(folder), 2 if quick else 6, 2 if quick else 20),
            *_table(Path(folder), 100 if quick else 1000),
        ]


def _overhead(folder: Path, seeds: int, steps: int) -> list[Figure]:
    rng = random.Random(0)
    for part in ("train", "test"):
        rows = [
            {"text": " ".join(rng.choices(["fine", "dull", "film", "the", "a"], k=20)), "label": str(i % 2)}
            for i in range(64)
        ]
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = _file(folder, {"toy": {"train": "train.jsonl", "test": "test.jsonl"}}, seed=seeds, method=["random"],
                 fixed={"steps": steps, "save_steps": steps})  # fmt: skip
    first: list[float] = []

    def way(jobs: Iterable[Job]) -> Iterator[tuple[Job, Cell]]:
        first.append(time.perf_counter())
        for job in jobs:
            yield job, work(job)

    study, found = opened(file)
    start = time.perf_counter()
    plan = run(study, found, data=folder, out=folder / "out", way=way)
    end = time.perf_counter()
    own = sum(one.record["values"]["seconds"] for one in plan.cells if one.record)
    return [Figure("overhead of a study, of its cells' own time", 100 * ((end - first[0]) / own - 1), "%", 2.0),
            Figure("before the first cell: data and base looked at", first[0] - start, "s")]  # fmt: skip


def _table(folder: Path, places: int) -> list[Figure]:
    tasks = {f"t{i}": {"train": f"t{i}.jsonl"} for i in range(places // 50)}
    compare = {"subject": "fisher", "control": "random"}
    file = _file(folder, tasks, seed=10, method=["random", "magnitude", "gradient", "fisher", "lt-sft"], fixed={},
                 density=[0.001, 0.005], size=[100, 200, 300, 400, 500], compare=compare)  # fmt: skip
    study, found = opened(file)
    known = Known(
        "0", {f"{t}@{n}": f"{t}@{n}" for t in tasks for n in study.grid.size}, {f"minilm@{t}": "b" for t in tasks}
    )
    out = folder / "many"
    out.mkdir()
    (out / "known.json").write_text(json.dumps(asdict(known)))
    rng, cells = random.Random(0), planned(study, found, known, {}).cells
    with (out / "cells.jsonl").open("w") as lines:
        for one in cells:
            lines.write(json.dumps(_record(one, rng)) + "\n")
    start = time.perf_counter()
    study, found = opened(file)
    plan, remarks = gathered(study, found, out)
    facts = tabulated(study, plan, remarks)
    for made in (score_table, difference_table, cost_table):
        made(facts)
    took = time.perf_counter() - start
    assert facts["done"] == len(cells)
    return [Figure(f"table of {len(cells):,} finished cells", took, "s", 3.0)]


def _record(one: Any, rng: random.Random) -> Cell:
    values = {
        "score": rng.random(),
        "majority": 0.5,
        "k": 1e5,
        "m": 2e7,
        "bytes": 4e5,
        "seconds": 9.0,
        "cpu_seconds": 9.0,
    }
    machine = {"kind": "x86_64", "cpus": 2, "threads": 1, "memory": 8e9, "device": "cpu"}
    return {"cell": one.cell, "kind": "train", "axes": dict(one.axes), "config": one.config.facts(), "values": values,
            "lists": {}, "metric": "accuracy", "memory": 10**9, "machine": machine, "versions": {"gossamer": "0"}}  # fmt: skip


def _file(
    folder: Path, tasks: dict[str, Any], *, seed: int, method: list[str], fixed: dict[str, Any], **more: Any
) -> Path:
    compare = more.pop("compare", [])
    grid = {"base": ["minilm"], "method": method, "seed": seed, **more}
    path = folder / f"{len(tasks)}.yaml"
    path.write_text(yaml.safe_dump({"tasks": tasks, "grid": grid, "fixed": fixed, "compare": compare}))
    return path
