"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from gossamer.errors import GossamerError


def atomic(path: Path, write: Any) -> None:
    """Calls write(temporary path), makes it durable and renames it to `path`; on failure nothing is left behind."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        write(temporary)
        sync(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise GossamerError(f"cannot write {path}: {error}; free some space or choose another place") from error
    finally:
        if temporary:
            Path(temporary).unlink(missing_ok=True)


def sync(path: str | Path) -> None:
    """Makes a file's bytes, or a folder's entries, durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
