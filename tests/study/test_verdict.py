"""Verdicts on made-up cells: each rule, directions, averaging over tasks, reducing over rates, seeds that lack a cell."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from gossamer.study.spec import Compare, Grid, Study
from gossamer.study.tabulate import cost_table, difference_table, score_table, tabulated
from gossamer.study.verdict import describe, judge
from gossamer.study.wanted import Planned, Wanted
from gossamer.train.config import FitConfig

CONFIG = FitConfig(base="b", train="t", out=Path("x.safetensors"), lr=0.1)
SCORES = [0.5, 0.7, 0.6, 0.9]


def cell(value: float | None, seed: int, **axes: Any) -> Wanted:
    at = {
        "base": "b",
        "task": "cb",
        "method": "full",
        "density": None,
        "rate": "x1",
        "size": None,
        **axes,
        "seed": seed,
    }
    record = None if value is None else {"values": {"score": value, "seconds": 1.0, "cpu_seconds": 1.0}, "versions": {},
                                         "machine": {}, "config": {"lr": 0.1}}  # fmt: skip
    return Wanted(repr(sorted(at.items(), key=str)), at, CONFIG, None, record=record)


def study(*compare: dict[str, Any], seeds: int = 4) -> Study:
    grid = Grid(base=["b"], method=["full", "random"], seed=seeds)
    return Study(Path("s.yaml"), None, None, "train", {}, grid, {}, {}, tuple(Compare(**one) for one in compare))


def sides(a: list[float | None], b: list[float | None], **axes: Any) -> list[Wanted]:
    return [cell(v, i, method=m, **axes) for m, some in (("random", a), ("full", b)) for i, v in enumerate(some)]


BEATS = {"subject": "random", "control": "full"}


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8))
def test_the_interval_against_its_formula(pairs: list[tuple[float, float]]) -> None:
    found = judge(study(BEATS), sides([a for a, _ in pairs], [b for _, b in pairs]))
    assert found is not None
    one = found.compares[0][1][0].found
    assert one is not None
    d = [a - b for a, b in pairs]
    assert one.mean == pytest.approx(fmean(d), abs=1e-12)
    if stdev(d) > 1e-9:
        half = t.ppf(0.975, len(d) - 1) * stdev(d) / math.sqrt(len(d))
        assert one.low == pytest.approx(one.mean - half)
        assert found.word == ("holds" if one.mean > half else "does not" if one.mean < -half else "cannot tell")


def word(*compare: dict[str, Any], cells: list[Wanted]) -> str:
    found = judge(study(*compare), cells)
    assert found is not None
    return found.word


def test_each_rule_and_both_directions() -> None:
    better = sides([v + 0.3 + 0.01 * i for i, v in enumerate(SCORES)], list(SCORES))
    near = sides([v - 0.01 + 0.001 * i for i, v in enumerate(SCORES)], list(SCORES))
    assert word(BEATS, cells=better) == "holds"
    assert word({**BEATS, "better": "smaller"}, cells=better) == "does not"
    assert word(BEATS, cells=near) == "does not", "below 0, and so below any claim"
    assert word({**BEATS, "says": "matches", "least": 0.05}, cells=near) == "holds"
    assert word({**BEATS, "says": "matches", "least": 0.001}, cells=near) == "does not"
    assert word({**BEATS, "says": "always", "least": 0.2}, cells=better) == "holds"
    assert word({**BEATS, "says": "always", "least": 0.31}, cells=better) == "does not"
    constant = {"subject": "random", "constant": 0.75, "says": "always"}
    assert word(constant, cells=better) == "holds"
    assert word({**constant, "better": "smaller"}, cells=better) == "does not"
    assert word(BEATS, {"subject": "full", "control": "random"}, cells=better) == "does not", "all must hold"
    assert judge(study(), better) is None
    mean = judge(study({**BEATS, "says": "matches", "least": 0.05}), near)
    assert mean and mean.compares[0][1][0].found and mean.compares[0][1][0].found.mean == pytest.approx(-0.0085)


def test_tasks_are_averaged_and_a_seed_that_lacks_one_does_not_count() -> None:
    cells = sides(list(SCORES), [0.1] * 4, task="cb") + sides([0.2, 0.1, None, 0.3], [0.3, 0.3, 0.2, 0.2], task="rte")
    found = judge(study(BEATS), cells)
    assert found is not None
    assert found.missing == 1
    one = found.compares[0][1][0]
    assert one.a == {0: pytest.approx(0.35), 1: pytest.approx(0.4), 3: pytest.approx(0.6)}
    assert one.found and one.found.n == 3
    facts = tabulated(study(BEATS), Planned(cells, 0), ["remark"])
    wheres = [d["where"] for d in facts["verdict"]["compares"][0]["differences"]]
    assert wheres == ["", "task=cb", "task=rte"]
    assert (facts["cells"], facts["done"], facts["missing"]) == (16, 15, 1)
    for made in (score_table(facts), difference_table(facts), cost_table(facts)):
        columns, rows = made
        assert rows and all(len(row) == len(columns) for row in rows)
    assert any("no number yet" in note for note in facts["notes"])


def test_reduced_over_rates() -> None:
    cells = []
    for i, rate in enumerate(["x0.3", "x1", "x3"]):
        small, large = (
            [0.5 + 0.01 * i * (1 + s) for s in range(4)],
            [0.5 + 0.2 * i + 0.01 * i * s * s for s in range(4)],
        )
        cells += sides(small, large, rate=rate)  # type: ignore[arg-type]
    compare = {**BEATS, "better": "smaller", "reduce": {"axis": "rate", "by": "sd"}}
    found = judge(study(compare), cells)
    assert found and found.word == "holds"
    assert found.compares[0][1][0].a[1] == pytest.approx(stdev([0.5, 0.52, 0.54]))
    assert "sd over rate of score; smaller is better" in describe(Compare(**compare), "score")


def test_an_axis_that_means_nothing_to_a_method_does_not_exclude_it() -> None:
    cells = [cell(v + 0.3 + i / 99, i, method="random", density=d) for d in (0.1, 0.5) for i, v in enumerate(SCORES)]
    cells += [cell(v, i, method="full") for i, v in enumerate(SCORES)]
    found = judge(study({**BEATS, "at": {"density": 0.5}}), cells)
    assert found and found.word == "holds" and found.missing == 0
