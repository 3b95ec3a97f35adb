"""Runs a fine-tuning in a process of its own and kills it at a given step, as a power cut would."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
import transformers

from gossamer.train.config import FitConfig
from gossamer.train.job import run_fit


class KillAt:
    """A progress that kills its process at the n-th step of training, counted over all phases."""

    def __init__(self, last: int) -> None:
        self.left = last

    def begin(self, phase: object, steps: int, done: int) -> None: ...

    def step(self, loss: float | None) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def end(self) -> None: ...


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the tests: how LayerNorm's backward adds up depends on it
    transformers.utils.logging.set_verbosity_error()
    settings = json.loads(Path(sys.argv[1]).read_text())
    run_fit(FitConfig(**settings), progress=KillAt(int(sys.argv[2])))
