"""generate: what is learned of plain text and of replies, perplexity, and generation."""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.errors import BadData, BadFile, BadPlan
from gossamer.tasks.generate import Generate
from gossamer.tasks.texts import Lines
from tests.tasks.language import TEMPLATE, gpt2, llama, masked_directory, sentences, words
from tests.tiny import bits, same_bits

TEXTS = sentences(20)
PAIRS = {"prompt": ["w1 w2", "w3"], "response": ["w4", "w5 w6 w7"]}
TALK = [
    {"role": "system", "content": "w9"},
    {"role": "user", "content": "w1 w2"},
    {"role": "assistant", "content": "w3"},
    {"role": "user", "content": "w4"},
    {"role": "assistant", "content": "w5 w6"},
]


def read(tokenizer: Any, example: dict[str, Any]) -> tuple[str, str]:
    """An example's text, and what of it is learned."""
    learned = [label for label in example["labels"] if label != -100]
    return tokenizer.decode(example["input_ids"]), tokenizer.decode(learned)


# data ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "kind", "fields"),
    [
        ({"text": ["a"]}, "text", ("text",)),
        ({"whatever": ["a"]}, "text", ("whatever",)),
        (PAIRS, "reply", ("prompt", "response")),
        ({"instruction": ["a"], "input": [""], "output": ["b"]}, "reply", ("instruction", "input", "output")),
        ({"id": [1], "messages": [TALK]}, "chat", ("messages",)),
    ],
)
def test_the_kind_is_found_from_the_columns(table: Any, kind: str, fields: tuple[str, ...]) -> None:
    task = Generate.plan(table)
    assert (task.kind, task.fields) == (kind, fields)
    assert Generate.read(task.describe()) == task
    assert Generate.plan(table, fields=fields) == task


def test_only_the_reply_and_its_end_are_learned() -> None:
    tokenizer = words(begin=True)
    one, two = Generate.plan(PAIRS, separator=" ").encode(tokenizer, PAIRS)
    assert read(tokenizer, one) == ("[CLS] w1 w2 w4 [SEP]", "w4 [SEP]")
    assert read(tokenizer, two) == ("[CLS] w3 w5 w6 w7 [SEP]", "w5 w6 w7 [SEP]")
    parts = {"instruction": ["w1"], "input": [""], "output": ["w2"]}
    assert read(tokenizer, Generate.plan(parts).encode(tokenizer, parts)[0]) == ("[CLS] w1 w2 [SEP]", "w2 [SEP]")


def test_every_turn_of_the_assistant_is_learned() -> None:
    tokenizer = words(template=TEMPLATE)
    (example,) = Generate.plan({"messages": [TALK]}).encode(tokenizer, {"messages": [TALK]})
    text, learned = read(tokenizer, example)
    assert text == ("[MASK] system w9 [SEP] [MASK] user w1 w2 [SEP] [MASK] assistant w3 [SEP] "
                    "[MASK] user w4 [SEP] [MASK] assistant w5 w6 [SEP]")  # fmt: skip
    assert learned == "w3 [SEP] w5 w6 [SEP]"
    whole = tokenizer(tokenizer.apply_chat_template(TALK, tokenize=False), add_special_tokens=False)["input_ids"]
    assert example["input_ids"] == whole


def test_a_pair_is_a_chat_where_there_is_a_template() -> None:
    tokenizer = words(template=TEMPLATE)
    chat, _ = Generate.plan(PAIRS).encode(tokenizer, PAIRS)
    assert read(tokenizer, chat) == ("[MASK] user w1 w2 [SEP] [MASK] assistant w4 [SEP]", "w4 [SEP]")
    plain, _ = Generate.plan(PAIRS, template="none").encode(tokenizer, PAIRS)
    assert read(tokenizer, plain) == ("w1 w2 w4 [SEP]", "w4 [SEP]")


