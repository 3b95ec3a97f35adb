"""lines: the same for every way of ending a line, with the numbers that an editor shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import BadData
from gossamer.tasks.lines import lines

PIECES = st.lists(st.sampled_from(["a", "é", "\u2028", "\n", "\r\n", "\r", "\r"]), min_size=1, max_size=12)


@given(PIECES, st.booleans())
def test_any_line_ends(tmp_path_factory: pytest.TempPathFactory, pieces: list[str], mark: bool) -> None:
    content = "".join(pieces)
    path = tmp_path_factory.mktemp("lines") / "f.txt"
    path.write_bytes(b"\xef\xbb\xbf" * mark + content.encode())
    expected = content.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n")
    assert list(lines(path)) == list(enumerate(expected, start=1))


def test_separators_of_unicode_and_empty_files(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes("a\u2028b\x0bc\x85d\n\n\r\n".encode())
    assert list(lines(tmp_path / "f")) == [(1, "a\u2028b\x0bc\x85d"), (2, ""), (3, "")]
    (tmp_path / "f").write_bytes(b"")
    assert list(lines(str(tmp_path / "f"))) == []
    (tmp_path / "f").write_bytes(b"\xef\xbb\xbf")
    assert "".join(text for _, text in lines(tmp_path / "f")) == ""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            b"a\r\nb\rcaf\xe9\n",
            r"line 3: byte 0xe9 \(byte 9 of the file\) is not UTF-8; perhaps Latin-1, where it is 'é'",
        ),
        (b"\xef\xbb\xbf\xff", r"line 1: byte 0xff \(byte 4 of"),
        ("a".encode("utf-16"), "line 1: byte 0xff .* perhaps UTF-16"),
        (b"ok\n\xc3", r"line 2: byte 0xc3 \(byte 4 of"),
    ],
)
def test_undecodable_bytes_are_placed(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "f.txt").write_bytes(content)
    with pytest.raises(BadData, match=f"f.txt, {says}"):
        list(lines(tmp_path / "f.txt"))
