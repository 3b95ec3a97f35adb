"""One training step of MiniLM (forward, backward, AdamW, zero_grad), 16 × 64 tokens, density 0.5 %, beside other ways.

All ways use PyTorch's default AdamW without weight decay and train with dropout. Its fused form, which a transformers
Trainer picks by default, makes full fine-tuning cheaper and is reported beside it.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.common import VARIANTS, Figure, interleave, minilm, training

GOALS = {"full": 0.85, "floor": 1.35, "dense-mask": 0.75}


def measure(*, quick: bool = False) -> list[Figure]:
    """Step times of all ways, each on its own copy of the model, and that of `sparse` in ratio to the others."""
    with ExitStack() as stack:
        runs = {name: stack.enter_context(training(name, minilm())) for name in VARIANTS}
        for name in ("full", "sparse"):
            runs[f"{name}, fused"] = stack.enter_context(training(name, minilm(), fused=True))
        times = interleave(runs, rounds=3 if quick else 15, repeats=3)
    return [
        *(times.ratio("sparse", other, f"step: sparse / {other}", goal) for other, goal in GOALS.items()),
        times.ratio("sparse", "lora", "step: sparse / lora"),
        times.ratio("sparse, fused", "full, fused", "step: sparse / full, fused AdamW"),
        *(times.milliseconds(name, f"step: {name}") for name in runs),
    ]
