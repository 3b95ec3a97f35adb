"""The command line as tests call it: a whole command in, its status and what it printed out."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from gossamer.cli.main import run


def call(command: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit status, standard output and standard error; what was printed before is not among them."""
    capsys.readouterr()
    status = run(shlex.split(command))
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def told(command: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """What a command that must succeed prints with --json."""
    status, out, err = call(command + " --json", capsys)
    assert status == 0, err
    return json.loads(out)
