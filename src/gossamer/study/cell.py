"""A cell: one fine-tuning and its scores, a pure function of its configuration and data, known by a hash of both.

It is what `gossamer fit` and then `gossamer eval` give: the model is loaded anew (0.1 s for MiniLM), so that no cell
can leave anything to the next; the test data are scored with what the file holds.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from gossamer.errors import GossamerError
from gossamer.study.ledger import Cell
from gossamer.study.memory import peak_memory
from gossamer.tasks.readers import Table
from gossamer.tasks.task import settings_of
from gossamer.train.bench import open_delta
from gossamer.train.callback import Progress
from gossamer.train.config import TASK_SETTINGS, FitConfig
from gossamer.train.job import run_fit
from gossamer.train.plan import row_of, settle

Say = Callable[[str], None]


def digest(*parts: Any) -> str:
    """Of plain values."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def name(config: FitConfig, data: str, base: str) -> str:
    """The hash of a cell: all that decides its result, defaults of the row included; not where its files lie.

    Args:
        config: of the fine-tuning.
        data, base: digests of the tables (training, evaluation, test), and of the base's weights and vocabulary.
    """
    row = row_of(config.method)
    told = {
        n: v for n, v in config.facts().items() if v is not None and n not in ("base", "train", "eval", "train_limit")
    }
    defaults = {n: v for n, v in settings_of(config.task).items() if v is not None}
    flags, more = ({n: v for n, v in defaults.items() if (n in TASK_SETTINGS) is flag} for flag in (True, False))
    if more | config.task_options:
        told["task_options"] = more | config.task_options
    facts = {**flags, **told, "options": settle(row, config.options), "phases": [asdict(phase) for phase in row.phases],
             "data": data, "base digest": base, "gossamer": importlib.metadata.version("gossamer")}  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def run_cell(
    cell: str,
    config: FitConfig,
    test: Table | None,
    *,
    data: str,
    base: str,
    keep: bool = False,
    progress: Progress | None = None,
    say: Say = lambda text: None,
) -> Cell:
    """Runs a cell and returns its record; one that fails has `error` in place of scores.

    Args:
        cell, data, base: its name and the digests that it was made of.
        config: with an `out` of its own, and force on: what a killed run left there is dropped.
        test: data that are looked at once, after training; None scores the evaluation data alone.
        keep: leave the delta's file.
    """
    record: Cell = {"cell": cell, "config": config.facts(), "data": data, "base": base}
    config.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with peak_memory() as peak:
            began = time.process_time()
            result = run_fit(config, progress=progress, say=say)
            cpu = time.process_time() - began  # of all threads: on a busy machine it says more than the clock
        record |= {"metric": result.metric, "eval": dict(result.scores), "eval_baseline": dict(result.baseline)}
        if test is not None:
            delta, bench = open_delta(config.out)
            bench.model.to("cuda" if torch.cuda.is_available() else "cpu")
            examples = bench.task.encode(bench.tokenizer, test)
            record |= {"test": dict(bench.score(delta, examples)), "test_baseline": dict(bench.task.baseline(examples))}
        about = result.delta.about
        record |= {"k": about["k"], "m": about["m"], "head": sum(t.numel() for t in result.delta.head.values()),
                   "bytes": result.nbytes, "seconds": round(result.seconds, 2), "cpu_seconds": round(cpu, 2),
                   "memory": peak.nbytes, "memory_how": peak.how}  # fmt: skip
    except Exception as error:  # a cell that fails is a result too; the others still run
        record["error"] = f"{type(error).__name__}: {error}"
        if not isinstance(error, GossamerError):
            frames = traceback.extract_tb(error.__traceback__)  # without folders, which name a machine
            record["traceback"] = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames]
        shutil.rmtree(config.partial, ignore_errors=True)
    if not keep:
        config.out.unlink(missing_ok=True)
    return record | {"versions": _versions(), "machine": machine(), "date": datetime.now(UTC).isoformat("T", "seconds")}


def machine() -> dict[str, Any]:
    """The kind of machine, without its name."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"kind": platform.machine(), "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "device": device}


def _versions() -> dict[str, str]:
    named = {n: importlib.metadata.version(n) for n in ("gossamer", "torch", "transformers")}
    return {"python": platform.python_version(), **named}
