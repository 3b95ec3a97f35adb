"""Pickles from strangers: nothing in them runs, and what is refused is named."""

import os
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from gossamer.errors import BadFile
from gossamer.interop.composable_sft import load
from tests.tiny import classifier

BIAS = "bert.embeddings.LayerNorm.bias"
GOOD = {"size": torch.Size([16]), "index_steps": [np.int64(3), 2], "values": torch.ones(2)}


class Bomb:
    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.args


def refuses(path, match: str | None = None) -> None:
    with pytest.raises(BadFile, match=match) as caught:
        load(path, classifier())
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["top", "step", "value", "beside"])
def test_nothing_runs(tmp_path, zipped, where):
    bomb = Bomb(os.mkdir, str(tmp_path / "exploded"))
    file: Any = {"diffs": {BIAS: dict(GOOD)}}
    if where == "top":
        file = bomb
    elif where == "step":
        file["diffs"][BIAS]["index_steps"] = [bomb]
    elif where == "value":
        file["diffs"][BIAS]["values"] = bomb
    else:
        file["abs"] = {"x": bomb}
    torch.save(file, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    refuses(tmp_path / "x.bin", "mkdir")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("call", [eval, exec, getattr, __import__, np.load, np.frombuffer, torch.load, os.system])
def test_other_calls_are_named(tmp_path, call):
    torch.save({"diffs": {"x": Bomb(call, "1")}}, tmp_path / "x.bin")
    refuses(tmp_path / "x.bin", call.__name__)


def test_plain_pickles_and_noise(tmp_path):
    path = tmp_path / "x.bin"
    refuses(path, "there is no")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(Bomb(os.mkdir, str(tmp_path / "exploded")), protocol))
        refuses(path)
    for raw in (b"", b"\x80", b"PK\x03\x04", b"hello" * 9, b"\x80\x02}q\x00."):
        path.write_bytes(raw)
        refuses(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"size": (17,)} | {"index_steps": [1, 400]},
        {"size": (-16,)},
        {"size": "16"},
        {"size": (2**62, 2**62)},
        {"index_steps": [3, 0]},
        {"index_steps": [3, -1]},
        {"index_steps": [3, 14]},
        {"index_steps": [3]},
        {"index_steps": [3.0, 1.0]},
        {"index_steps": [np.float64(3), 1]},
        {"index_steps": torch.tensor([3, 1])},
        {"values": torch.ones(1)},
        {"values": torch.ones(2, 1)},
        {"values": torch.ones(1).expand(2)},
        {"values": torch.tensor([1, 2])},
        {"values": torch.tensor([1.0, float("nan")])},
        {"values": torch.ones(2).to_sparse()},
        {"values": [1.0, 2.0]},
        {"surprise": 1},
    ],
    ids=str,
)
def test_contradictions(tmp_path, change):
    torch.save({"diffs": {BIAS: GOOD | change}}, tmp_path / "x.bin")
    refuses(tmp_path / "x.bin")


@pytest.mark.parametrize(
    "file", [{}, [], {"diffs": []}, {"diffs": {1: GOOD}}, {"abs": {"x": 3}}, {"diffs": {}, "more": 1}]
)
def test_other_contents(tmp_path, file):
    torch.save(file, tmp_path / "x.bin")
    refuses(tmp_path / "x.bin")
