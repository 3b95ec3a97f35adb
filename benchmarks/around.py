"""Cost of the methods that act around each step, on MiniLM at 0.5 %: bytes a tuned weight, and times of a step.

`python -m benchmarks.around` prints JSON. Bytes are those of the tensors held: leaf, positions, state of the optimizer,
and what the method adds (ages, candidates in a window); gradients and activations, which come and go, are not in them.
Steps of all methods take turns in one process, 16 × 64 tokens.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from typing import Any

import torch

import gossamer as gs
from benchmarks.common import DENSITY, MIB, Run, allocated, batch, interleave, minilm, setting
from gossamer.select.grow_drop import grow_drop
from gossamer.train.tune import count
from gossamer.tunable.sm3 import SM3
from gossamer.tunable.tuned import Tuned

SPIEL = {"every": 20, "total_steps": 10_000}


def main() -> None:
    torch.set_num_threads(1)
    print(json.dumps({"setting": setting(), **bytes_a_weight(), **step_times(), **revisions()}, indent=1))


def start(method: str, stack: ExitStack, model: Any) -> tuple[Tuned, Run]:
    if method == "child-pruning":
        options = {"every": 20, "burn_in": 1.0, "per_tensor": False}
        tuned = Tuned(model, None, kind="projected", k=int(count(model) * DENSITY), options=options, revise=grow_drop)
        stack.callback(tuned.detach)
    else:
        settings = {
            **({"density": DENSITY} if gs.methods()[method].counted else {}),
            **(SPIEL if "spiel" in method else {}),
        }
        tuned = stack.enter_context(gs.tune(model, method, **settings))
    model.train()
    make = SM3 if method == "spiel-ma" else torch.optim.AdamW
    return tuned, Run(model, make(tuned.parameters(), lr=1e-4), {}, batch())


def bytes_a_weight() -> dict[str, Any]:
    found = {}
    for method in ("random", "spiel-ag", "spiel-ma"):
        with ExitStack() as stack:
            tuned, run = start(method, stack, minilm())
            for _ in range(18 if method == "spiel-ag" else 2):
                run()
            if method == "spiel-ag":
                found["spiel-ag, in a window"] = held(tuned, run)
                for _ in range(3):
                    run()
            found[method] = held(tuned, run)
    return {"bytes a tuned weight": found}


def held(tuned: Tuned, run: Run) -> dict[str, float]:
    leaves = tuned.leaves
    mine = {id(p) for p in leaves.parameters()}
    states = [s for p, s in run.optimizer.state.items() if id(p) in mine]
    parts = {
        "value": sum(p.nbytes for p in leaves.parameters()),
        "position": sum(leaves.indices(name).nbytes for name in leaves.support),  # type: ignore[attr-defined]
        "optimizer": sum(t.nbytes for s in states for t in s.values() if isinstance(t, torch.Tensor)),
        "age": sum(t.nbytes for n, t in leaves.extra().items() if n.startswith("age:")),
        "candidates": sum(t.nbytes for one in getattr(leaves, "candidates", {}).values()
                          for key, t in vars(one).items() if isinstance(t, torch.Tensor) and key != "support"),
    }  # fmt: skip
    return {name: round(size / tuned.k, 2) for name, size in {**parts, "all": sum(parts.values())}.items()}


def step_times() -> dict[str, Any]:
    with ExitStack() as stack:
        runs = {
            m: start(m, stack, minilm())[1] for m in ("full", "mixout", "child-f", "random", "spiel-ag", "spiel-ma")
        }
        times = interleave(runs, rounds=4, warmup=1)  # 5 steps: none is in a window
    peaks = {}
    for method in runs:
        with ExitStack() as stack:
            run = start(method, stack, minilm())[1]
            run()
            peaks[method] = round(allocated(run)[0] / MIB)
    return {"milliseconds a step": {m: round(1e3 * times.median(m)) for m in runs}, "peak MiB of a step": peaks}


def revisions() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for method in ("spiel-ag", "spiel-ma", "child-pruning"):
        with ExitStack() as stack:
            _, run = start(method, stack, minilm())
            taken = []
            for _ in range(20):
                began = time.perf_counter()
                run()
                taken.append(round(1e3 * (time.perf_counter() - began)))
        found[method] = {
            "median": sorted(taken[:14])[7],
            "in a window": sorted(taken[15:19])[2],
            "the revision": taken[19],
        }
    return {"milliseconds of steps up to a revision": found}


if __name__ == "__main__":
    main()
