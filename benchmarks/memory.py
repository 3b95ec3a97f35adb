"""Allocated memory of one training step of MiniLM, 16 × 64 tokens, density 0.5 %, above the loaded model.

The peak is of a step that finds the optimizer's state in place: activations, gradients and scratch. What a way keeps
between steps (leaves, masks, adapters, kept base values) and the state of its optimizer are reported beside it. At
1 × 16 tokens there are hardly any activations, and the peak shows how many gradients are alive at once. `gated` is diff
pruning's first phase, with a change, a gate and their moments for every weight; `dense-mask`, the reference LT-SFT's
phase two, keeps its boolean masks and two copies of all weights.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.common import MIB, VARIANTS, Figure, Run, allocated, minilm, training

GOALS = {"floor": 1.20, "lora": 0.90, "shira": 0.78, "super": None}


def measure(*, quick: bool = False) -> list[Figure]:
    """Peaks of all ways, and that of `sparse` in ratio to the others. Allocations hardly vary: taken once."""
    peak, kept, state = {}, {}, {}
    for name in (*VARIANTS, "gated"):
        peak[name], kept[name], state[name] = _measure(name)
    total = {name: peak[name] + kept[name] + state[name] for name in peak}
    weights = 4 * sum(p.numel() for p in minilm().base_model.parameters())
    small = {name: _measure(name, examples=1, tokens=16)[0] for name in ("full", "sparse")}
    return [
        *(Figure(f"peak: sparse / {other}", peak["sparse"] / peak[other], "×", goal) for other, goal in GOALS.items()),
        *(Figure(f"all: sparse / {other}", total["sparse"] / total[other], "×") for other in VARIANTS[:-1]),
        Figure("peak at 1 × 16 tokens: sparse / full", small["sparse"] / small["full"], "×"),
        Figure("kept and state: gated / float32 copies of the base", (kept["gated"] + state["gated"]) / weights, "×"),
        Figure("all: gated / float32 copies of the base", total["gated"] / weights, "×"),
        *(Figure(f"peak: {name}", peak[name] / MIB, "MiB") for name in peak),
        *(Figure(f"optimizer state: {name}", state[name] / MIB, "MiB") for name in peak),
        *(Figure(f"kept besides: {name}", kept[name] / MIB, "MiB") for name in peak),
        *(Figure(f"all: {name}", total[name] / MIB, "MiB") for name in peak),
    ]


def _measure(variant: str, **shape: int) -> tuple[int, int, int]:
    """(peak of the second step, bytes kept from attaching and the first step less state, bytes of optimizer state)."""
    model = minilm()
    runs: list[Run] = []
    with ExitStack() as stack:
        _, attached = allocated(lambda: runs.append(stack.enter_context(training(variant, model, **shape))))
        _, first = allocated(runs[0])
        peak, _ = allocated(runs[0])
        state = runs[0].state_bytes
        return peak, attached + first - state, state
