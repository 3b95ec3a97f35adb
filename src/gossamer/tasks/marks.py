"""Two marked spans of a text, as in the Winograd schemas (WSC of SuperGLUE): does the pronoun mean the noun?

    "* The dishwasher * … and turned # it # on."

The marks stand in the text itself, as in Raffel et al. 2020, since a span named after the text would not say which of
several "it" is meant, and a sequence classifier then needs no head of its own. A span is told by its text and the
index of its first word (words end at spaces). The data set's own indices are sometimes a word off and its letters of
another case: the occurrence nearest to the index is taken; a span that is nowhere in the text is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gossamer.errors import BadData
from gossamer.tasks.readers import Table, size

PARTS = ("span1_text", "span1_index", "span2_text", "span2_index")
MARKS = ("*", "#")


def has_spans(table: Table) -> bool:
    """Whether a table names two spans: in columns, or in objects of a column `target`."""
    return all(name in table for name in PARTS) or any(
        isinstance(value, Mapping) and all(name in value for name in PARTS) for value in table.get("target", [])[:1]
    )


def marked(table: Table, column: str) -> list[str]:
    """The texts of a column with both spans of each row marked.

    >>> marked({"text": ["Ann saw it ."], "target": [dict(zip(PARTS, ["Ann", 0, "it", 2]))]}, "text")
    ['* Ann * saw # it # .']
    """
    made = []
    for row in range(size(table)):
        text = table[column][row]
        if not isinstance(text, str):
            raise BadData(f"column {column!r}, row {row + 1} holds {text!r}; expected text")
        facts = _facts(table, row)
        places = [_place(text, facts[f"span{i}_text"], facts[f"span{i}_index"], row) for i in (1, 2)]
        # one span may lie in the other ("their mothers", "their"): its marks then stand inside
        opened = [(a, 1, a - b, f"{mark} ") for (a, b), mark in zip(places, MARKS, strict=True)]
        closed = [(b, 0, b - a, f" {mark}") for (a, b), mark in zip(places, MARKS, strict=True)]
        for at, _, _, mark in sorted(opened + closed, reverse=True):
            text = text[:at] + mark + text[at:]
        made.append(text)
    return made


def _facts(table: Table, row: int) -> Mapping[str, Any]:
    facts = (
        {name: table[name][row] for name in PARTS}
        if PARTS[0] in table
        else table.get("target", [None] * size(table))[row]
    )
    if not isinstance(facts, Mapping) or not all(name in facts for name in PARTS):
        raise BadData(f"row {row + 1} names no two spans ({', '.join(PARTS)}), as those of training do")
    return facts


def _place(text: str, span: Any, index: Any, row: int) -> tuple[int, int]:
    """Where a span starts and ends: of its occurrences, whole words first, the one nearest to word `index`."""
    try:
        wanted = int(index)
    except (TypeError, ValueError):
        raise BadData(
            f"row {row + 1}: the index of a span is {index!r}; expected the number of a word, from 0"
        ) from None
    words = r"\s+".join(map(re.escape, str(span).split()))
    for pattern in (rf"(?<!\w){words}(?!\w)", words) if words else ():
        found = [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)]
        if found:
            return min(found, key=lambda place: (abs(text[: place[0]].count(" ") - wanted), place))
    raise BadData(f"row {row + 1}: the span {span!r} is not in the text {text!r}; correct the span or the text")
