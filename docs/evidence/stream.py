"""What tasks keep as others are added, with and without --avoid. Called by stream.sh; to be stopped and started again.

    python stream.py OUT NAME=DATA …            the tasks in their order; deltas in OUT/apart/ and OUT/free/

After each task the deltas so far are added and each task is scored with its own head. R[t][i] is the score of task i in the sum
of the first t; backward transfer is the mean over i < T of R[T][i] − R[i][i] (Lopez-Paz and Ranzato 2017).
Rows go to OUT/scores.jsonl as they are made.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gossamer as gs
from gossamer.cli.output import quiet
from gossamer.train.together import Together

ARMS = {"apart": "--avoid the earlier ones", "free": "chosen freely"}


def main(out: Path, given: list[str]) -> None:
    data = dict(one.split("=", 1) for one in given)
    names, store = list(data), out / "scores.jsonl"
    known = [json.loads(line) for line in store.read_text("utf-8").splitlines()] if store.exists() else []
    done = {(row["arm"], row["task"], row["of"]) for row in known}
    lines = []
    for arm in ARMS:
        together = Together({name: out / arm / f"{name}.safetensors" for name in names})
        with store.open("a", encoding="utf-8") as file:
            for at, name in enumerate(names):
                sums = [names[:t] for t in range(at + 1, len(names) + 1) if (arm, name, t) not in done]
                groups = [tuple(n for n in some if n != name) for some in sums]
                for some, kept in zip(sums, together.measure(name, data[name], groups) if sums else (), strict=True):
                    sign = -1 if kept.falling else 1
                    row = {"arm": arm, "task": name, "of": len(some), "metric": kept.metric, "sign": sign,
                           "examples": kept.examples, "alone": kept.alone.score, "score": kept.summed.score,
                           "loss_alone": kept.alone.loss, "loss": kept.summed.loss, "share_lost": kept.share}  # fmt: skip
                    print(json.dumps(row), file=file, flush=True)
                    known.append(row)
        lines += report(arm, names, [row for row in known if row["arm"] == arm])
        overlap = gs.interference(*together.deltas.values(), names=names)
        worst = max(overlap.pairs.values(), key=lambda met: met.jaccard)
        lines += ["", f"Largest overlap of two of these: {worst.jaccard:.3%}.", ""]
    table = "\n".join(lines)
    (out / "table.md").write_text(table, "utf-8")
    print(table)


def report(arm: str, names: list[str], rows: list[dict[str, Any]]) -> list[str]:
    at = {(row["task"], row["of"]): row for row in rows}
    many = len(names)
    lines = [f"### {ARMS[arm]}", "", "| task | alone | " + " | ".join(f"sum of {t}" for t in range(1, many + 1)) + " |",
             "|---" * (many + 2) + "|"]  # fmt: skip
    for i, name in enumerate(names):
        cells = [f"{at[name, t]['score']:.4f}" if t > i else "" for t in range(1, many + 1)]
        lines.append(f"| {name} | {at[name, many]['alone']:.4f} | " + " | ".join(cells) + " |")
    moved = [at[n, many]["sign"] * (at[n, many]["score"] - at[n, i + 1]["score"]) for i, n in enumerate(names[:-1])]
    kept = [at[n, many]["sign"] * (at[n, many]["score"] - at[n, many]["alone"]) for n in names]
    lines += ["", f"Backward transfer {sum(moved) / max(len(moved), 1):+.4f}; the sum of all against each alone, mean "
                  f"{sum(kept) / len(kept):+.4f}. Each by itself, switched, is what it was, bit for bit."]  # fmt: skip
    return lines


if __name__ == "__main__":
    quiet()
    main(Path(sys.argv[1]), sys.argv[2:])
