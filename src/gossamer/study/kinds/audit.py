"""audit: how many entries really change, of the base padded with what a method adds (Fu et al. 2023).

share   entries of the padded base that differ / all of them. A low-rank change is thought of as its two factors, which pad the
        base by r · (inputs + outputs) entries, and an added module as its weights; neither changes an entry of the base itself.
beyond  entries of weights without low-rank changes that differ and that the delta does not store: 0, or the file lies
"""

from __future__ import annotations

from gossamer.analyze.audit import audit
from gossamer.study.kinds.kind import Ask, Facts
from gossamer.study.kinds.trained import sizes, trained


def measure(ask: Ask) -> Facts:
    found = trained(ask)
    rows = audit(found.bench.model, found.delta)
    m, padded = sum(row.size for row in rows), sum(row.padded for row in rows)
    plain = [row for row in rows if not row.padded]
    differ = sum(row.differ for row in plain)
    beyond = sum(max(row.differ - row.stored, 0) for row in plain)
    values = {**sizes(found), "differ": sum(row.differ for row in rows), "stored": sum(row.stored for row in rows),
              "padded": padded, "share": (differ + padded) / (m + padded), "beyond": beyond}  # fmt: skip
    return Facts(values, facts={"metric": found.bench.task.metric, "eval": dict(found.result.scores)})
