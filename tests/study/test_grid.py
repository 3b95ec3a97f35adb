"""What a user may write for methods and rates, and every mistake in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from gossamer.errors import BadPlan
from gossamer.study.grid import Entry, distinct, read_entries, read_rates
from gossamer.train.plan import Method, row_of


def test_methods_with_options() -> None:
    entries, mistakes = read_entries("full, random:per_tensor=true,lt-sft:rounds=2:l1=0.1:full_lr=2e-4")
    assert not mistakes
    assert [entry.row.name for entry in entries] == ["full", "random", "lt-sft"]
    assert entries[1].options == {"per_tensor": True}
    assert (entries[2].options, entries[2].settings) == ({"rounds": 2, "l1": 0.1}, {"full_lr": 2e-4})
    assert [entry.plain for entry in entries] == [True, False, False]


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


@dataclass(frozen=True)
class Twin(Method):
    twin: str = ""


def test_twins_are_listed_once() -> None:
    def entry(name: str, **options: Any) -> Entry:
        return Entry(name, replace(row_of("fisher"), name=name), options, {})

    first = entry("first")
    twin = replace(first, label="second", row=Twin(**{**vars(first.row), "name": "second"}, twin="first"))
    assert distinct([first, twin])[0] == [first]
    assert distinct([twin, first])[0] == [twin], "in any order"
    assert "same support as second" in distinct([twin, first])[1][0]
    assert distinct([twin]) == ([twin], [])
    other = replace(twin, options={"per_tensor": True})
    assert distinct([first, other]) == ([first, other], [])
