"""columns: CoNLL column files: a token and its tags a line, a blank line between sentences.

The columns are separated by tabs or by spaces, as the first line has it: in a file with tabs a token may hold a space.
``-DOCSTART-`` lines are dropped and end a sentence. A line that begins with ``#`` is a comment where it cannot be a token:
before a sentence's first token, with another number of columns, or with a tag that no token of the file has. So the token
``#`` of ``# O`` stays one, and ``# newdoc`` does not become one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gossamer.errors import BadData
from gossamer.tasks.lines import lines
from gossamer.tasks.readers import Table

_SPACES = re.compile("[ \t]+")  # no others: a no-break space may be a token
Rows = list[tuple[int, tuple[str, ...]]]


def read(path: str | Path) -> Table:
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
    block: Rows = []
    blocks, tabs, width, tags, doubtful = [block], None, 0, {"#"}, set()
    for number, line in lines(path):
        stripped = line.strip(" \t")
        tabs = _tabbed(line) if tabs is None and stripped else tabs
        fields = line.rstrip(" \t").split("\t") if tabs else stripped.split(" ")
        if not tabs and ("" in fields or "\t" in stripped):
            fields = _SPACES.split(stripped)
        if not stripped or fields[0] == "-DOCSTART-":
            blocks.append(block := [])
            continue
        if line[0] == "#" and (not block or block[-1][0] in doubtful):  # settled when the tags of all tokens are known
            doubtful.add(number)
        else:
            width = width or len(fields)
            tags.add(fields[-1])
            if len(fields) != width or "" in fields:
                raise _wrong(path, number, fields, width)
        block.append((number, tuple(fields)))  # of tuples of text, unlike of lists, the collector lets go
    width = width or max((len(fields) for block in blocks for _, fields in block), default=0)
    for block in blocks if doubtful else ():
        sharp = sum(number in doubtful for number, _ in block)
        token = [len(fields) == width and (width == 1 or fields[-1] in tags) for _, fields in block[:sharp]]
        begin = token.index(True) if True in token else sharp
        for number, fields in block[begin:sharp]:
            if len(fields) != width or "" in fields:
                raise _wrong(path, number, fields, width)
        del block[:begin]
    if not any(blocks):
        raise BadData(f"{path} has no sentences; expected a token and its tags a line, a blank line between sentences")
    return [block for block in blocks if block]


def _wrong(path: str | Path, number: int, fields: Sequence[str], width: int) -> BadData:
    if len(fields) != width:
        return BadData(
            f"{path}, line {number}: {len(fields)} columns ({' | '.join(fields)[:60]}) where the lines before have {width}; "
            "expected a token and its tags, separated by tabs or spaces, a blank line between sentences"
        )
    return BadData(f"{path}, line {number}: column {fields.index('') + 1} is empty; expected a token and its tags")


def _tabbed(line: str) -> bool | None:
    """Whether the columns are separated by tabs; a comment says nothing."""
    if "\t" in line.strip("\t "):
        return True
    return None if line.startswith("#") else False
