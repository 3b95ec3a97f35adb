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
from tests.tiny import At

if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the tests: how LayerNorm's backward adds up depends on it
    transformers.utils.logging.set_verbosity_error()
    settings = json.loads(Path(sys.argv[1]).read_text())
    run_fit(FitConfig(**settings), progress=At(int(sys.argv[2]), lambda: os.kill(os.getpid(), signal.SIGKILL)))
