"""Finished cells, one JSON line each: appended in one write and made durable, so that a kill loses one cell at most."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gossamer.delta.disk import sync
from gossamer.errors import Clash

Cell = dict[str, Any]  # plain JSON; "cell" is its hash, "error" is there if it failed


class Ledger:
    """The cells of one file by their hash; of two lines for one cell (a failure, then a success) the later counts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[str, Cell] = {}
        self.torn = 0  # lines that are no cells: cut off by a kill

    @contextmanager
    def open(self) -> Iterator[Ledger]:
        """Reads what is there and keeps others from writing. Raises Clash when another process does."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            self._read()
            sync(self.path.parent)
            yield self
        finally:
            os.close(self._file)  # and with it the lock

    def look(self) -> Ledger:
        """Reads what is there, also while another process writes."""
        if self.path.is_file():
            self._read()
        return self

    def append(self, cell: Cell) -> None:
        """Adds a cell, durably."""
        line = json.dumps(cell, ensure_ascii=False, allow_nan=False) + "\n"
        if self._cut:  # a half-written line gets an end of its own
            line, self._cut = "\n" + line, False
        written = line.encode()
        if os.write(self._file, written) < len(written):
            self._cut = True
            raise OSError(f"{self.path}: a cell could be written in part only")
        os.fsync(self._file)
        self.cells[cell["cell"]] = cell

    def _read(self) -> None:
        raw = self.path.read_bytes()
        self._cut = bool(raw) and not raw.endswith(b"\n")
        for line in raw.split(b"\n"):
            if not line.strip():
                continue
            try:
                cell = json.loads(line)
                self.cells[cell["cell"]] = cell
            except (ValueError, TypeError, KeyError):
                self.torn += 1

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # no such lock on Windows
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Clash(f"another process is writing to {self.path}; wait for it, or choose another --out") from None
