"""DDP with two gloo processes: k and the head on the wire, one delta on every rank."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gossamer as gs


@pytest.mark.parametrize("method", ["fisher", "pfeiffer"])
def test_two_processes_send_k_numbers_and_end_with_one_delta(method: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.train.ddp_worker"]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path), method], stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=300)
        assert worker.returncode == 0, errors
    for rank in (0, 1):
        facts = torch.load(tmp_path / f"rank{rank}.pt")
        assert facts["sent"] == facts["steps"] * facts["expected"]
    first, second = (gs.load(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1))
    assert first == second
    assert first.norm() > 0 or first.grafts
