"""A picture of interference: what each delta is predicted to lose by each other, and where in the base pairs meet."""

from __future__ import annotations

from pathlib import Path

from gossamer.analyze.interference import Interference


def plot(found: Interference, path: Path) -> None:
    """Writes the matrix of predicted losses, and lines by layer: overlap beside chance, sign conflicts, cosine."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    names = found.names
    grid = np.array([[np.nan if a == b else found.loss(a, b) for b in names] for a in names])
    layers = list(next(iter(found.layers.values())))
    figure, axes = plt.subplots(1, 4, figsize=(6 + 4 * 3.2, 2.6 + 0.3 * max(len(names), 6)), layout="constrained")
    shown = np.where(np.isfinite(grid), grid, np.nan)
    image = axes[0].imshow(shown, cmap="magma_r", vmin=0)
    axes[0].set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_xlabel("by adding")
    axes[0].set_title("predicted loss, share of the gain", loc="left")
    top = np.nanmax(shown) if np.isfinite(shown).any() else 0.0
    for i, j in np.argwhere(np.isfinite(shown)):
        dark = shown[i, j] > top / 2
        axes[0].text(j, i, f"{shown[i, j]:.2f}", ha="center", va="center", color="white" if dark else "black")
    figure.colorbar(image, ax=axes[0], shrink=0.7)
    for pair, there in found.layers.items():
        met = [there[layer] for layer in layers]
        label = " + ".join(pair)
        (line,) = axes[1].plot([100 * m.jaccard for m in met], marker=".", label=label)
        axes[1].plot([100 * m.chance for m in met], linestyle=":", color=line.get_color())
        axes[2].plot([100 * m.conflict if m.shared else np.nan for m in met], marker=".", label=label)
        axes[3].plot([m.cosine for m in met], marker=".", label=label)
    axes[2].axhline(50, color="gray", linewidth=0.8, linestyle=":")
    axes[3].axhline(0, color="gray", linewidth=0.8, linestyle=":")
    axes[2].set_ylim(-3, 103)
    titles = ("overlap in % (dotted: by chance)", "sign conflicts in % of the overlap", "cosine")
    for axis, title in zip(axes[1:], titles, strict=True):
        axis.set_title(title, loc="left")
        axis.set_xticks(range(len(layers)), [layer.removeprefix("layer ") for layer in layers], rotation=60, fontsize=8)
    axes[1].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)
