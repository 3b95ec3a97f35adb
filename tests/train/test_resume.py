"""A run killed at any moment and resumed ends in the same file, bit for bit."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gossamer as gs
from gossamer.train.checkpoint import latest, seal, unseal
from gossamer.train.config import FitConfig
from gossamer.train.job import run_fit
from tests.tiny import base_directory, rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    base_directory(folder / "base")
    for name, count, seed in (("train", 48, 0), ("dev", 24, 1)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(count, seed)))
    return folder


def settings(place: Path, **changes: Any) -> dict[str, Any]:
    return {"base": str(place / "base"), "train": str(place / "train.jsonl"), "eval": str(place / "dev.jsonl"),
            "method": "lt-sft", "density": 0.02, "epochs": 2, "batch_size": 8, "weight_decay": 0.1, "accumulate": 2,
            "save_steps": 2, "options": {"l1": 0.1}, "values": "fp32", **changes}  # fmt: skip


@pytest.fixture(scope="module")
def whole(place: Path) -> gs.Delta:
    return run_fit(FitConfig(**settings(place), out=place / "whole.safetensors")).delta


# 48 examples / (8 · 2) = 3 steps an epoch, 6 a phase, 12 in all: in the first epoch before any checkpoint, inside an
# epoch of phase one, at its last step, between the phases, inside phase two, at its very end
@pytest.mark.parametrize("step", [1, 4, 6, 7, 11, 12])
def test_killed_and_resumed_equals_uninterrupted(place: Path, whole: gs.Delta, step: int, tmp_path: Path) -> None:
    note = tmp_path / "settings.json"
    note.write_text(json.dumps(settings(place, out=str(tmp_path / "delta.safetensors"))))
    killed = subprocess.run(
        [sys.executable, "-m", "tests.train.killed", str(note), str(step)], capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    config = FitConfig(**json.loads(note.read_text()), resume=True)
    assert not config.out.exists()
    resumed = run_fit(config).delta
    assert resumed == whole
    assert resumed.about["scores"] == whole.about["scores"]
    assert gs.load(config.out) == whole
    assert not config.partial.exists()


@pytest.mark.parametrize("method", ["pfeiffer", "lora"])
def test_added_modules_resume_too(place: Path, method: str, tmp_path: Path) -> None:
    changes = {"method": method, "density": None, "options": {}}
    once = run_fit(FitConfig(**settings(place, **changes), out=tmp_path / "once.safetensors")).delta
    note = tmp_path / "settings.json"
    note.write_text(json.dumps(settings(place, **changes, out=str(tmp_path / "delta.safetensors"))))
    killed = subprocess.run(
        [sys.executable, "-m", "tests.train.killed", str(note), "5"], capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = run_fit(FitConfig(**json.loads(note.read_text()), resume=True)).delta
    assert resumed == once
    assert resumed.about["scores"] == once.about["scores"]


def test_two_uninterrupted_runs_agree(place: Path, whole: gs.Delta, tmp_path: Path) -> None:
    again = run_fit(FitConfig(**settings(place), out=tmp_path / "again.safetensors")).delta
    assert again == whole
    other = run_fit(FitConfig(**settings(place, seed=1), out=tmp_path / "other.safetensors")).delta
    assert other != whole


def test_a_checkpoint_counts_only_once_it_is_sealed_and_for_its_own_run(tmp_path: Path) -> None:
    for step in (2, 4, 10, 12):
        (tmp_path / f"checkpoint-{step}").mkdir()
    mine, other = {"phase": 0}, {"phase": 1}
    for step, facts in ((2, mine), (4, mine), (12, other)):
        seal(tmp_path / f"checkpoint-{step}", facts)
    assert latest(tmp_path, mine) == tmp_path / "checkpoint-4"
    assert latest(tmp_path, other) == tmp_path / "checkpoint-12"
    assert (tmp_path / "checkpoint-10").exists(), "what is not ours is not removed"
    unseal(tmp_path)
    assert latest(tmp_path, mine) is None
    assert latest(tmp_path / "nowhere", mine) is None


def test_refusals(place: Path, tmp_path: Path) -> None:
    config = settings(place, out=tmp_path / "delta.safetensors")
    with pytest.raises(gs.GossamerError, match="nothing to resume"):
        run_fit(FitConfig(**config, resume=True))
    partial = FitConfig(**config).partial
    partial.mkdir()
    with pytest.raises(gs.GossamerError, match="unfinished run"):
        run_fit(FitConfig(**config))
    (partial / "settings.json").write_text(json.dumps({**FitConfig(**{**config, "seed": 7}).facts(), "data": "other"}))
    with pytest.raises(gs.GossamerError, match="data, seed changed since"):
        run_fit(FitConfig(**config, resume=True))
    shutil.rmtree(partial)
    (tmp_path / "delta.safetensors").write_text("precious")
    with pytest.raises(gs.GossamerError, match="exists"):
        run_fit(FitConfig(**config))
    assert (tmp_path / "delta.safetensors").read_text() == "precious"


def test_a_diverging_run_says_so_and_leaves_no_file(place: Path, tmp_path: Path) -> None:
    config = FitConfig(
        **settings(place, method="full", options={}, density=None, lr=2e38, clip=0.0), out=tmp_path / "d.safetensors"
    )
    with pytest.raises(gs.GossamerError, match="diverged"):
        run_fit(config)
    assert not config.out.exists()
