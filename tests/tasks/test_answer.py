"""answer: windows hold every answer, predictions come back as text of the context, scores are the official ones."""

from __future__ import annotations

import re
import string
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gossamer as gs
from gossamer.errors import BadData, BadFile, BadPlan
from gossamer.tasks.answer import Answer, exact, f1
from gossamer.tasks.pretrained import load_tokenizer
from gossamer.tasks.windows import by_row, cut, inside
from tests.tiny import base_directory, tokenizer

WORD = st.sampled_from([f"w{i}" for i in range(90)] + ["Ünseen", "🦋", "x"])


def table(*rows: tuple[str, str, str | None]) -> dict[str, list[Any]]:
    """Rows of (question, context, answer or None)."""
    answers = [[] if text is None else [{"text": text, "start": context.index(text)}] for _, context, text in rows]
    return {"question": [r[0] for r in rows], "context": [r[1] for r in rows], "answers": answers}


def certain(example: dict[str, Any], first: int, last: int, mass: float = 10.0) -> np.ndarray:
    """Log-probabilities that point at one span."""
    logits = torch.zeros(2, len(example["input_ids"]))
    logits[0, first] = logits[1, last] = mass
    return logits.log_softmax(-1).numpy()


def test_settling() -> None:
    plain = table(("w1", "w2 w3", "w3"))
    task = Answer.plan(plain)
    assert (task.fields, task.max_length, task.stride, task.unanswerable) == (("question", "context"), 384, 128, False)
    assert Answer.read(task.describe()) == task
    assert Answer.plan(plain, max_length=30).stride == 10
    assert Answer.plan(table(("w1", "w2", "w2"), ("w1", "w2", None))).unanswerable
    renamed = {"q": ["w1"], "c": ["w2 w3"], "gold": [{"text": ["w3"], "answer_start": [3]}]}
    assert Answer.plan(renamed, fields=("q", "c"), label="gold").encode(tokenizer(), renamed)[0]["start_positions"] == 4
    for settings in ({"stride": 200}, {"max_length": 8}, {"max_answer": 0}, {"metric": "accuracy"}, {"fields": ("a",)}):
        with pytest.raises(BadPlan):
            Answer.plan(plain, **settings)
    with pytest.raises(BadData, match="no question has an answer"):
        Answer.plan(table(("w1", "w2", None)))
    with pytest.raises(BadFile, match="upgrade"):
        Answer.read({"name": "answer"})


@given(
    words=st.lists(WORD, min_size=1, max_size=120),
    blanks=st.lists(st.sampled_from([" ", "  ", "\n", " \t"]), min_size=120, max_size=120),
    asked=st.lists(WORD, max_size=4),
    length=st.integers(20, 40),
    third=st.floats(0.3, 1),
    data=st.data(),
)
def test_every_answer_lies_in_a_window_and_comes_back(
    words: list[str], blanks: list[str], asked: list[str], length: int, third: float, data: st.DataObject
) -> None:
    stride = max(1, int(length // 3 * third))
    context = "".join(word + blank for word, blank in zip(words, blanks, strict=False))
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(first + stride, len(words)) - 1))
    starts = np.cumsum([0] + [len(w) + len(b) for w, b in zip(words, blanks, strict=False)])
    text = context[starts[first] : starts[last] + len(words[last])]
    rows = {
        "question": [" ".join(asked)],
        "context": [context],
        "answers": [[{"text": text, "start": int(starts[first])}]],
    }
    task = Answer.plan(rows, max_length=length, stride=stride, max_answer=stride)
    windows = task.encode(tokenizer(), rows)
    assert all(len(window["input_ids"]) <= length for window in windows)
    seen = {tuple(span) for window in windows for span in window["_spans"].tolist()}
    assert len(seen) == len(words), "every token of the context is in some window"
    holding = [w for w in windows if w["start_positions"] != w["_cls"]]
    assert holding
    for window in holding:
        assert cut(window, window["start_positions"], window["end_positions"]) == (starts[first], text)
    found = [certain(w, w["start_positions"], w["end_positions"]) for w in windows]
    (said,) = task.answers(found, windows)
    assert (said["answer"], said["start"]) == (text, starts[first])
    assert task.scores(found, windows) == {"exact_match": 1.0, "f1": 1.0}


