"""What a search for coefficients saw, as a picture: the score over one number, or over each two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gossamer.study.search import Point, best


def plot(points: Sequence[Point], over: Sequence[str], metric: str, falling: bool, path: Path) -> None:
    """Draws every trial: a line of scores for one searched name, coloured dots for each pair of more; the best is ringed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found, scores = best(points, falling), [score for _, score in points]
    pairs = [(a, b) for i, a in enumerate(over) for b in over[i + 1 :]]
    across = min(3, max(1, len(pairs)))
    down = -(-max(1, len(pairs)) // across)
    figure, axes = plt.subplots(down, across, figsize=(4.6 * across, 3.8 * down), squeeze=False, layout="constrained")
    for axis in axes.flat[max(1, len(pairs)) :]:
        axis.set_visible(False)
    if not pairs:
        (name,), axis = over, axes[0, 0]
        order = sorted(points, key=lambda point: point[0][name])
        axis.plot([at[name] for at, _ in order], [score for _, score in order], "o-", markersize=4, linewidth=0.8)
        axis.plot(found[0][name], found[1], "o", markersize=11, fillstyle="none", color="black")
        axis.set(xlabel=name, ylabel=metric)
    dots = None
    for axis, (a, b) in zip(axes.flat, pairs, strict=False):
        dots = axis.scatter([at[a] for at, _ in points], [at[b] for at, _ in points], c=scores, cmap="viridis", s=36)
        axis.plot(found[0][a], found[0][b], "o", markersize=11, fillstyle="none", color="black")
        axis.set(xlabel=a, ylabel=b)
    if dots is not None:
        figure.colorbar(dots, ax=list(axes.flat), label=metric)
    best_at = ", ".join(f"{name} = {number:.3g}" for name, number in found[0].items())
    figure.suptitle(f"{len(points)} trials; best {metric} {found[1]:.4f} at {best_at}", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)
