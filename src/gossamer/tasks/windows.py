"""Windows over contexts that are longer than a model reads at once: made by a fast tokenizer, cut back into text.

A window is an example for the model, with int32 `input_ids` (and int8 `token_type_ids`), and private facts: "_row", "_id",
"_context" and "_answers" of its row; "_first", the place of its first token of the context, and "_spans", int32 [tokens, 2],
where in the context each of those lies; "_cls", the place that stands for "no answer" (the first where a base has no CLS);
"_opens" and "_closes", whether it is its context's first and its last window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gossamer.errors import BadData
from gossamer.tasks.readers import Table

TARGETS = ("start_positions", "end_positions")


def windows(tokenizer: Any, rows: Table, length: int, stride: int) -> list[dict[str, Any]]:
    """The windows of a few rows of a table of questions (`squad.settled`), in the order of the rows.

    Raises:
        BadData: a question that fills more than half of a window.
    """
    asked = tokenizer(rows["question"], add_special_tokens=False, return_attention_mask=False, verbose=False)
    special = tokenizer.num_special_tokens_to_add(pair=True)
    for name, ids in zip(rows["id"], asked["input_ids"], strict=True):
        if len(ids) + special > length // 2:
            raise BadData(f"question {name!r} has {len(ids)} tokens, more than half of a window of {length}; shorten it, or "
                          "give a larger --max-length")  # fmt: skip
    # half of a window is left for the context, which is more than the third that neighbours may share
    encoded = tokenizer(rows["question"], rows["context"], truncation="only_second", max_length=length,
                        stride=min(stride, length // 3), return_overflowing_tokens=True,
                        return_offsets_mapping=True, return_attention_mask=False)  # fmt: skip
    made = []
    for i, row in enumerate(encoded["overflow_to_sample_mapping"]):
        ids = np.array(encoded["input_ids"][i], np.int32)
        places = [t for t, side in enumerate(encoded.sequence_ids(i)) if side == 1]
        first = places[0] if places else len(ids)
        marks = np.flatnonzero(ids == tokenizer.cls_token_id).tolist()  # empty where the tokenizer has no such token
        window = {
            "input_ids": ids,
            "_row": row,
            "_id": rows["id"][row],
            "_context": rows["context"][row],
            "_answers": rows["answers"][row] if "answers" in rows else [],
            "_cls": (marks or [0])[0],
            "_first": first,  # where the context begins
            "_spans": np.array(encoded["offset_mapping"][i][first : first + len(places)], np.int32).reshape(-1, 2),
            "_opens": not made or made[-1]["_row"] != row,  # the context's first window
            "_closes": True,  # its last, until another follows
        }
        if "token_type_ids" in encoded:
            window["token_type_ids"] = np.array(encoded["token_type_ids"][i], np.int8)
        if not window["_opens"]:
            made[-1]["_closes"] = False
        made.append(window)
    return made


def inside(window: Mapping[str, Any], answer: Mapping[str, Any]) -> tuple[int, int] | None:
    """The places in a window of an answer's first and last token; None where the window does not hold all of it."""
    spans, text = window["_spans"], answer["text"]
    start = answer["start"] + len(text) - len(text.lstrip())
    end = answer["start"] + len(text.rstrip())
    first = int(np.searchsorted(spans[:, 1], start, "right"))  # the first token that ends behind the answer's start
    last = int(np.searchsorted(spans[:, 0], end, "left")) - 1  # the last that starts before its end
    if not len(spans) or first > last:
        return None
    if not (window["_opens"] or spans[0, 0] <= start) or not (window["_closes"] or spans[-1, 1] >= end):
        return None
    return window["_first"] + first, window["_first"] + last


def cut(window: Mapping[str, Any], first: int, last: int) -> tuple[int, str]:
    """Where in its context a span of a window's tokens starts, and its text, without blanks around it."""
    spans = window["_spans"]
    start, end = int(spans[first - window["_first"], 0]), int(spans[last - window["_first"], 1])
    text = window["_context"][start:end]
    return start + len(text) - len(text.lstrip()), text.strip()


def likeliest(odds: np.ndarray, window: Mapping[str, Any], longest: int) -> tuple[float, tuple[int, int]]:
    """The score and the tokens of a window's best span; −∞ where it holds nothing of the context."""
    first, count = window["_first"], len(window["_spans"])
    if not count:
        return -np.inf, (0, 0)
    starts, ends = odds[:, first : first + count]
    longest = min(longest, count)
    ends = np.concatenate([ends, np.full(longest - 1, -np.inf, ends.dtype)])
    scores = starts[:, None] + np.lib.stride_tricks.sliding_window_view(ends, longest)  # [start, length − 1]
    best = int(scores.argmax())
    start = best // longest
    return float(scores.flat[best]), (first + start, first + start + best % longest)


def by_row(encoded: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Windows grouped by the row that they come from."""
    rows: list[list[dict[str, Any]]] = []
    for window in encoded:
        if window["_opens"]:
            rows.append([])
        rows[-1].append(window)
    return rows


def padded(windows: list[dict[str, Any]], *, pad: int) -> dict[str, Tensor]:
    """A batch, int64 [windows, tokens], padded on the right; with targets [windows] where there are any."""

    def stacked(name: str, fill: int) -> Tensor:
        rows = [torch.as_tensor(window[name], dtype=torch.long) for window in windows]
        return pad_sequence(rows, batch_first=True, padding_value=fill)

    batch = {"input_ids": stacked("input_ids", pad)}
    sizes = torch.tensor([len(window["input_ids"]) for window in windows])
    batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < sizes[:, None]).long()
    if "token_type_ids" in windows[0]:
        batch["token_type_ids"] = stacked("token_type_ids", 0)
    return batch | {name: torch.tensor([w[name] for w in windows]) for name in TARGETS if name in windows[0]}
