"""columns: real files' oddities are read, and what is wrong is said with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from gossamer.errors import BadData
from gossamer.tasks.columns import read as read_columns
from gossamer.tasks.lines import lines


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "d.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "words", "tags"),
    [
        ("a X\nb Y\n\nc X\n", [["a", "b"], ["c"]], [["X", "Y"], ["X"]]),
        ("\n\na X\n \t\n\n\nb Y", [["a"], ["b"]], [["X"], ["Y"]]),
        ("New York\tX\nb\tY\n", [["New York", "b"]], [["X", "Y"]]),
        ("a   X \nb\t Y\n", [["a", "b"]], [["X", "Y"]]),
        (b"\xef\xbb\xbfa X\r\nb Y\r\rc X\n", [["a", "b"], ["c"]], [["X", "Y"], ["X"]]),
        ("-DOCSTART- O\n\na X\n-DOCSTART- X\nb Y\n", [["a"], ["b"]], [["X"], ["Y"]]),
        ("\u00a0 X\n\u200b Y\nz\u2028z X\n", [["\u00a0", "\u200b", "z\u2028z"]], [["X", "Y", "X"]]),
        ("# id 7 here\na X\n# X\n\n# newdoc\n# X\nb Y\n", [["a", "#"], ["#", "b"]], [["X", "X"], ["X", "Y"]]),
        ("# text = a\n#\tX\na\tX\n", [["#", "a"]], [["X", "X"]]),
        ("#1 X\nb X\n\n#\n# #\nc X\n", [["#1", "b"], ["#", "c"]], [["X", "X"], ["#", "X"]]),
        ("# only a comment\n\na X\n", [["a"]], [["X"]]),
    ],
)
def test_sentences(tmp_path: Path, content: str | bytes, words: list[list[str]], tags: list[list[str]]) -> None:
    table = read_columns(written(tmp_path, content))
    assert table["words"] == words
    assert table["tags"] == tags
    assert [len(row) for row in table["_lines"]] == [len(row) for row in words]


def test_columns_between_and_lines(tmp_path: Path) -> None:
    table = read_columns(written(tmp_path, "EU NNP B-NP B-ORG\nsays VBZ B-VP O\n\nA DT B-NP O\n"))
    assert table["column_2"] == [["NNP", "VBZ"], ["DT"]]
    assert table["tags"] == [["B-ORG", "O"], ["O"]]
    assert table["_lines"] == [[1, 2], [4]]
    assert set(read_columns(written(tmp_path, "a\nb\n"))) == {"words", "_lines"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a X\nb\n", r"d.txt, line 2: 1 columns \(b\) where the lines before have 2"),
        ("a X\nb Y Z\n", "line 2: 3 columns"),
        ("a X\n# no comment here\n", "line 2: 4 columns"),
        ("a\tX\nNew York\n", "line 2: 1 columns"),
        ("a\tX\n\tY\n", "line 2: column 1 is empty"),
        (b"a X\ncaf\xe9 Y\n", "line 2: byte 0xe9 .*is not UTF-8"),
        ("a X\n".encode("utf-16"), "UTF-16"),
        ("", "no sentences"),
        ("# nothing\n# but comments\n\n-DOCSTART- O\n", "no sentences"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: str | bytes, says: str) -> None:
    with pytest.raises(BadData, match=says):
        read_columns(written(tmp_path, content))


def test_lines_are_numbered_as_editors_do(tmp_path: Path) -> None:
    assert list(lines(written(tmp_path, "a\r\n\r\nb\x0c\x85\rc"))) == [(1, "a"), (2, ""), (3, "b\x0c\x85"), (4, "c")]
    with pytest.raises(BadData, match="cannot be read"):
        list(lines(tmp_path / "none"))
