"""The contract of every method row, continued: a run that was stopped goes on to the same bits.

Stopped here by an exception, which is cheap; tests/train/test_resume.py kills processes at more places.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import gossamer as gs
from gossamer.train.config import FitConfig
from gossamer.train.job import run_fit
from tests.tiny import At, base_directory, rows


class Stop(Exception):
    pass


def stop() -> None:
    raise Stop


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    base_directory(folder / "base")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(48)))
    return folder


@pytest.mark.parametrize("method", gs.methods())
def test_stopped_and_resumed_equals_uninterrupted(method: str, place: Path, tmp_path: Path) -> None:
    row = gs.methods()[method]
    shorter = {"warmup": 2, "examples": 16, "every": 2, "window": 1}  # where a row has these options
    settings: dict[str, Any] = {
        "base": str(place / "base"), "train": str(place / "train.jsonl"), "method": method, "steps": 6, "save_steps": 2,
        "batch_size": 4, "weight_decay": 0.1, "values": "fp32", "density": 0.02 if row.counted else None,
        "options": {name: value for name, value in shorter.items() if name in row.options},
    }  # fmt: skip
    whole = run_fit(FitConfig(**settings, out=tmp_path / "whole.safetensors")).delta
    last = 6 * len(row.fits) - 1  # one step after a checkpoint, in the last phase
    with pytest.raises(Stop):
        run_fit(FitConfig(**settings, out=tmp_path / "part.safetensors"), progress=At(last, stop))
    assert run_fit(FitConfig(**settings, out=tmp_path / "part.safetensors", resume=True)).delta == whole
