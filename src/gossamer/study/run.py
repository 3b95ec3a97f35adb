"""Runs the cells of a study that its folder lacks. To be killed and started again at any time, on any number of workers.

One process writes: it holds the lock of OUT/cells.jsonl and appends each cell as it comes from wherever it ran, durably. So a
kill loses the cells that were running, and no other, and a second runner on the same folder is refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from gossamer.study.job import Job, job
from gossamer.study.ledger import Cell, Ledger
from gossamer.study.memory import settled_memory
from gossamer.study.prepare import prepare, save_known
from gossamer.study.spec import Study
from gossamer.study.wanted import Combination, Planned, planned, unfinished

LEDGER = "cells.jsonl"
Way = Callable[[Iterable[Job]], Iterator[tuple[Job, Cell]]]


class Watch(Protocol):
    """Who wants to know how far a study is."""

    def start(self, cells: int, known: int) -> None: ...

    def done(self, job: Job, cell: Cell) -> None: ...


def run(
    study: Study,
    found: Sequence[Combination],
    *,
    data: Path,
    out: Path,
    way: Way,
    retry_failed: bool = False,
    watch: Watch | None = None,
) -> Planned:
    """Runs what `out` lacks, and returns all cells with their records.

    Args:
        study, found: of `prepare.opened`.
        data: the folder that the file's paths are relative to.
        way: runs jobs and yields each with its record: `workers.serially`, `workers.processes`, `cluster.on_ray`.
        retry_failed: also those that failed before.

    Raises:
        BadPlan: before anything is run, with every mistake. Clash: another process is writing to the same folder.
    """
    ledger = Ledger(out / LEDGER).look()
    known = prepare(study, found, data, ledger.cells)
    ledger = Ledger(out / LEDGER)
    with ledger.open(), settled_memory():
        save_known(out, known)
        scratch = out / "running"
        shutil.rmtree(scratch, ignore_errors=True)  # of runs that were killed
        scratch.mkdir()
        failed = {name for name, cell in ledger.cells.items() if "error" in cell} if retry_failed else set()

        def now() -> Planned:
            there = {name: cell for name, cell in ledger.cells.items() if name not in failed}
            return planned(study, found, known, there)

        try:
            plan = now()
            todo, count = list(unfinished(plan.cells)), len({one.cell for one in plan.cells})
            if watch:
                watch.start(count + plan.later, count - len(todo))
            while todo:
                for one, cell in way([job(study, want, known, data, scratch) for want in todo]):
                    ledger.append(cell)
                    failed.discard(one.cell)
                    if watch:
                        watch.done(one, cell)
                plan = now()
                todo = list(unfinished(plan.cells))
            return plan
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
