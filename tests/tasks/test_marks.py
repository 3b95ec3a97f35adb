"""Spans are marked where they are, also where the data's indices are off; what is nowhere is an error."""

from __future__ import annotations

from typing import Any

import pytest

from gossamer.errors import BadData
from gossamer.tasks.classify import Classify
from gossamer.tasks.marks import PARTS, has_spans, marked
from gossamer.tasks.task import read_task
from tests.tiny import tokenizer


def table(text: str, *facts: Any, flat: bool = False) -> dict[str, list[Any]]:
    named = dict(zip(PARTS, facts, strict=True))
    return {"text": [text], **({n: [v] for n, v in named.items()} if flat else {"target": [named]})}


@pytest.mark.parametrize(
    ("text", "facts", "expected"),
    [
        ("He saw it , it ran .", ("He", 0, "it", 4), "* He * saw it , # it # ran ."),
        ("He saw it , it ran .", ("he", 0, "IT", 2), "* He * saw # it # , it ran ."),
        ("It hit its fit, it.", ("hit", 1, "it", 9), "It * hit * its fit, # it #."),  # off, and inside other words
        ("the old  man slept", ("The old man", 0, "old", 1), "* the # old #  man * slept"),  # nested spans
        ("it's (Ann's)", ("Ann", 1, "it", 0), "# it #'s (* Ann *'s)"),
    ],
)
@pytest.mark.parametrize("flat", [True, False])
def test_marks(text: str, facts: tuple[Any, ...], expected: str, flat: bool) -> None:
    data = table(text, *facts, flat=flat)
    assert has_spans(data)
    assert marked(data, "text") == [expected]


def test_bad_spans() -> None:
    with pytest.raises(BadData, match="row 1: the span 'Bob' is not in the text 'Ann saw it'"):
        marked(table("Ann saw it", "Bob", 0, "it", 2), "text")
    with pytest.raises(BadData, match="row 1: the index of a span is None"):
        marked(table("Ann saw it", "Ann", None, "it", 2), "text")
    with pytest.raises(BadData, match="row 1 names no two spans"):
        marked({"text": ["a"]}, "text")
    assert not has_spans({"text": ["a"], "target": [1]})


def test_classify_finds_them_and_tells_them_in_its_description() -> None:
    one = table("w1 w2 w3", "w1", 0, "w3", 2)
    data = {name: values * 2 for name, values in one.items()} | {"label": [True, False]}
    task = Classify.plan(data)
    assert (task.fields, task.label, task.spans) == (("text",), "label", True)
    assert read_task(task.describe()) == task
    assert tokenizer().decode(task.encode(tokenizer(), data)[0]["input_ids"]).split() == (
        ["[CLS]", "[UNK]", "w1", "[UNK]", "w2", "[UNK]", "w3", "[UNK]", "[SEP]"]
    )
