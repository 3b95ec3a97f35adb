"""Start-up: what `import gossamer` takes beyond `import torch`, in fresh processes that take turns."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from benchmarks.common import Figure

_TIMED = "import time, torch; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def measure(*, quick: bool = False) -> list[Figure]:
    """Seconds beyond torch, and, for scale, those of transformers beyond torch."""
    names, rounds = ("gossamer", "transformers"), 3 if quick else 15
    seconds = np.array([[_seconds(f"import {name}") for name in names] for _ in range(rounds + 1)])[
        1:
    ]  # the first warms up
    low, high = np.quantile(seconds, [0.25, 0.75], axis=0)
    found = zip(names, np.median(seconds, axis=0), low, high, (0.2, None), strict=True)
    return [
        Figure(f"import {name}, beyond torch", float(median), "s", goal, (float(low), float(high)))
        for name, median, low, high, goal in found
    ]


def _seconds(statement: str) -> float:
    done = subprocess.run([sys.executable, "-c", _TIMED.format(statement)], check=True, capture_output=True, text=True)
    return float(done.stdout)
