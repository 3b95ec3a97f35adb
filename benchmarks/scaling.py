"""Cost of a training step of BERT shapes against k, tokens and model size: `sparse` beside `floor` and `full`.

A sparse step should cost the floor's and something linear in k, and never more than a dense one. Random weights, 64
tokens a sequence (one shorter where there are fewer), AdamW and clipping as in `step`. Each axis is measured on its own,
its ways in turn in one process; the others stand at MiniLM's shape, 16 × 64 tokens, density 0.5 %.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.common import DENSITY, Figure, Run, Times, batch, interleave, training

DENSITIES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
TOKENS = (128, 256, 512, 1024, 2048, 4096)
SHAPES = (  # hidden size, layers: BERT tiny, mini, MiniLM, medium, base
    (128, 2),
    (256, 4),
    (384, 6),
    (512, 8),
    (768, 12),
)
WAYS = ("floor", "full", "sparse")
AXES = ("density", "tokens", "weights")


def measure(*, quick: bool = False) -> list[Figure]:
    """Times on the three axes, the fit in k and the worst ratio to a dense step."""
    rounds = 2 if quick else 5
    return [*_summary(found := [*_against_k(rounds, quick), *_against_tokens(rounds, quick), *_against_size(rounds, quick)]),
            *found]  # fmt: skip


def bert(hidden: int, layers: int) -> nn.Module:
    """A BERT classifier of a shape, random weights."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=hidden // 32,
                                     intermediate_size=4 * hidden, num_labels=2)  # fmt: skip
    return transformers.BertForSequenceClassification(config)


def _against_k(rounds: int, quick: bool) -> list[Figure]:
    densities = DENSITIES[::4] if quick else DENSITIES
    with ExitStack() as stack:
        runs = {way: stack.enter_context(training(way, bert(384, 6))) for way in ("floor", "full")}
        for density in densities:
            runs[_at("density", density)] = stack.enter_context(training("sparse", bert(384, 6), density=density))
        times = interleave(runs, rounds=rounds, repeats=2, warmup=1)
    figures = []
    for density in densities:
        seconds = {way: times.seconds[way] for way in ("floor", "full")}
        seconds["sparse"] = times.seconds[_at("density", density)]
        figures += _figures(Times(seconds), "density", density)
    return figures


def _against_tokens(rounds: int, quick: bool) -> list[Figure]:
    with ExitStack() as stack:
        runs = {way: stack.enter_context(training(way, bert(384, 6))) for way in WAYS}
        figures = []
        for tokens in TOKENS[:4:3] if quick else TOKENS:
            data = batch(examples=max(1, tokens // 64), tokens=min(tokens, 64))
            here = {way: replace(run, data=data) for way, run in runs.items()}
            figures += _figures(interleave(here, rounds=rounds, warmup=1), "tokens", tokens)
    return figures


def _against_size(rounds: int, quick: bool) -> list[Figure]:
    figures = []
    for shape in SHAPES[:3:2] if quick else SHAPES:
        with ExitStack() as stack:
            runs: Mapping[str, Run] = {way: stack.enter_context(training(way, bert(*shape))) for way in WAYS}
            weights = sum(p.numel() for p in runs["full"].model.parameters())
            figures += _figures(interleave(runs, rounds=rounds, warmup=1), "weights", weights)
        del runs
        gc.collect()
    return figures


def _figures(times: Times, axis: str, value: float) -> list[Figure]:
    at = _at(axis, value)
    return [times.ratio("sparse", "floor", f"{at}: sparse / floor"), times.ratio("sparse", "full", f"{at}: sparse / full"),
            *(times.milliseconds(way, f"{at}: {way}") for way in WAYS)]  # fmt: skip


def _at(axis: str, value: float) -> str:
    return f"{axis} {value:.2%}" if axis == "density" else f"{axis} {value:,.0f}"


def _summary(figures: Sequence[Figure]) -> list[Figure]:
    points = points_of(figures)["density"]
    k = np.array([x for x, _ in points])
    extra = np.array([ms["sparse"] - ms["floor"] for _, ms in points])
    slope, start = np.polyfit(k, extra, 1)
    residue = float(np.square(extra - slope * k - start).sum() / np.square(extra - extra.mean()).sum())
    worst = max(figure.measured for figure in figures if figure.name.endswith("sparse / full"))
    return [
        Figure("no step worse than dense: the largest sparse / full", worst, "×", 1.0),
        Figure("linear in k: 1 − R² of (sparse − floor)", residue, "", 0.05),
        Figure("linear in k: a step more for each 1 % of the weights", slope / 100, "ms"),
    ]


def points_of(figures: Sequence[Figure]) -> dict[str, list[tuple[float, dict[str, float]]]]:
    """axis → [(place on it, milliseconds of each way)]; densities as shares."""
    found: dict[str, dict[float, dict[str, float]]] = {axis: {} for axis in AXES}
    for figure in figures:
        at, _, way = figure.name.partition(": ")
        axis, _, value = at.partition(" ")
        if way in WAYS and axis in AXES:
            share = float(value.strip("%").replace(",", "")) / (100 if value.endswith("%") else 1)
            found[axis].setdefault(share, {})[way] = figure.measured
    return {axis: sorted(points.items()) for axis, points in found.items()}


def draw(figures: Sequence[Figure], out: Path) -> None:
    """Writes scaling.png: milliseconds a step on the three axes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = {"density": "share of weights that train", "tokens": "tokens a step", "weights": "weights of the model"}
    colors = {"floor": "tab:gray", "full": "tab:red", "sparse": "tab:blue"}
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    for axis, plot in zip(AXES, axes, strict=True):
        points = points_of(figures)[axis]
        for way in WAYS:
            plot.plot(
                [x for x, _ in points], [ms[way] for _, ms in points], "o-", color=colors[way], label=way, markersize=4
            )
        if axis == "density":  # linear, to show whether the cost is
            plot.set_ylim(bottom=0)
        else:
            plot.set_xscale("log")
            plot.set_yscale("log")
        plot.set_xlabel(labels[axis] + ("" if axis == "density" else f" (density {DENSITY:.1%})"))
        plot.grid(alpha=0.3)
    axes[0].set_ylabel("milliseconds a step")
    axes[0].legend()
    figure.savefig(out / "scaling.png", dpi=130)
    plt.close(figure)
