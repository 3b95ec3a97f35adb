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
    killed_and_resumed(settings(place), whole, step, tmp_path)


# killed in the middle of what such a method does between two checkpoints (5 and 10 of 12 steps): the checkpoint taken up
# again lies inside a window of candidates, after a revision; the best look may belong to another support than the last
@pytest.mark.parametrize(
    ("method", "options"), [("spiel-ag", {"every": 3, "window": 2}), ("child-pruning", {"every": 2, "burn_in": 8.0})]
)
def test_a_support_that_changes_is_resumed_too(
    place: Path, method: str, options: dict[str, Any], tmp_path: Path
) -> None:
    wanted = settings(place, method=method, options=options, epochs=4, save_steps=5)
    uninterrupted = run_fit(FitConfig(**wanted, out=tmp_path / "whole.safetensors")).delta
    killed_and_resumed(wanted, uninterrupted, 7, tmp_path)


@pytest.mark.parametrize("step", [3, 8])  # among the gates, and after their projection
def test_gates_killed_and_resumed(place: Path, step: int, tmp_path: Path) -> None:
    changes = {"method": "diff-pruning-structured", "options": {"penalty": 20.0}, "full_lr": 1e-3}
    said: list[str] = []
    whole = run_fit(FitConfig(**settings(place, **changes), out=tmp_path / "whole.safetensors"), say=said.append).delta
    assert sum(f"gates: {whole.about['natural_density']:.2%}" in text for text in said) == 1
    resumed = killed_and_resumed(settings(place, **changes), whole, step, tmp_path)
    assert resumed.about["natural_density"] == whole.about["natural_density"]


def killed_and_resumed(given: dict[str, Any], whole: gs.Delta, step: int, tmp_path: Path) -> gs.Delta:
    note = tmp_path / "settings.json"
    note.write_text(json.dumps({**given, "out": str(tmp_path / "delta.safetensors")}))
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
    return resumed


def test_a_killed_run_of_sam_resumes_too(place: Path, tmp_path: Path) -> None:
    options = {"curvature": "hutchinson", "warmup": 2}
    chosen = settings(place, method="sam", options=options, out=str(tmp_path / "delta.safetensors"))
    (tmp_path / "settings.json").write_text(json.dumps(chosen))
    killed = subprocess.run([sys.executable, "-m", "tests.train.killed", str(tmp_path / "settings.json"), "4"],
                            capture_output=True, text=True)  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    whole = run_fit(FitConfig(**{**chosen, "out": tmp_path / "whole.safetensors"})).delta
    assert run_fit(FitConfig(**chosen, resume=True)).delta == whole


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
