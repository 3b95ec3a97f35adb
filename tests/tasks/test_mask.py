"""mask: what is masked, what is scored, what is trained, and that a language delta fits another class of the backbone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PrinterCallback, Trainer, TrainingArguments

import gossamer as gs
from gossamer.errors import BadData, BadFile, BadPlan
from gossamer.tasks.mask import Mask
from gossamer.tasks.masking import masked
from gossamer.tasks.texts import Lines
from tests.tasks.language import masked_directory, pieces, sentences
from tests.tiny import WORDS, At, base_directory, tokenizer

TEXTS = sentences(40)


def plan(**settings: Any) -> Mask:
    return Mask.plan({"text": TEXTS}, **{"max_length": 32, **settings})


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(masked_directory(tmp_path_factory.mktemp("published")))


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(base_directory(tmp_path_factory.mktemp("headless")))


# what is masked ---------------------------------------------------------------------------------------------------


def test_shares_are_those_of_the_paper() -> None:
    n, ids = 200_000, np.full(200_000, 7)
    draws = np.random.default_rng(0).random((3, n))
    inputs, labels = masked(ids, np.zeros(n, bool), draws, idle=np.array([2]), rate=0.15, mask=4, vocabulary=100)
    chosen = labels == 7
    assert chosen.mean() == pytest.approx(0.15, abs=0.003)  # three standard deviations are 0.0024
    assert (inputs[chosen] == 4).mean() == pytest.approx(0.8 + 0.001, abs=0.008)  # the vocabulary holds the mask too
    assert (inputs[chosen] == 7).mean() == pytest.approx(0.1 + 0.001, abs=0.006)
    other = inputs[chosen & (inputs != 4) & (inputs != 7)]
    assert np.bincount(other, minlength=100)[[0, 1, 50, 99]] == pytest.approx(len(other) / 98, rel=0.5)
    assert (inputs[~chosen] == 7).all() and (labels[~chosen] == -100).all()


@given(seed=st.integers(0, 999), goes_on=st.lists(st.booleans(), min_size=1, max_size=30), rate=st.floats(0.01, 1))
def test_a_word_is_masked_whole_and_some_word_always(seed: int, goes_on: list[bool], rate: float) -> None:
    rng = np.random.default_rng(seed)
    on = np.array([False, *goes_on[1:]])
    ids = rng.integers(3, 9, len(on))
    ids[0] = 9  # so that one at least is free
    _, labels = masked(ids, on, rng.random((3, len(on))), idle=np.array([3]), rate=rate, mask=4, vocabulary=10)
    assert (labels != -100).any()
    for word in np.split(np.arange(len(on)), np.flatnonzero(~on)[1:]):
        asked = {bool(labels[t] != -100) for t in word if ids[t] != 3}
        assert len(asked) <= 1
    assert (labels[ids == 3] == -100).all()
    assert set(labels[labels != -100] - ids[labels != -100]) == {0}


def test_whole_words_of_a_real_tokenizer() -> None:
    texts = ["abcd ab c dddd", "a bb ccc"]
    examples = plan(whole_word=True, pack=False, rate=0.5).encode(pieces(), {"text": texts})
    seen = set()
    for epoch in range(20):
        examples.set_epoch(epoch)
        for text, example in zip(texts, examples, strict=True):
            asked = "".join("x" if label != -100 else "." for label in example["labels"][1:-1])
            at = 0
            for word in text.split():
                assert len(set(asked[at : at + len(word)])) == 1
                at += len(word)
            seen.add(asked)
    assert len(seen) > 10


def test_evaluation_masks_are_of_the_contents_and_training_masks_of_the_epoch() -> None:
    task = plan(pack=False)
    all_, few = (task.encode(tokenizer(), {"text": texts}) for texts in (TEXTS, TEXTS[5:8]))
    torch.manual_seed(1)
    assert list(all_)[5:8] == [{**e, "_row": e["_row"] + 5} for e in few]
    torch.manual_seed(2)
    fixed = list(all_)
    assert fixed == all_[:] and fixed[-1] == all_[-1]
    assert fixed != list(plan(pack=False, seed=1).encode(tokenizer(), {"text": TEXTS}))
    all_.set_epoch(0)
    first = list(all_)
    assert first == list(all_) != fixed
    all_.set_epoch(1)
    assert list(all_) != first
    torch.manual_seed(3)
    all_.set_epoch(0)
    assert list(all_) != first
    all_.set_epoch(None)
    assert list(all_) == fixed


def test_masking_draws_nothing_from_torch() -> None:
    examples = plan().encode(tokenizer(), {"text": TEXTS})
    before = torch.get_rng_state()
    for epoch in (None, 3):
        examples.set_epoch(epoch)
        list(examples)
    assert torch.equal(before, torch.get_rng_state())


def test_packed_lines_are_apart_and_fill_their_room() -> None:
    examples = plan(max_length=16).encode(tokenizer(), {"text": TEXTS})
    stream: list[int] = []
    for i, example in enumerate(examples):
        ids = [a if b == -100 else b for a, b in zip(example["input_ids"], example["labels"], strict=True)]
        assert ids[0] == 2 and ids[-1] == 3 and example["labels"][0] == example["labels"][-1] == -100
        assert len(ids) == 16 or i == len(examples) - 1
        stream += ids[1:-1]
    assert stream == [*chain(*(tokenizer()(text)["input_ids"][1:] for text in TEXTS))]  # each line and its separator


def test_texts_on_disk_give_the_same_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    for pack in (True, False):
        made = plan(pack=pack).encode(tokenizer(), {"text": Lines(tmp_path / "text.txt")})
        assert list(made) == list(plan(pack=pack).encode(tokenizer(), {"text": TEXTS}))
        assert isinstance(made.tokens.ids, np.memmap)


# scores and answers ------------------------------------------------------------------------------------------------


def test_scores_are_those_of_a_plain_computation_in_any_batches(published: str) -> None:
    task = plan(pack=False)
    model, _ = task.build(published, 0)
    examples = task.encode(tokenizer(), {"text": TEXTS})
    lost, right = [], []
    with torch.no_grad():
        for e in examples:
            logits = model.eval()(input_ids=torch.tensor([e["input_ids"]])).logits[0].log_softmax(-1)
            for t, label in enumerate(e["labels"]):
                if label != -100:
                    lost.append(-float(logits[t, label]))
                    right.append(int(logits[t].argmax()) == label)
    for size in (1, 7):
        found: list[Any] = []
        for at in range(0, len(examples), size):
            batch = task.collate(tokenizer())(examples[at : at + size])
            with torch.no_grad():
                found += task.found(model(**batch), batch)
        scores = task.scores(found, examples)
        assert scores["loss"] == pytest.approx(np.mean(lost), rel=1e-5)
        assert scores["perplexity"] == pytest.approx(math.exp(np.mean(lost)), rel=1e-4)
        assert scores["accuracy"] == pytest.approx(np.mean(right))
    assert task.metric in task.falling and task.baseline(examples) == {}


def test_answers_fill_the_masks(published: str) -> None:
    task = plan()
    model, _ = task.build(published, 0)
    encoded = task.encode(tokenizer(), {"text": ["w1 [MASK] w3 [MASK]", "[MASK] w7"]}, labelled=False)
    batch = task.collate(tokenizer())(encoded)
    with torch.no_grad():
        output = model.eval()(**batch)
    one, two = task.answers(task.found(output, batch), encoded)
    assert [len(answer["fills"]) for answer in (one, two)] == [2, 1]
    best = int(output.logits[1, 1].argmax())
    assert two["text"] == tokenizer().decode([best, 5 + 7], skip_special_tokens=True)
    assert two["fills"][0][0]["probability"] == pytest.approx(float(output.logits[1, 1].softmax(-1).max()))


# what is trained -----------------------------------------------------------------------------------------------------


def test_the_output_embedding_is_tied_by_choice(published: str) -> None:
    shared, head = plan(tied="share").build(published, 0)
    assert shared.get_output_embeddings().weight is shared.get_input_embeddings().weight
    apart, same = plan().build(published, 0)
    output, inputs = apart.get_output_embeddings().weight, apart.get_input_embeddings().weight
    assert output is not inputs and torch.equal(output, inputs)
    assert head == same and not any(name.endswith("decoder.weight") for name in head) and head


def test_a_base_without_the_head_gets_a_new_one_of_the_seed(headless: str) -> None:
    one, head = plan().build(headless, 1)
    two, _ = plan().build(headless, 1)
    three, _ = plan().build(headless, 2)
    differ = [name for name in head if not torch.equal(one.get_parameter(name), three.get_parameter(name))]
    assert differ and all(torch.equal(one.get_parameter(name), two.get_parameter(name)) for name in head)
    assert torch.equal(one.get_output_embeddings().weight, one.get_input_embeddings().weight)


def train(
    task: Mask, base: str, method: str, folder: Path, *, resume: bool = False, stop: int | None = None, **settings: Any
) -> gs.Delta:
    model, head = task.build(base, 0)
    examples = task.encode(tokenizer(), {"text": TEXTS})

    def trainer(tuned: Any, phase: Any) -> Trainer:
        arguments = TrainingArguments(
            output_dir=str(folder / f"phase-{phase.index}"), per_device_train_batch_size=4, max_steps=8, save_steps=3,
            learning_rate=1e-2, use_cpu=True, seed=5, data_seed=5, remove_unused_columns=False, report_to="none",
            disable_tqdm=True, dataloader_pin_memory=False, train_sampling_strategy="group_by_length", save_total_limit=2,
            gradient_accumulation_steps=2)  # fmt: skip
        made = Trainer(tuned, arguments, train_dataset=examples, data_collator=task.collate(tokenizer()))  # type: ignore[arg-type]
        made.remove_callback(PrinterCallback)
        return made

    def halt() -> None:
        raise KeyboardInterrupt

    progress = At(stop, halt) if stop else None
    return gs.fit(model, method, trainer=trainer, head=head, checkpoint=folder / "kept", resume=resume, seed=5,
                  progress=progress, **settings)  # fmt: skip


@pytest.mark.parametrize(("tied", "stop"), [("share", 4), ("untie-freeze", 13)])
def test_stopped_and_resumed_sees_the_same_masks(headless: str, tmp_path: Path, tied: str, stop: int) -> None:
    task = plan(tied=tied, pack=False)
    whole = train(task, headless, "lt-sft", tmp_path / "whole", k=200)
    with pytest.raises(KeyboardInterrupt):
        train(task, headless, "lt-sft", tmp_path / "part", k=200, stop=stop)
    assert train(task, headless, "lt-sft", tmp_path / "part", k=200, resume=True) == whole


@pytest.mark.parametrize("tied", ["share", "untie-freeze"])
def test_a_language_delta_fits_another_class_of_the_backbone(published: str, tmp_path: Path, tied: str) -> None:
    task = plan(tied=tied)
    language = train(task, published, "lt-sft", tmp_path, k=300)
    assert language.k == 300 and set(language.head) == set(task.build(published, 0)[1])
    (tmp_path / "delta").mkdir()
    language.save(tmp_path / "delta" / "l.safetensors")
    from transformers import AutoModelForSequenceClassification

    other = AutoModelForSequenceClassification.from_pretrained(published, num_labels=3)
    ids = torch.tensor([tokenizer()("w1 w2 w3")["input_ids"]])
    before = other.eval()(ids).logits
    with gs.applied(other, gs.load(tmp_path / "delta" / "l.safetensors").without_head()):
        assert not torch.equal(other(ids).logits, before)
    assert torch.equal(other(ids).logits, before)


@pytest.mark.parametrize("tied", ["share", "untie-freeze"])
def test_a_tuned_output_embedding_moves_with_the_input_s_or_not_at_all(
    published: str, tmp_path: Path, tied: str
) -> None:
    task = plan(tied=tied)
    delta = train(task, published, "full", tmp_path)
    model, _ = task.build(published, 0)
    kept = model.get_output_embeddings().weight.clone()
    with gs.applied(model, delta):
        moved = model.get_output_embeddings().weight
        assert torch.equal(moved, kept) == (tied == "untie-freeze")
        assert torch.equal(moved, model.get_input_embeddings().weight) == (tied == "share")
    assert "embeddings.word_embeddings.weight" in delta.terms


# settings and mistakes -----------------------------------------------------------------------------------------------


def test_a_description_is_read_back() -> None:
    task = plan(whole_word=True, tied="share", pack=False, max_length=64)
    assert Mask.read(task.describe()) == task
    with pytest.raises(BadFile, match="upgrade"):
        Mask.read({**task.describe(), "new": 1})


@contextmanager
def refused(kind: type[Exception], says: str) -> Iterator[None]:
    with pytest.raises(kind, match=says):
        yield


def test_mistakes_are_named() -> None:
    for settings, says in (({"tied": "no"}, "tied='no'"), ({"rate": 0.0}, "rate=0.0"), ({"metric": "f1"}, "metric='f1'"),
                           ({"fields": ("a", "b")}, "one column")):  # fmt: skip
        with refused(BadPlan, says):
            plan(**settings)
    with refused(BadData, "cannot tell which column"):
        Mask.plan({"a": ["x"], "b": ["y"]})
    with refused(BadData, "no column 'b'"):
        Mask.plan({"a": ["x"]}, fields=("b",))
    assert Mask.plan({"a": ["x"]}).field == "a"
    with refused(BadData, "row 1 holds 'w1 w2'; write"):
        plan().encode(tokenizer(), {"text": ["w1 w2"]}, labelled=False)
    with refused(BadData, "at most 8"):
        plan(max_length=8).encode(tokenizer(), {"text": [" ".join(["[MASK]", *WORDS[:9]])]}, labelled=False)
    without = tokenizer()
    without.mask_token = None
    with refused(BadPlan, "no mask token"):
        plan().encode(without, {"text": TEXTS})


def test_examples_longer_than_the_base_s_positions_are_refused(published: str) -> None:
    with refused(BadPlan, "has 40 positions"):
        plan(max_length=41).build(published, 0)