@given(text=st.text(min_size=1, max_size=80), data=st.data())
def test_any_characters_through_a_real_tokenizer(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    gold = {"text": text[start:end], "start": start}
    if not gold["text"].strip():
        return
    rows = {"question": ["Who?"], "context": [text], "answers": [[gold]]}
    for window in Answer.plan(rows, max_length=30).encode(MINILM, rows):
        span = inside(window, gold)
        if span:  # tokens may reach further than the answer, and characters without any token may be left out
            at, found = cut(window, *span)
            kept = [t for t in window["_spans"].tolist() if t[1] > start and t[0] < end]
            assert all(at <= a or not text[a:b].strip() for a, b in kept)
            assert text[at : at + len(found)] == found


MINILM = load_tokenizer("minilm")


def test_windows_with_a_real_tokenizer() -> None:
    context = "Émile Zola—born in Paris, 1840—wrote “J’accuse…!” in 1898. " * 12
    rows = table(
        ("Who wrote it?", context, "Émile Zola"), ("When?", context, "1898"), ("What?", "", None), ("Why?", " ", None)
    )
    task = Answer.plan(rows, max_length=64)
    windows = task.encode(MINILM, rows)
    assert [len(group) for group in by_row(windows)][2:] == [1, 1]
    for window in windows[:-2]:
        if window["start_positions"] != window["_cls"]:
            assert cut(window, window["start_positions"], window["end_positions"])[1] == window["_answers"][0]["text"]
    found = [certain(w, w["start_positions"], w["end_positions"]) for w in windows]
    assert [a["answer"] for a in task.answers(found, windows)] == ["Émile Zola", "1898", "", ""]
    assert task.scores(found, windows)["f1"] == 1.0


def test_a_question_is_never_cut() -> None:
    rows = table(("w1 " * 40, "w2 w3", "w3"))
    with pytest.raises(BadData, match="question '1' has 40 tokens, more than half of a window of 64"):
        Answer.plan(rows, max_length=64).encode(tokenizer(), rows)


def test_an_answer_longer_than_what_windows_share_is_said(caplog: pytest.LogCaptureFixture) -> None:
    context = " ".join(f"w{i % 90}" for i in range(60))
    rows = table(("w1", context, context[6:-3]))
    Answer.plan(rows, max_length=30).encode(tokenizer(), rows)
    assert "1 of 1 answers lie in no window" in caplog.text


def test_a_text_of_100_000_tokens() -> None:
    words = [f"w{i * 7 % 90}" for i in range(100_000)]
    words[77_777] = "zebra"
    rows = table(("w1 w2", " ".join(words), "zebra"))
    task = Answer.plan(rows)
    windows = task.encode(tokenizer(), rows)
    assert 350 < len(windows) < 500
    bytes_each = [sum(v.nbytes for v in w.values() if isinstance(v, np.ndarray)) for w in windows]
    assert sum(bytes_each) < 3_000_000, "a few bytes a token"
    found = [certain(w, w["start_positions"], w["end_positions"]) for w in windows]
    assert task.answers(found, windows)[0]["answer"] == "zebra"


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 2**31))
def test_the_best_span_is_exact(count: int, longest: int, seed: int) -> None:
    rows = table(("w1", " ".join(f"w{i}" for i in range(count)), "w0"))
    task = Answer.plan(rows, max_answer=longest)
    windows = task.encode(tokenizer(), rows)
    odds = np.random.default_rng(seed).normal(size=(2, count + 4)).astype(np.float32)
    best = max(
        (odds[0, i] + odds[1, j], i, j) for i in range(count + 4) for j in range(count + 4) if 3 <= i <= j < count + 3
         and j - i < longest)  # fmt: skip
    assert task.answers([odds], windows)[0]["answer"] == " ".join(f"w{i}" for i in range(best[1] - 3, best[2] - 2))


