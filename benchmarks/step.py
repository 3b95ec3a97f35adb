"""One training step of MiniLM (forward, backward, clip, AdamW, zero_grad), 16 × 64 tokens, density 0.5 %, beside other ways.

All ways use PyTorch's default AdamW without weight decay, clip at norm 1 as a transformers Trainer does, and train with
dropout. AdamW's fused form, which a Trainer picks by default, makes dense ways cheaper and is reported beside it. SHiRA
and Super-Tuning are PEFT's, at a k as near as they can have it to ours; what each trains is in the table.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.common import VARIANTS, Figure, interleave, minilm, training

GOALS = {"full": 0.85, "floor": 1.07, "lora": 0.82, "shira": 0.80, "super": 0.85, "dense-mask": 0.60}
DENSITIES = {0.001: 1.05, 0.05: 1.30}  # others than 0.5 % → goal against the floor
NEAR = ("floor", "sparse", "sparse at 0.1%")
FUSED = ("full", "dense-mask", "sparse")


def measure(*, quick: bool = False) -> list[Figure]:
    """Step times of all ways, each on its own copy of the model, and that of `sparse` in ratio to the others."""
    with ExitStack() as stack:
        runs = {name: stack.enter_context(training(name, minilm())) for name in VARIANTS}
        for density in DENSITIES:
            run = stack.enter_context(training("sparse", minilm(), density=density))
            runs[f"sparse at {density:.1%}"] = run
        for name in FUSED:
            runs[f"{name}, fused"] = stack.enter_context(training(name, minilm(), fused=True))
        times = interleave(runs, rounds=3 if quick else 12, repeats=2)
        near = interleave(
            {name: runs[name] for name in NEAR}, rounds=3 if quick else 60
        )  # few percent need many rounds
    return [
        near.ratio("sparse", "floor", "step: sparse / floor", GOALS["floor"]),
        *(
            times.ratio("sparse", other, f"step: sparse / {other}", goal)
            for other, goal in GOALS.items()
            if other != "floor"
        ),
        *(
            (near if f"sparse at {density:.1%}" in NEAR else times).ratio(
                f"sparse at {density:.1%}", "floor", f"step: sparse at {density:.1%} / floor", goal
            )
            for density, goal in DENSITIES.items()
        ),
        *(
            times.ratio("sparse, fused", f"{name}, fused", f"step: sparse / {name}, fused AdamW")
            for name in FUSED
            if name != "sparse"
        ),
        *(times.milliseconds(name, f"step: {name}") for name in runs),
        *(Figure(f"weights that can move: {name}", runs[name].k) for name in VARIANTS),
    ]
