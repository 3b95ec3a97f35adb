"""Which of a Trainer's checkpoints may be trusted: those with a marker, written last, durable, and of the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gossamer.delta.disk import atomic, sync

MARKER = "gossamer.complete"
Facts = dict[str, Any]  # which run and phase a checkpoint belongs to, plain JSON


def seal(checkpoint: Path, facts: Facts) -> None:
    """Makes every file of a checkpoint durable, then its marker: from now on it counts."""
    for file in checkpoint.rglob("*"):
        if file.is_file():
            sync(file)
    sync(checkpoint)
    atomic(checkpoint / MARKER, lambda temporary: Path(temporary).write_text(json.dumps(facts)))


def latest(folder: Path, facts: Facts) -> Path | None:
    """The newest sealed checkpoint of this run and phase below `folder`; others, and half-written ones, do not count."""
    found = [
        marker.parent for marker in folder.glob(f"checkpoint-*/{MARKER}") if json.loads(marker.read_text()) == facts
    ]
    return max(found, key=lambda checkpoint: int(checkpoint.name.split("-")[-1]), default=None)


def unseal(folder: Path) -> None:
    """Makes a run that starts anew forget the checkpoints of earlier ones in its folder; their files stay."""
    for marker in folder.glob(f"checkpoint-*/{MARKER}"):
        marker.unlink()
