"""Tokens: texts as one long row of token ids and the pieces of it that are examples, in memory or in files on disk.

For masked and for causal language models. A piece is what one example holds. Unpacked, each line is a piece, or several if it
is longer than there is room for; packed, the lines follow each other and are cut anew wherever the room ends. Pieces may
overlap: a causal model is never asked for the first token of a piece, so it must be the last one of the piece before.

Texts that are read from the disk (`Lines`) are tokenized once, some lines at a time, into files that are mapped into memory.
They lie in a cache folder under the digests of text and tokenizer; a folder appears there complete or not at all.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from gossamer.errors import BadData, BadPlan
from gossamer.tasks.texts import Lines

_KINDS = {"ids": np.int32, "pieces": np.int64}
_VERSION = 1  # of the files


@dataclass(frozen=True)
class Cut:
    """How texts become pieces. It is part of what cached files are known by."""

    room: int  # tokens of a piece, at most
    pack: bool = False
    overlap: int = 0  # tokens that a piece shares with the one before
    before: tuple[int, ...] = ()  # ids put before each line …
    after: tuple[int, ...] = ()  # … and after it
    idle: tuple[int, ...] = ()  # a piece of nothing but these is left out: there is nothing in it to learn
    words: bool = False  # whether it is noted which tokens go on with a word


@dataclass(frozen=True)
class Tokens:
    """What `tokenize` makes. An id is stored as ~id, which is negative, where its token goes on with the word before it."""

    ids: np.ndarray  # [n] int32
    pieces: np.ndarray  # [p, 3] int64: first token, end, row of the text (-1 if packed)

    def __len__(self) -> int:
        return len(self.pieces)

    def piece(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """The ids of a piece (int64) and which of them go on with a word (bool). Only they are read."""
        start, end, _ = self.pieces[i]
        stored = np.array(self.ids[start:end], np.int64)
        goes_on = stored < 0
        goes_on[:1] = False  # what a cut has left of a word is a word
        return np.where(stored < 0, ~stored, stored), goes_on

    def row(self, i: int) -> int:
        return int(self.pieces[i, 2])


def tokenize(tokenizer: Any, texts: Sequence[str], cut: Cut, *, chunk: int = 1024, cache: Path | None = None) -> Tokens:
    """The pieces of some texts; of a file of lines, mapped from the cache, where they are put if they are not there.

    Args:
        chunk: how many lines are tokenized at a time.
        cache: the folder of all such files; default `cache_folder()`.

    Raises:
        BadData: a row is no text, or no text holds a token.
        BadPlan: words are asked for and the tokenizer does not tell them.
    """
    if cut.room <= cut.overlap:
        raise BadPlan(f"{cut.room} tokens fit into an example beside its special ones; raise max_length")
    if not isinstance(texts, Lines):
        memory = {name: io.BytesIO() for name in _KINDS}
        _write(memory, tokenizer, texts, cut, chunk)
        return Tokens(*_shaped(*(np.frombuffer(memory[name].getvalue(), kind) for name, kind in _KINDS.items())))
    key = json.dumps([_VERSION, texts.digest, _fingerprint(tokenizer), vars(cut)])
    place = (cache or cache_folder()) / "tokens" / hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    if not place.is_dir():
        _make(place, tokenizer, texts, cut, chunk)
    mapped = (np.memmap(place / name, kind, "r") for name, kind in _KINDS.items())
    return Tokens(*_shaped(*mapped))


def cache_folder() -> Path:
    """$GOSSAMER_CACHE, else `gossamer` in the user's cache folder."""
    own, shared = os.environ.get("GOSSAMER_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else (Path(shared) if shared else Path.home() / ".cache") / "gossamer"


def around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer puts before a text and after it."""
    probe = "a"
    inner = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(probe)["input_ids"])
    for at in range(len(whole) - len(inner) + 1):
        if whole[at : at + len(inner)] == inner:
            return whole[:at], whole[at + len(inner) :]
    raise BadPlan(
        "the tokenizer changes a text when it adds its special tokens; this task needs one that only adds them"
    )


def _make(place: Path, tokenizer: Any, texts: Lines, cut: Cut, chunk: int) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".making-", dir=place.parent))
    try:
        files = {name: (made / name).open("w+b") for name in _KINDS}
        try:
            _write(files, tokenizer, texts, cut, chunk)
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
        finally:
            for file in files.values():
                file.close()
        try:
            made.rename(place)
        except OSError:
            if not place.is_dir():  # else another run was quicker; its files are the same
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _write(files: dict[str, Any], tokenizer: Any, texts: Sequence[str], cut: Cut, chunk: int) -> None:
    """Writes the ids, then the pieces, holding no more than a chunk of lines."""
    at, count = 0, 0
    for first in range(0, len(texts), chunk):
        for row, ids in enumerate(_ids(tokenizer, texts[first : first + chunk], first, cut), start=first):
            files["ids"].write(ids.tobytes())
            if not cut.pack:
                count += _note(files["pieces"], ids, at, row, cut)
            at += len(ids)
    if cut.pack:
        for start, end in _spans(at, cut):
            count += _note_piece(files["pieces"], _read(files["ids"], start, end), start, -1, cut)
    if not count:
        raise BadData(f"none of the {len(texts)} texts holds a token that the model could learn from")


def _ids(tokenizer: Any, texts: Sequence[str], first: int, cut: Cut) -> Iterator[np.ndarray]:
    for row, text in enumerate(texts, start=first):
        if not isinstance(text, str):
            raise BadData(f"row {row + 1} holds {text!r}; expected text")
    found = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False,
                      verbose=False)  # fmt: skip
    if cut.words and not getattr(tokenizer, "is_fast", False):
        raise BadPlan("this tokenizer does not tell which tokens make up a word; train without whole_word")
    before, after = np.array(cut.before, np.int32), np.array(cut.after, np.int32)
    for i, ids in enumerate(found["input_ids"]):
        own = np.array(ids, np.int32)
        if not len(own):
            yield own
            continue
        if cut.words:
            words = [-1 - t if word is None else word for t, word in enumerate(found.word_ids(i))]
            same = np.diff(words, prepend=-len(words) - 1) == 0
            own = np.where(same, ~own, own)
        yield np.concatenate([before, own, after])


def _spans(count: int, cut: Cut) -> Iterator[tuple[int, int]]:
    """(first, end) of the pieces of so many tokens."""
    step = cut.room - cut.overlap
    for start in range(0, max(count - cut.overlap, 0), step):
        yield start, min(start + cut.room, count)


def _note(file: IO[bytes], ids: np.ndarray, at: int, row: int, cut: Cut) -> int:
    return sum(_note_piece(file, ids[start:end], at + start, row, cut) for start, end in _spans(len(ids), cut))


def _note_piece(file: IO[bytes], ids: np.ndarray, start: int, row: int, cut: Cut) -> bool:
    if cut.idle and np.isin(np.where(ids < 0, ~ids, ids), cut.idle).all():
        return False
    file.write(np.array([start, start + len(ids), row], np.int64).tobytes())
    return True


def _read(file: IO[bytes], start: int, end: int) -> np.ndarray:
    file.seek(4 * start)
    return np.frombuffer(file.read(4 * (end - start)), np.int32)


def _shaped(ids: np.ndarray, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return ids, pieces.reshape(-1, 3)


def _fingerprint(tokenizer: Any) -> str:
    """Of all that decides how it cuts texts up."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        said = repr((type(tokenizer), sorted(tokenizer.get_vocab().items())))
    else:  # less what the last call to it has left there
        said = json.dumps({**json.loads(backend.to_str()), "truncation": None, "padding": None})
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()


def padded(examples: Iterable[dict[str, Any]], pad: int, *, left: bool = False) -> dict[str, Any]:
    """Examples of token ids as one batch of tensors [b, longest], int64, with an attention mask; labels padded with −100.

    What begins with "_" is dropped.
    """
    import torch

    rows = list(examples)
    longest = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": pad, "labels": -100}
    batch = {}
    for name in (name for name in rows[0] if not name.startswith("_")):
        batch[name] = torch.full((len(rows), longest), fill.get(name, 0))
        for line, row in zip(batch[name], rows, strict=True):
            values = torch.as_tensor(row[name])
            line[longest - len(values) if left else 0 :][: len(values)] = values
    return batch


def plain_batches(tokenizer: Any, texts: Sequence[str], max_length: int, size: int = 16) -> list[dict[str, Any]]:
    """Texts as batches of so many, in order, cut to `max_length` tokens: input_ids and attention_mask, [texts, tokens] each."""
    pad = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
    plain = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ids]
    return [padded(plain[start : start + size], pad=pad) for start in range(0, len(plain), size)]


def check_room(model: Any, max_length: int) -> None:
    """Refuses examples longer than the model has positions for, where its configuration says how many."""
    room = positions(model)
    if room and max_length > room:
        raise BadPlan(f"max_length={max_length}, but this base has {room} positions; lower it")


def positions(model: Any) -> int | None:
    """How many tokens a model has positions for, where its configuration says so."""
    room = getattr(model.config, "max_position_embeddings", None)
    embedding = next((m for n, m in model.named_modules() if n.endswith("position_embeddings")), None)
    offset = getattr(embedding, "padding_idx", None)  # some bases begin to count after it
    return room - offset - 1 if room and offset is not None else room


def perplexity(loss: float) -> float:
    """exp(loss), or the largest number where that is too large."""
    return float(np.exp(min(float(loss), 709.0)))
