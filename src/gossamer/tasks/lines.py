"""lines: the lines of a text file with their numbers; what breaks readers (marks, line ends, encodings) is settled here.

A byte-order mark is dropped, and "\\n", "\\r\\n" and "\\r" each end a line, also mixed. Other characters that Unicode takes for
line ends (U+2028, U+0085, form feed) are text. Bytes that are not UTF-8 are an error with the line: a guess at another
encoding would be silent where it is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gossamer.errors import BadData


def lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line without its end) of each line of a UTF-8 file, blank ones too.

    Raises:
        BadData: no such file, UTF-16, or bytes that are not UTF-8 (with the line).
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror}") from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise BadData(f"{path} is UTF-16; save it as UTF-8")
    content = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n").removesuffix(b"\n")
    try:
        yield from enumerate(content.decode().split("\n"), start=1)
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise BadData(
            f"{path}, line {number}: byte 0x{content[error.start]:02x} is not UTF-8 (Latin-1, perhaps); save it as UTF-8"
        ) from None