def test_no_answer_and_its_threshold() -> None:
    rows = table(("w1", "w2 w3", "w3"), ("w1", "w2 w3", None))
    windows = (task := Answer.plan(rows)).encode(tokenizer(), rows)
    found = [certain(windows[0], 0, 0, 2.0) + certain(windows[0], 4, 4, 1.0)] * 2  # none is likelier by 2
    assert [a["answer"] for a in task.answers(found, windows)] == ["", ""]
    assert task.answers(found, windows)[0]["start"] is None
    said = {t: Answer.plan(rows, threshold=t).answers(found, windows)[0]["answer"] for t in (1.9, 2.1)}
    assert said == {1.9: "", 2.1: "w3"}
    scores = task.scores(found, windows)
    assert scores == {"exact_match": 0.5, "f1": 0.5, "has_answer_exact_match": 0.0, "has_answer_f1": 0.0,
                      "no_answer_exact_match": 1.0, "no_answer_f1": 1.0}  # fmt: skip
    assert task.baseline(windows) == scores
    plain = Answer.plan(table(("w1", "w2 w3", "w3")))
    assert plain.answers(found, windows)[1]["answer"] == "w3", (
        "where training always had an answer, one is always given"
    )
    assert plain.baseline(windows) == {}


TEXT = st.lists(
    st.sampled_from(["the", "a", "An", "Cat", "cat", "sat.", "“x”", "U.S.", "--", "mat", ""]), max_size=6
).map(" ".join)


def reference(guess: str, gold: list[str]) -> tuple[float, float]:
    def tokens(s: str) -> list[str]:
        kept = "".join(c for c in s.lower() if c not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", kept).split()

    pairs = []
    for p, g in [(tokens(guess), tokens(text)) for text in gold if tokens(text)] or [(tokens(guess), [])]:
        same = sum(min(p.count(w), n) for w, n in Counter(g).items())
        pairs.append((float(p == g), float(p == g) if not p or not g else 2 * same / (len(p) + len(g))))
    return max(e for e, _ in pairs), max(f for _, f in pairs)


@given(TEXT, st.lists(TEXT, max_size=3))
def test_exact_match_and_f1_by_their_definitions(guess: str, gold: list[str]) -> None:
    assert (exact(guess, gold), f1(guess, gold)) == pytest.approx(reference(guess, gold))


def test_it_learns_and_a_delta_brings_it_back(tmp_path: Path) -> None:
    base = str(base_directory(tmp_path / "base"))
    contexts = [" ".join(f"w{(i * 11 + j * 7) % 80}" for j in range(5)) for i in range(8)]
    rows = table(*(("w85", c, c.split()[i % 5]) for i, c in enumerate(contexts)))
    task = Answer.plan(rows, max_length=40)
    model, head = task.build(base, 0)
    assert head == ["qa_outputs.bias", "qa_outputs.weight"]
    windows, collate = task.encode(tokenizer(), rows), task.collate(tokenizer())
    batch = collate(windows)
    assert {"start_positions", "end_positions"} < set(batch) and not any(name.startswith("_") for name in batch)

    def score() -> dict[str, float]:
        with torch.no_grad():
            return task.scores(task.found(model.eval()(**batch), batch), windows)

    with gs.tune(model, "full", head=head) as tuned:
        optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
        delta = tuned.delta()
    before = score()
    with gs.applied(model, delta):
        assert score()["f1"] > 0.9 > before["f1"]


def test_found_ignores_padding(tmp_path: Path) -> None:
    rows = table(("w1", "w2 w3", "w3"), ("w1", "w2 " * 20, "w2"))
    task = Answer.plan(rows)
    windows = task.encode(tokenizer(), rows, labelled=False)
    batch = task.collate(tokenizer())(windows)
    logits = torch.randn(2, *batch["input_ids"].shape)
    odds = task.found(SimpleNamespace(start_logits=logits[0], end_logits=logits[1]), batch)
    assert [o.shape for o in odds] == [(2, 6), (2, 24)]
    assert np.exp(odds[0]).sum(-1) == pytest.approx([1, 1])
    with pytest.raises(BadPlan, match="has 40 positions"):
        task.build(str(base_directory(tmp_path / "base")), 0)
