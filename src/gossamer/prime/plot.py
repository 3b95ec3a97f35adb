"""The losses of a priming as a picture: for each task, support before and after the inner loop, and query."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gossamer.errors import BadPlan


def plot(history: list[dict[str, Any]], path: Path) -> None:
    """Writes a panel a task; one that was always skipped stays empty. Raises BadPlan where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise BadPlan("the plot needs matplotlib; install it with: pip install 'gossamer[cli]'") from None
    tasks = sorted({row["task"] for row in history})
    figure = Figure(figsize=(max(3.2 * len(tasks), 4.0), 3.0), layout="constrained")
    panels = figure.subplots(1, max(len(tasks), 1), squeeze=False, sharey=True)[0]
    for panel, task in zip(panels, tasks, strict=False):
        rows = [row for row in history if row["task"] == task and row["query"] is not None]
        steps = [row["step"] + 1 for row in rows]
        if rows and rows[0]["support"]:
            panel.plot(steps, [row["support"][0] for row in rows], label="support, first inner step", lw=1)
            panel.plot(steps, [row["support"][-1] for row in rows], label="support, last", lw=1)
        panel.plot(steps, [row["query"] for row in rows], label="query", lw=1)
        panel.set(title=task, xlabel="outer step")
    panels[0].set_ylabel("loss")
    if drawn := [panel for panel in panels if panel.lines]:
        drawn[0].legend(fontsize="small")
    figure.savefig(path, format="png", dpi=120)
