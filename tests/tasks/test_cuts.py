"""Inputs that are cut are counted, exactly where the tokenizer knows."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from gossamer.tasks.cuts import say_cut
from gossamer.tasks.task import plan_task
from tests.tiny import tokenizer


def test_one_that_just_fits_is_not_cut(caplog: pytest.LogCaptureFixture) -> None:
    encoded = tokenizer()(["w1 " * 6, "w1 " * 7, "w1"], truncation=True, max_length=8)  # two specials each
    with caplog.at_level(logging.WARNING, "gossamer"):
        assert say_cut(encoded, 8) == 1
    assert "1 of 3 inputs are longer than 8 tokens" in caplog.text


def test_a_slow_tokenizer_tells_what_fills_the_room(caplog: pytest.LogCaptureFixture) -> None:
    class Slow(dict[str, Any]):
        is_fast = False

    assert say_cut(Slow(input_ids=[[1] * 8, [1] * 7]), 8) == 1
    assert "1 of 2 inputs fill 8 tokens" in caplog.text
    assert say_cut(Slow(input_ids=[[1]]), 8) == 0
    assert say_cut(SimpleNamespace(is_fast=True, encodings=[]), 8) == 0


@pytest.mark.parametrize(
    ("task", "table"),
    [
        ("classify", {"premise": ["w1 " * 9, "w2"], "hypothesis": ["w3", "w4"], "label": ["x", "y"]}),
        ("choose", {"premise": ["w1 " * 9, "w2"], "choice1": ["w3", "w3"], "choice2": ["w4", "w5"], "label": [0, 1]}),
        ("embed", {"sentence1": ["w1 " * 9, "w2"], "sentence2": ["w3", "w4"], "score": [1.0, 0.5]}),
    ],
)
def test_tasks_say_what_they_cut(task: str, table: dict[str, list[Any]], caplog: pytest.LogCaptureFixture) -> None:
    plan_task(task, table, max_length=10).encode(tokenizer(), table)
    assert "longer than 10 tokens" in caplog.text
    caplog.clear()
    plan_task(task, table, max_length=16).encode(tokenizer(), table)
    assert not caplog.records
