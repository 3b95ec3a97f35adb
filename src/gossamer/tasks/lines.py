"""Lines of a text file, whatever it ends them with: \\n, \\r\\n or \\r, a byte-order mark in front or not. UTF-8 only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from gossamer.errors import BadData

_END = re.compile(rb"\r\n|\n|\r")


def lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text without its end) of every line, read as it is asked for.

    Raises:
        BadData: no such file, or bytes that are not UTF-8 (with the line), as in a Latin-1 file.
    """
    try:
        stream = Path(path).open("rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror}; give the path of a file") from None
    number = 0
    with stream:
        for chunk in stream:
            pieces = _END.split(chunk if number else chunk.removeprefix(b"\xef\xbb\xbf"))
            for raw in pieces if pieces[-1] else pieces[:-1]:  # nothing stands after the last end
                number += 1
                try:
                    yield number, raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise BadData(
                        f"{path}, line {number}: byte 0x{raw[error.start]:02x} is not UTF-8 (the file may be Latin-1); "
                        "save it as UTF-8"
                    ) from None
