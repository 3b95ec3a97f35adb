"""columns: CoNLL column files: a token and its tags a line, a blank line between sentences.

The columns are separated by tabs or by spaces, as the first line has it: in a file with tabs a token may hold a space.
``-DOCSTART-`` lines are dropped and end a sentence. A line that begins with ``#`` is a comment where it cannot be a token:
before a sentence's first token, with another number of columns, or with a tag that no token of the file has. So the token
``#`` of ``# O`` stays one, and ``# newdoc`` does not become one.
"""

from __future__ import annotations

import re
from pathlib import Path

from gossamer.errors import BadData
from gossamer.tasks.lines import lines
from gossamer.tasks.readers import Table

_SPACES = re.compile("[ \t]+")  # no others: a no-break space may be a token
Rows = list[tuple[int, list[str]]]


def read_columns(path: str | Path) -> Table:
    """One row a sentence: `words` (first column), `tags` (last), `column_2`, … (those between), `_lines` (of each word).

    A file of one column has no `tags`.

    Raises:
        BadData: lines with different numbers of columns, a column that is empty (with file and line), no sentence.
    """
    sentences = _sentences(path)
    width = len(sentences[0][0][1])
    names = ["words", *(f"column_{i}" for i in range(2, width)), *(["tags"] if width > 1 else [])]
    table: Table = {
        name: [[fields[i] for _, fields in sentence] for sentence in sentences] for i, name in enumerate(names)
    }
    return {**table, "_lines": [[number for number, _ in sentence] for sentence in sentences]}


def _sentences(path: str | Path) -> list[Rows]:
    blocks: list[Rows] = [[]]
    tabs, width, tags, doubtful = None, 0, {"#"}, set()
    for number, line in lines(path):
        if not line.strip(" \t"):
            blocks.append([])
            continue
        tabs = _tabbed(line) if tabs is None else tabs
        fields = line.rstrip("\t ").split("\t") if tabs else _SPACES.split(line.strip(" \t"))
        if fields[0] == "-DOCSTART-":
            blocks.append([])
            continue
        sharp = line.startswith("#")
        if not sharp:
            width = width or len(fields)
            tags.add(fields[-1])
        elif all(n in doubtful for n, _ in blocks[-1]):  # nothing but such lines before it in its block
            doubtful.add(number)
        if not sharp and len(fields) != width:
            raise _ragged(path, number, fields, width)
        blocks[-1].append((number, fields))
    width = width or max((len(fields) for block in blocks for _, fields in block), default=0)
    kept = []
    for block in blocks:
        rows: Rows = []
        for number, fields in block:
            whole = len(fields) == width
            if number in doubtful and not (whole and (width == 1 or fields[-1] in tags)):
                if rows:  # a comment between tokens: what precedes it was a token after all
                    raise _ragged(path, number, fields, width)
                continue
            if not whole:
                raise _ragged(path, number, fields, width)
            if empty := [i + 1 for i, field in enumerate(fields) if not field]:
                raise BadData(f"{path}, line {number}: column {empty[0]} is empty; expected a token and its tags")
            rows.append((number, fields))
        if rows:
            kept.append(rows)
    if not kept:
        raise BadData(f"{path} has no sentences; expected a token and its tags a line, a blank line between sentences")
    return kept


def _tabbed(line: str) -> bool | None:
    """Whether the columns are separated by tabs; a comment says nothing."""
    if "\t" in line.strip("\t "):
        return True
    return None if line.startswith("#") else False


def _ragged(path: str | Path, number: int, fields: list[str], width: int) -> BadData:
    return BadData(
        f"{path}, line {number}: {len(fields)} columns ({' | '.join(fields)[:60]}) where the lines before have {width}; "
        "expected a token and its tags, separated by tabs or spaces, a blank line between sentences"
    )
