"""gossamer merge: a delta written into its base, as an ordinary model directory."""

from __future__ import annotations

import shutil
from pathlib import Path

from gossamer.cli.output import Flag, console, quiet
from gossamer.errors import BadPlan, Clash


def merge(
    delta: Path,
    *,
    out: Path,
    base: str | None = None,
    force: Flag = False,
) -> None:
    """Write base + delta as a normal model directory that transformers loads, with its tokenizer.

    Parameters
    ----------
    delta
        A delta's file.
    out
        The directory to make.
    base
        The base, where it is no longer where the delta was trained.
    force
        Replace an existing directory.
    """
    if out.exists() and not force:
        raise Clash(f"{out} exists; choose another --out, or replace it with --force")
    if out.exists() and not (out / "config.json").is_file():
        raise Clash(f"{out} is no model directory, so --force does not replace it; choose another --out")
    quiet()
    from gossamer.delta.apply import merge as write
    from gossamer.train.bench import open_delta

    loaded, bench = open_delta(delta, base)
    if not hasattr(bench.model, "save_pretrained"):
        raise BadPlan(
            f"task {bench.task.name} has a head of its own, which a model directory cannot hold; predict with the delta"
        )
    write(bench.model, loaded)
    beside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        bench.model.save_pretrained(beside)  # type: ignore[operator]
        bench.tokenizer.save_pretrained(beside)
        if out.exists():
            shutil.rmtree(out)
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    console.print(f"{out}: a {type(bench.model).__name__} with its tokenizer")
