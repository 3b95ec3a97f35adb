"""Cells in processes of their own: the same records as here, and a worker that dies takes its own cell only."""

from __future__ import annotations

import multiprocessing as mp
from functools import partial
from pathlib import Path

import pytest

from gossamer.errors import BadPlan
from gossamer.study.cluster import on_ray
from gossamer.study.job import Job, work
from gossamer.study.workers import processes
from gossamer.train.config import FitConfig
from tests.tiny import task_directory


def jobs(place: Path, count: int) -> list[Job]:
    made = []
    for seed in range(count):
        config = FitConfig(base=str(place / "base"), train="train.jsonl", out=Path("x.safetensors"), method="random",
                           density=0.02, steps=2, seed=seed, force=True)  # fmt: skip
        measure = {"train_examples": 0, "losses": False}
        made.append(
            Job(
                f"{seed}", {"seed": seed}, "train", config, "test.jsonl", measure, {"data": "", "base": ""}, place, None
            )
        )
    return made


def test_a_worker_that_dies_takes_its_own_cell_only(tmp_path: Path) -> None:
    place = task_directory(tmp_path)

    def began(job: Job) -> None:
        if job.cell == "1":  # killed for memory, for instance
            mp.active_children()[0].kill()

    found = {job.cell: cell for job, cell in processes(jobs(place, 3), count=1, began=began)}
    assert "status -9" in found["1"]["error"]
    assert not mp.active_children()
    alone = work(jobs(place, 1)[0])
    assert "error" not in alone
    for name in ("0", "2"):
        assert "error" not in found[name], found[name]
    assert found["0"]["values"]["score"] == alone["values"]["score"]
    assert found["0"]["values"]["norm"] == alone["values"]["norm"]


def test_ray(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    place = task_directory(tmp_path)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        way = partial(on_ray, address=None, cpus=2, began=lambda job: None)
        found = {job.cell: cell for job, cell in way(jobs(place, 2))}
        with pytest.raises(BadPlan, match="no machine of the cluster has that many cores"):
            list(on_ray(jobs(place, 1), address=None, cpus=10_000, began=lambda job: None))
    finally:
        ray.shutdown()
    alone = {job.cell: work(job) for job in jobs(place, 2)}
    for name, cell in found.items():
        assert "error" not in cell, cell
        assert cell["values"]["score"] == alone[name]["values"]["score"]


def test_without_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(BadPlan, match=r"gossamer\[cluster\]"):
        list(on_ray([], address=None, cpus=1, began=lambda job: None))
