"""A whole LT-SFT run on MiniLM at density 0.5 %: `gossamer.fit` beside the paper's own code, at equal steps and settings.

The reference is a checkout of composable-sft, whose path is in the environment variable COMPOSABLE_SFT; without it there
is nothing to measure. Its trainer is run as it is, but for one method that today's transformers calls with other
arguments and that only logs, for which Trainer's own stands in. Both train with one transformers Trainer (AdamW,
clipping at 1, a linear schedule), LayerNorm left out, on the same examples: 16 × 64 random tokens of which some tell
the label. Trainers of the reference's time had no fused AdamW; today's has it by default, which makes dense steps
cheaper, and is measured beside. `rest` is what is not training: attaching, choosing k of all weights, and taking
the difference. It is the same for a run of any length, so that a long run tends to the ratio of `training`.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

import gossamer as gs
from benchmarks.common import DENSITY, Figure, minilm

CHECKOUT = "COMPOSABLE_SFT"
STEPS = {"1:1": (24, 24), "3:10": (9, 30), "1:1, fused AdamW": (24, 24)}  # phases → their steps
GOALS = {"1:1": 0.80, "3:10": 0.70}
RATES = (2e-4, 4e-3)  # of the phases: k values want a larger one than all


def measure(*, quick: bool = False) -> list[Figure]:
    """Whole runs, one after the other, in turns; scores on fresh examples beside them."""
    folder = os.environ.get(CHECKOUT)
    if not folder:
        print(f"lt_sft left out: {CHECKOUT} is not set to a checkout of composable-sft", file=sys.stderr)
        return []
    logging.getLogger("gossamer").setLevel(logging.ERROR)
    figures = []
    for i, (phases, steps) in enumerate(STEPS.items()):
        steps = tuple(max(2, s // 5) for s in steps) if quick else steps
        runs: list[tuple[str, Callable[..., Any]]] = [("ours", ours), ("reference", _reference_of(Path(folder)))]
        optimizer = "adamw_torch_fused" if "fused" in phases else "adamw_torch"
        found = {name: _run(run, steps, optimizer) for name, run in (runs[::-1] if i % 2 else runs)}
        a, b = found["ours"], found["reference"]
        figures += [
            Figure(f"{phases}: ours / reference", a["whole"] / b["whole"], "×", GOALS.get(phases)),
            Figure(f"{phases}: training, ours / reference", a["training"] / b["training"], "×"),
            *(
                Figure(f"{phases}: phase {p + 1}, ours / reference", a["phases"][p] / b["phases"][p], "×")
                for p in (0, 1)
            ),
            *(
                Figure(f"{phases}: {what}, {name}", found[name][what], "s")
                for what in ("whole", "rest")
                for name in found
            ),
            *(
                Figure(f"{phases}: {what}, {name}", found[name][what])
                for what in ("accuracy", "loss")
                for name in found
            ),
            *(Figure(f"{phases}: weights that moved, {name}", found[name]["moved"]) for name in found),
        ]
    return figures


class Examples(Dataset):
    """Random tokens; a quarter of them, at random places, are among the four words of their label."""

    def __init__(self, count: int, seed: int, tokens: int = 64) -> None:
        draw = np.random.default_rng(seed)
        self.labels = draw.integers(0, 2, count)
        self.ids = draw.integers(3000, 30522, (count, tokens))
        words = 2000 + 2 * draw.integers(0, 4, (count, tokens)) + self.labels[:, None]
        self.ids = np.where(draw.random((count, tokens)) < 0.25, words, self.ids)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": self.ids[i], "attention_mask": np.ones_like(self.ids[i]), "labels": int(self.labels[i])}


def ours(
    steps: tuple[int, ...], optimizer: str, folder: str, spent: list[float]
) -> tuple[nn.Module, Callable[[], Any], int]:
    """The run through `gossamer.fit`; (model, what makes it the tuned one, number of weights that moved)."""
    model, data = minilm(), Examples(16 * 128, seed=0)
    trainer = _timed(spent)

    def factory(model: nn.Module, phase: Any) -> Any:
        return trainer(model=model, args=arguments(folder, steps[phase.index], optimizer), train_dataset=data)

    delta = gs.fit(model, "lt-sft", density=DENSITY, trainer=factory, values="fp32")
    return model, lambda: gs.applied(model, delta), delta.k


def _reference_of(checkout: Path) -> Callable[..., Any]:
    sys.path.insert(0, str(checkout / "src"))
    try:
        sft = importlib.import_module("sft")
    finally:
        sys.path.pop(0)

    def reference(
        steps: tuple[int, ...], optimizer: str, folder: str, spent: list[float]
    ) -> tuple[nn.Module, Callable[[], Any], int]:
        from contextlib import nullcontext

        from transformers import Trainer

        model: Any = minilm()
        k = int(sum(p.numel() for p in model.base_model.parameters()) * DENSITY)
        for name, parameter in model.named_parameters():  # as its scripts do with --freeze_layer_norm
            parameter.requires_grad_("LayerNorm" not in name)
        prefix = model.base_model_prefix
        chosen = [n for n, p in model.named_parameters() if n.startswith(prefix) and p.requires_grad]

        class Reference(sft.LotteryTicketSparseFineTuner(_timed(spent))):
            _maybe_log_save_evaluate = Trainer._maybe_log_save_evaluate

        trainer = Reference(
            sft_args=sft.SftArguments(
                ft_params_num=k, full_ft_max_steps_per_iteration=steps[0], sparse_ft_max_steps_per_iteration=steps[1]
            ),
            maskable_params=chosen,
            model=model,
            args=arguments(folder, 1, optimizer),
            train_dataset=Examples(16 * 128, seed=0),
        )
        trainer.train()
        moved = sum(diff._nnz() for diff in trainer.sft().diffs.values())
        return model, nullcontext, moved

    return reference


def arguments(folder: str, steps: int, optimizer: str) -> Any:
    """The settings that both have."""
    from transformers import TrainingArguments

    return TrainingArguments(folder, max_steps=steps, per_device_train_batch_size=16, optim=optimizer, use_cpu=True,
                             save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
                             dataloader_pin_memory=False, seed=0)  # fmt: skip


def _timed(spent: list[float]) -> type:
    """A Trainer that adds the seconds of each training to `spent`, and trains each phase at its rate."""
    from transformers import PrinterCallback, Trainer

    class Timed(Trainer):
        def train(self, *args: Any, **kwargs: Any) -> Any:
            self.args.learning_rate = RATES[len(spent)]
            self.remove_callback(PrinterCallback)
            start = time.perf_counter()
            try:
                return super().train(*args, **kwargs)
            finally:
                spent.append(time.perf_counter() - start)

    return Timed


def _run(run: Callable[..., Any], steps: tuple[int, ...], optimizer: str) -> dict[str, Any]:
    spent: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        model, tuned, moved = run(steps, optimizer, folder, spent)
        whole = time.perf_counter() - start
    with tuned():
        accuracy, loss = _score(model)
    return {"whole": whole, "training": sum(spent), "phases": spent, "rest": whole - sum(spent), "moved": moved,
            "accuracy": accuracy, "loss": loss}  # fmt: skip


@torch.no_grad()
def _score(model: nn.Module) -> tuple[float, float]:
    fresh, right, loss = Examples(256, seed=1), 0, 0.0
    model.eval()
    for at in range(0, len(fresh), 32):
        labels = torch.from_numpy(fresh.labels[at : at + 32])
        out = model(input_ids=torch.from_numpy(fresh.ids[at : at + 32]), labels=labels)
        right += int((out.logits.argmax(-1) == labels).sum())
        loss += float(out.loss) * len(labels)
    return right / len(fresh), loss / len(fresh)
