"""What a user may write for methods and rates, and every mistake in it."""

from __future__ import annotations

import pytest

from gossamer.errors import BadPlan
from gossamer.study.grid import distinct, read_entries, read_rates
from gossamer.train.plan import row_of


def test_methods_with_options() -> None:
    entries, mistakes = read_entries("full, random:per_tensor=true,lt-sft:rounds=2:l1=0.1:full_lr=2e-4")
    assert not mistakes
    assert [entry.row.name for entry in entries] == ["full", "random", "lt-sft"]
    assert entries[1].options == {"per_tensor": True}
    assert (entries[2].options, entries[2].settings) == ({"rounds": 2, "l1": 0.1}, {"full_lr": 2e-4})


def test_every_mistake_of_methods() -> None:
    _, mistakes = read_entries("magic,random:colour=2,lt-sft:rounds,lt-sft:rounds=0,,full,full,lt-sft:l1=1:l1=2")
    said = "\n".join(mistakes)
    for part in ("'magic'", "no option 'colour'", "'rounds' is no option", "rounds=0", "unknown method ''",
                 "full is listed twice", "l1 is given twice"):  # fmt: skip
        assert part in said


def test_rates() -> None:
    lt_sft = row_of("lt-sft")
    assert read_rates("x0.3, x1,x3").of(lt_sft) == [0.0012, 0.004, 0.012]
    assert read_rates("1e-3,3e-3").of(lt_sft) == [0.001, 0.003]
    for bad in ("", "x1,2", "x0", "-1", "fast", "1,1", "x", "inf", "x1,,x2"):
        with pytest.raises(BadPlan, match="lr_grid"):
            read_rates(bad)


def test_each_distinct_support_is_listed_once() -> None:
    def kept(methods: str) -> list[str]:
        entries, mistakes = read_entries(methods)
        assert not mistakes
        return [entry.label for entry in distinct(entries)[0]]

    assert kept("gradient,sam,random") == ["gradient", "random"]
    assert kept("sam,gradient") == ["sam"], "in any order"
    assert kept("gradient,sam:curvature=identity:probes=3") == ["gradient"]
    assert kept("gradient,sam:curvature=hutchinson,sam") == ["gradient", "sam:curvature=hutchinson"]
    assert kept("fisher:per=batch,child-d,child-d:per=batch") == ["fisher:per=batch", "child-d"]
    assert kept("fisher,child-d:per_tensor=true") == ["fisher", "child-d:per_tensor=true"]
    assert "same support as gradient" in distinct(read_entries("gradient,sam")[0])[1][0]
