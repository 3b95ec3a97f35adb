"""The README's Python example runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gossamer as gs

ROOT = Path(__file__).parent.parent


def test_the_python_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert code
    exec(compile(code[1], "README.md", "exec"), {})
    assert "tensor" in capsys.readouterr().out
    delta = gs.load(tmp_path / "films.safetensors")
    assert delta.k == int(delta.m * 0.005) == 113_566


def test_every_method_has_a_card_and_every_card_a_method() -> None:
    assert {path.stem for path in (ROOT / "docs" / "methods").glob("*.md")} == set(gs.methods())
