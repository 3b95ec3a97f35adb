"""storage: bytes of one base with N deltas, against N models (Guo et al. 2021).

share  (base + N · delta) / (N · base), the base in the two bytes a weight that its bf16 file has, the delta as its file is;
       N is `models`. The head is in the delta and in none of the models, which favours the models.
"""

from __future__ import annotations

from gossamer.delta.base import base_parameters
from gossamer.errors import BadPlan
from gossamer.study.kinds.kind import Ask, Facts
from gossamer.study.kinds.trained import sizes, trained


def measure(ask: Ask) -> Facts:
    n = ask.measure["models"]
    if n < 1:
        raise BadPlan(f"measure.models={n}: expected 1 or more")
    found = trained(ask)
    base = sum(2 * p.numel() for p in base_parameters(found.bench.model).values())
    delta = found.result.nbytes
    together = base + n * delta
    values = {**sizes(found), "base_bytes": base, "together_bytes": together, "models_bytes": n * base,
              "share": together / (n * base), "delta_share": delta / base}  # fmt: skip
    counts = [1, 2, 5, 10, 20, 50, 100]
    return Facts(values, {"share by models": [(base + one * delta) / (one * base) for one in counts]},
                 {"metric": found.bench.task.metric, "models": counts, "eval": dict(found.result.scores)})  # fmt: skip
