"""lines and tokens: read from the disk piece by piece, the same in memory and in the cache, nothing lost."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import BadData, BadPlan
from gossamer.tasks.texts import Lines
from gossamer.tasks.tokens import Cut, Tokens, around, padded, tokenize
from tests.tasks.language import pieces, sentences, words
from tests.tiny import tokenizer


def file(folder: Path, contents: bytes) -> Path:
    path = folder / "text.txt"
    path.write_bytes(contents)
    return path


def test_lines_are_the_file_s_own_without_marks_and_blank_ones(tmp_path: Path) -> None:
    lines = Lines(file(tmp_path, b"\xef\xbb\xbfw1 w2\r\n\r\n  \nw3\xc3\xa9\nlast"))
    assert list(lines) == ["w1 w2", "w3é", "last"]
    assert lines[-1] == "last" and lines[:2] == ["w1 w2", "w3é"]
    assert len(lines) == 3
    with pytest.raises(IndexError):
        lines[3]


@pytest.mark.parametrize(
    ("contents", "says"), [(b"", "no line"), (b"\n \n", "no line"), (b"fine\n\nna\xefve\n", "line 3: the byte 0xef")]
)
def test_files_that_hold_no_text_are_named(tmp_path: Path, contents: bytes, says: str) -> None:
    with pytest.raises(BadData, match=says):
        Lines(file(tmp_path, contents))
    with pytest.raises(BadData, match="cannot be read"):
        Lines(tmp_path / "absent.txt")


def test_what_lines_say_of_themselves_is_their_contents(tmp_path: Path) -> None:
    one, same = Lines(file(tmp_path, b"w1\nw2")), Lines(file(tmp_path, b"w1\nw2"))
    assert repr(one) == repr(same)
    assert repr(one) != repr(Lines(file(tmp_path, b"w1\nw3")))


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_files_on_disk_hold_what_memory_would(tmp_path: Path, pack: bool, chunk: int) -> None:
    texts = [*sentences(20), "w1"]
    lines = Lines(file(tmp_path, "\n".join(texts).encode()))
    cut = Cut(6, pack, overlap=1, after=(3,), idle=(3,))
    memory = tokenize(tokenizer(), texts, cut)
    disk = tokenize(tokenizer(), lines, cut, chunk=chunk, cache=tmp_path)
    assert isinstance(disk.ids, np.memmap) and isinstance(disk.pieces, np.memmap)
    np.testing.assert_array_equal(memory.ids, disk.ids)
    np.testing.assert_array_equal(memory.pieces, disk.pieces)


def test_the_cache_is_made_once_and_known_by_text_tokenizer_and_cut(tmp_path: Path) -> None:
    lines = Lines(file(tmp_path, b"w1 w2 w3\nw4"))
    tokenize(tokenizer(), lines, Cut(4), cache=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").rglob("*")}

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("tokenized anew")

    known = tokenizer()
    known("w1 w2 w3", truncation=True, max_length=4)  # what a call leaves in the tokenizer is no other tokenizer
    known._encode_plus = refuse
    tokenize(known, Lines(lines.path), Cut(4), cache=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").rglob("*")} == before
    tokenize(tokenizer(), lines, Cut(3), cache=tmp_path)
    tokenize(words(), lines, Cut(4), cache=tmp_path)
    tokenize(tokenizer(), Lines(file(tmp_path, b"w1 w2 w3\nw5")), Cut(4), cache=tmp_path)
    assert len(list((tmp_path / "tokens").iterdir())) == 4


def test_an_interrupted_making_leaves_nothing_behind(tmp_path: Path) -> None:
    broken = tokenizer()

    def stop(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    broken._encode_plus = stop
    with pytest.raises(KeyboardInterrupt):
        tokenize(broken, Lines(file(tmp_path, b"w1\nw2")), Cut(4), cache=tmp_path)
    assert not list((tmp_path / "tokens").iterdir())


def test_the_cache_folder_is_the_user_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "GOSSAMER_CACHE", str(tmp_path / "own"))
    tokenize(tokenizer(), Lines(file(tmp_path, b"w1\nw2")), Cut(4))
    assert len(list((tmp_path / "own" / "tokens").iterdir())) == 1


class Watched:
    """Stands for ids on disk, and notes which were read."""

    def __init__(self, ids: np.ndarray) -> None:
        self.ids, self.read = ids, list[slice]()

    def __getitem__(self, where: slice) -> np.ndarray:
        self.read.append(where)
        return self.ids[where]


def test_a_piece_reads_its_own_slice_only() -> None:
    made = tokenize(tokenizer(), sentences(30), Cut(5, True))
    watched = Watched(made.ids)
    Tokens(watched, made.pieces).piece(2)  # type: ignore[arg-type]
    assert watched.read == [slice(10, 15)]


@given(
    texts=st.lists(st.lists(st.sampled_from("abcd"), max_size=12).map("".join), min_size=1, max_size=8),
    room=st.integers(2, 7),
    pack=st.booleans(),
    overlap=st.integers(0, 1),
)
def test_pieces_cover_every_token_once_but_for_what_they_share(
    texts: list[str], room: int, pack: bool, overlap: int
) -> None:
    texts = [*texts, "ab"]
    made = tokenize(pieces(), texts, Cut(room, pack, overlap=overlap, words=True))
    every = [pieces()(text, add_special_tokens=False)["input_ids"] for text in texts]
    wanted = [[*chain(*every)]] if pack else [ids for ids in every if len(ids) > overlap]
    got: dict[int, list[int]] = {}
    for i in range(len(made)):
        ids, goes_on = made.piece(i)
        assert 0 < len(ids) <= room and not goes_on[0]
        line = got.setdefault(made.row(i), [])
        assert not line or line[len(line) - overlap :] == ids[:overlap].tolist()
        line += ids[overlap if line else 0 :].tolist()
    assert list(got.values()) == wanted


def test_lines_of_nothing_to_learn_are_left_out() -> None:
    made = tokenize(tokenizer(), ["x y", "", "w1 x", "z"], Cut(5, idle=(1,)))
    assert [made.row(i) for i in range(len(made))] == [2]
    with pytest.raises(BadData, match="none of the 2 texts"):
        tokenize(tokenizer(), ["x y", ""], Cut(5, idle=(1,)))
    with pytest.raises(BadData, match="row 2 holds 3"):
        tokenize(tokenizer(), ["w1", 3], Cut(5))  # type: ignore[list-item]
    with pytest.raises(BadPlan, match="raise max_length"):
        tokenize(tokenizer(), ["w1"], Cut(0))


def test_what_a_tokenizer_puts_around_a_text() -> None:
    assert around(tokenizer()) == ([2], [3])
    assert around(words()) == ([], [])
    assert around(words(begin=True)) == ([2], [])


def test_padding_on_either_side() -> None:
    examples = [{"input_ids": [5, 6], "attention_mask": [1, 1], "labels": [-100, 6], "_row": 0},
                {"input_ids": [7], "attention_mask": [1], "labels": [7], "_row": 1}]  # fmt: skip
    right = padded(examples, 9)
    assert right["input_ids"].tolist() == [[5, 6], [7, 9]]
    assert right["labels"].tolist() == [[-100, 6], [7, -100]]
    assert right.keys() == {"input_ids", "attention_mask", "labels"}
    left = padded(examples, 9, left=True)
    assert left["input_ids"].tolist() == [[5, 6], [9, 7]]
    assert left["attention_mask"].tolist() == [[1, 1], [0, 1]]