def test_a_prompt_s_tokens_are_what_its_reply_was_learned_after() -> None:
    for tokenizer in (words(begin=True), words(template=TEMPLATE)):
        task = Generate.plan(PAIRS)
        for learned, asked in zip(
            task.encode(tokenizer, PAIRS), task.encode(tokenizer, PAIRS, labelled=False), strict=True
        ):
            start = learned["labels"].index(next(label for label in learned["labels"] if label != -100))
            assert asked["input_ids"] == learned["input_ids"][:start] and "labels" not in asked
    (asked,) = Generate.plan({"messages": [TALK]}).encode(
        words(template=TEMPLATE), {"messages": [TALK]}, labelled=False
    )
    assert words().decode(asked["input_ids"]).endswith("[MASK] user w4 [SEP] [MASK] assistant")


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("begin", [True, False])
def test_every_token_of_plain_text_is_predicted_once(pack: bool, begin: bool, tmp_path: Path, monkeypatch: Any) -> None:
    tokenizer = words(begin=begin)
    task = Generate.plan({"text": TEXTS}, pack=pack, max_length=6)
    examples = task.encode(tokenizer, {"text": TEXTS})
    predicted = [token for example in examples for token in example["labels"][1:]]
    lines = [[*tokenizer(text)["input_ids"], 3] for text in TEXTS]
    assert predicted == ([*chain(*lines)][1:] if pack else [*chain(*(line[1:] for line in lines))])
    assert all(2 <= len(example["input_ids"]) <= 6 for example in examples)
    monkeypatch.setenv("GOSSAMER_CACHE", str(tmp_path))
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    assert list(task.encode(tokenizer, {"text": Lines(tmp_path / "text.txt")})) == list(examples)


def test_what_is_too_long_is_refused_or_loses_its_oldest_tokens() -> None:
    long = {"prompt": ["w1 w2 w3 w4 w5"], "response": ["w6 w7"]}
    with pytest.raises(BadData, match="row 1 has 8 tokens where max_length is 6"):
        Generate.plan(long, max_length=6).encode(words(), long)
    (cut,) = Generate.plan(long, max_length=6, too_long="cut").encode(words(), long)
    assert read(words(), cut) == ("w3 w4 w5 w6 w7 [SEP]", "w6 w7 [SEP]")
    with pytest.raises(BadData, match="the last reply must fit"):
        Generate.plan(long, max_length=3, too_long="cut").encode(words(), long)
    (asked,) = Generate.plan(long, max_length=3, too_long="cut").encode(words(), long, labelled=False)
    assert words().decode(asked["input_ids"]) == "w3 w4 w5"
    talk = {"messages": [TALK]}
    (cut,) = Generate.plan(talk, max_length=10, too_long="cut").encode(words(template=TEMPLATE), talk)
    assert read(words(), cut)[1] == "[SEP] w5 w6 [SEP]"


# loss and scores -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [gpt2, llama])
def test_loss_and_perplexity_are_those_of_the_reply_in_any_batches(make: Any) -> None:
    model, tokenizer, task = make(), words(), Generate.plan(PAIRS)
    examples = task.encode(tokenizer, PAIRS)
    lost: list[float] = []
    for example in examples:
        ids = torch.tensor(example["input_ids"])
        reply = sum(label != -100 for label in example["labels"])
        logits = model(ids[None]).logits[0]
        lost += nn.functional.cross_entropy(logits[-reply - 1 : -1], ids[-reply:], reduction="none").tolist()
    for size in (1, 2):
        found: list[Any] = []
        for at in range(0, 2, size):
            batch = task.collate(tokenizer)(examples[at : at + size])
            output = model(**batch)
            found += task.found(output, batch)
        scores = task.scores(found, examples)
        assert scores["loss"] == pytest.approx(np.mean(lost), rel=1e-5)
        assert scores["perplexity"] == pytest.approx(math.exp(np.mean(lost)), rel=1e-4)
    assert output.loss.item() == pytest.approx(np.mean(lost), rel=1e-5)  # what is trained is what is scored
    assert task.metric in task.falling and task.baseline(examples) == {}


# generation ------------------------------------------------------------------------------------------------------------


def greedy(model: nn.Module, ids: list[int], count: int) -> list[int]:
    made: list[int] = []
    while len(made) < count and 3 not in made:
        made.append(int(model(torch.tensor([ids + made])).logits[0, -1].argmax()))
    return made


