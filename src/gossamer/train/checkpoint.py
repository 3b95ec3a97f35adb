"""Which of a Trainer's checkpoints may be trusted: those with a marker, written last and made durable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from gossamer.delta.store import atomic, sync

MARKER = "gossamer.complete"


def seal(folder: Path, facts: dict[str, object]) -> None:
    """Makes every file of a checkpoint durable, then its marker: from now on it counts."""
    for file in folder.rglob("*"):
        if file.is_file():
            sync(file)
    sync(folder)
    atomic(folder / MARKER, lambda temporary: Path(temporary).write_text(json.dumps(facts)))


def latest(folder: Path) -> Path | None:
    """The newest sealed checkpoint below `folder`; half-written ones are removed."""
    found = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / MARKER).is_file():
            found.append(checkpoint)
        else:
            shutil.rmtree(checkpoint, ignore_errors=True)  # two ranks may meet here
    return max(found, key=lambda checkpoint: int(checkpoint.name.split("-")[-1]), default=None)
