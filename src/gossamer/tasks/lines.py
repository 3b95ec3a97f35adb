"""The lines of a text file, one way for every reader: UTF-8 with or without a mark, any line ends, numbered from 1.

A line ends at \\n, \\r\\n or \\r, also all three in one file; other characters that Unicode calls separators are part of
the text. Bytes that are not UTF-8 are an error with file, line and byte: to guess another encoding would change words.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from gossamer.errors import BadData


def lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text without line end) of each line; the file is read as it is asked for.

    Raises:
        BadData: no file that can be read, or bytes that are no UTF-8, with file, line and byte.
    """
    number = at = 0  # lines so far, and the place of the first byte of the present one
    if not Path(path).is_file():
        raise BadData(f"{path} cannot be read: there is no such file; give a text file")
    with Path(path).open("rb") as file:
        for raw in file:
            body = raw.removesuffix(b"\n").removesuffix(b"\r")
            for part in body.split(b"\r"):
                number += 1
                mark = codecs.BOM_UTF8 if number == 1 and part.startswith(codecs.BOM_UTF8) else b""
                yield number, _decoded(part.removeprefix(mark), path, number, at + len(mark))
                at += len(part) + 1
            at += len(raw) - len(body) - 1  # after the last part: what really ends it


def _decoded(raw: bytes, path: str | Path, number: int, at: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        guess = "UTF-16" if wide else f"Latin-1, where it is {raw[error.start : error.start + 1].decode('latin-1')!r}"
        raise BadData(
            f"{path}, line {number}: byte 0x{raw[error.start]:02x} (byte {at + error.start + 1} of the file) is not UTF-8; "
            f"perhaps {guess}: save the file as UTF-8"
        ) from None