@pytest.mark.parametrize("make", [gpt2, llama])
def test_generation_is_greedy_and_the_same_in_any_batch(make: Any) -> None:
    model, tokenizer = make(), words()
    table = {"prompt": ["w1", "w2 w3 w4 w5 w6", "w7 w8"]}
    task = Generate.plan({**table, "response": ["w1"] * 3}, max_new_tokens=5)
    encoded = task.encode(tokenizer, table, labelled=False)
    wanted = [tokenizer.decode(greedy(model, e["input_ids"], 5), skip_special_tokens=True).strip() for e in encoded]
    model.train()
    before = bits(model)
    for size in (1, 3):
        assert [a["text"] for a in task.respond(model, tokenizer, encoded, batch_size=size)] == wanted
    assert model.training and same_bits(model, before)
    with pytest.raises(BadPlan, match="respond"):
        task.answers([], encoded)


def test_sampled_generation_is_of_torch_s_seed() -> None:
    task = Generate.plan({"text": ["w1"]}, temperature=5.0, max_new_tokens=8)
    encoded = task.encode(words(), {"text": ["w1 w2"]}, labelled=False)
    model, said = gpt2(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        said.append(task.respond(model, words(), encoded))
    assert said[0] == said[1] != said[2]


def test_a_prompt_that_leaves_no_room_is_named() -> None:
    task = Generate.plan({"text": ["w1"]}, max_new_tokens=63)
    encoded = task.encode(words(), {"text": ["w1", "w1 w2"]}, labelled=False)
    with pytest.raises(BadData, match="row 2 has 2 tokens"):
        task.respond(gpt2(), words(), encoded)


# a whole run -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_delta_learns_replies_and_answers_with_them(make: Any, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    task = Generate.plan(PAIRS, max_new_tokens=4, max_length=32)
    model, head = task.build(str(tmp_path), 0)
    assert head == []
    examples, tokenizer = task.encode(words(), PAIRS), words()
    batch = task.collate(tokenizer)(examples)
    with gs.tune(model, "random", density=0.5, head=False) as tuned:
        optimizer = torch.optim.Adam(tuned.parameters(), 0.02)
        for _ in range(150):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()
        delta = tuned.delta()
    with gs.applied(model, delta):
        answers = task.respond(model, tokenizer, task.encode(tokenizer, PAIRS, labelled=False))
    assert answers == [{"text": "w4"}, {"text": "w5 w6 w7"}]


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    base = str(masked_directory(tmp_path))
    with pytest.raises(BadPlan, match="no causal language model"):
        Generate.plan(PAIRS, max_length=32).build(base, 0)


# mistakes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"template": "x"}, "template='x'"),
        ({"too_long": "x"}, "too_long='x'"),
        ({"metric": "bleu"}, "metric='bleu'"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": float("nan")}, "temperature=nan"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(BadPlan, match=says):
        Generate.plan(PAIRS, **settings)


@pytest.mark.parametrize(
    ("table", "tokenizer", "says"),
    [
        ({"prompt": ["w1", " "], "response": ["w1", "w2"]}, words(), "column 'prompt', row 2 holds ' '"),
        ({"prompt": ["w1"], "response": [None]}, words(), "column 'response', row 1 holds None"),
        ({"messages": [TALK, "w1"]}, words(template=TEMPLATE), "row 2 holds 'w1'"),
        ({"messages": [[{"role": "user"}]]}, words(template=TEMPLATE), "each with role and content"),
        ({"messages": [TALK[:2]]}, words(template=TEMPLATE), "no message of the role 'assistant'"),
        ({"messages": [TALK]}, words(template="{{ raise_exception('odd') }}"), "row 1: .* refuses .* odd"),
    ],
)
def test_bad_rows_are_named(table: Any, tokenizer: Any, says: str) -> None:
    with pytest.raises(BadData, match=says):
        Generate.plan(table).encode(tokenizer, table)


def test_conversations_need_a_template_that_tells_replies_apart() -> None:
    talk = {"messages": [TALK]}
    with pytest.raises(BadPlan, match="has no chat template"):
        Generate.plan(talk).encode(words(), talk)
    changing = "{% for m in messages %}{{ loop.length }}{{ m['content'] }}{% endfor %}"
    with pytest.raises(BadPlan, match="does not write a reply after its own prompt"):
        Generate.plan(talk).encode(words(template=changing), talk)
    with pytest.raises(BadData, match="cannot tell what to learn"):
        Generate.plan({"a": ["x"], "b": ["y"]})
    with pytest.raises(BadFile, match="upgrade"):
        Generate.read({"name": "generate"})
