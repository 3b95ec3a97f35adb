"""One training step of MiniLM through the PEFT plug-in beside gossamer's own, 16 × 64 tokens, density 0.5 %, random support.

Both train their entries and the head with PyTorch's default AdamW and clip at norm 1. The plug-in targets what it does by
default: all linear layers, embeddings and norms of the backbone.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.common import DENSITY, Figure, Run, _adamw, batch, interleave, minilm, training


def measure(*, quick: bool = False) -> list[Figure]:
    """Step time of the plug-in in ratio to the native path."""
    from peft import get_peft_model

    from gossamer.interop.peft import GossamerConfig

    model = get_peft_model(minilm(), GossamerConfig(density=DENSITY, task_type="SEQ_CLS")).train()  # type: ignore[arg-type]
    trained = [p for p in model.parameters() if p.requires_grad]
    plugged = Run(model, _adamw(trained, False), {}, batch())
    with ExitStack() as stack:
        native = stack.enter_context(training("sparse", minilm()))
        times = interleave({"plug-in": plugged, "native": native}, rounds=3 if quick else 12, repeats=2)
    return [
        times.ratio("plug-in", "native", "step: PEFT plug-in / native", 1.05),
        times.milliseconds("plug-in", "step: PEFT plug-in"),
        times.milliseconds("native", "step: native"),
    ]
