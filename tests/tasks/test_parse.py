"""parse: scores are CoNLL-18's, no word is lost, a tiny parser learns a tiny language."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertModel, Trainer, TrainingArguments

import gossamer as gs
from gossamer.delta.base import backbone, base_parameters
from gossamer.errors import BadData, BadFile, BadPlan
from gossamer.tasks import treebank
from gossamer.tasks.biaffine import BiaffineParser
from gossamer.tasks.parse import LONGEST, Parse
from gossamer.tasks.readers import Table
from tests.tiny import base_directory, bert_config, bits, same_bits, tokenizer

KINDS = ["root", "nsubj", "nsubj:pass", "obl", "obl:tmod", "punct"]


def language(count: int, seed: int = 0, longest: int = 7) -> Table:
    """The root word is the one of w0 … w9; words of even number hang on it, others on the word before (or the root)."""
    rng = random.Random(seed)
    table: Table = {"words": [], "heads": [], "deprels": []}
    for _ in range(count):
        n = rng.randint(2, longest)
        root = rng.randrange(n)
        numbers = [rng.randint(0, 9) if i == root else rng.randint(10, 89) for i in range(n)]
        heads = [0 if i == root else root + 1 if k % 2 == 0 or i == 0 else i for i, k in enumerate(numbers)]
        kinds = ["root" if i == root else "nsubj:pass" if k % 2 == 0 else "obl" for i, k in enumerate(numbers)]
        table["words"].append([f"w{k}" for k in numbers])
        table["heads"].append(heads)
        table["deprels"].append(kinds)
    return table


def parser(task: Parse, seed: int = 0, window: int = 38, **changes: Any) -> BiaffineParser:
    torch.manual_seed(seed)
    base = BertModel(bert_config(**changes), add_pooling_layer=False)
    return BiaffineParser(base, len(task.deprels), arc_size=16, rel_size=8, dropout=0.0, window=window, tree=task.tree)


def run(task: Parse, model: BiaffineParser, encoded: list[dict[str, Any]]) -> list[np.ndarray]:
    model.eval()
    batch = task.collate(tokenizer())(encoded)
    with torch.no_grad():
        return task.found(model(**batch), batch)


# scores -------------------------------------------------------------------------------------------------------------


def conll18(gold: list[list[tuple[int, str]]], system: list[list[tuple[int, str]]]) -> tuple[float, float]:
    """UAS and LAS, F1 over aligned words, as the shared task's script defines them; words are the same on both sides."""
    pairs = [(a, b) for one, other in zip(gold, system, strict=True) for a, b in zip(one, other, strict=True)]
    uas = [a[0] == b[0] for a, b in pairs]
    las = [(a[0], a[1].split(":")[0]) == (b[0], b[1].split(":")[0]) for a, b in pairs]
    return tuple(2 * sum(right) / (len(pairs) + len(pairs)) for right in (uas, las))  # type: ignore[return-value]


WORD = st.tuples(st.integers(0, 2), st.sampled_from([*KINDS, "root:x", "new", "new:x", "punct:new", "obl:new"]))


@given(st.lists(st.lists(st.tuples(WORD, WORD), min_size=1, max_size=6), min_size=1, max_size=5))
def test_scores_are_those_of_conll18(pairs: list[list[tuple[tuple[int, str], tuple[int, str]]]]) -> None:
    task = Parse(tuple(KINDS[:3] + KINDS[4:]), "root", True)  # obl is not seen in training, obl:tmod is
    n = [len(sentence) for sentence in pairs]
    gold = [[(min(head, len(s)), kind) for (head, kind), _ in s] for s in pairs]
    system = [[(head, task.deprels[len(kind) % 5]) for _, (head, kind) in s] for s in pairs]
    table = {"words": [["w1"] * k for k in n], "heads": [[h for h, _ in s] for s in gold],
             "deprels": [[k for _, k in s] for s in gold]}  # fmt: skip
    found = [np.array([(head, task.deprels.index(kind)) for head, kind in s]) for s in system]
    scores = task.scores(found, task.encode(tokenizer(), table))
    assert (scores["uas"], scores["las"]) == conll18(gold, system)


def test_the_baseline_is_a_chain() -> None:
    table = {
        "words": [["w1", "w2", "w3"], ["w1"]],
        "heads": [[2, 3, 0], [0]],
        "deprels": [["obl", "obl", "root"], ["root"]],
    }
    task = Parse.plan(table)
    assert not task.before and task.usual == "obl"
    assert task.baseline(task.encode(tokenizer(), table)) == {"las": 0.5, "uas": 1.0}
    table["heads"][0] = [0, 1, 2]
    task = Parse.plan(table)
    assert task.before and task.baseline(task.encode(tokenizer(), table))["uas"] == 1.0


# data ---------------------------------------------------------------------------------------------------------------


def test_words_of_several_tokens_and_of_none() -> None:
    table = {
        "words": [["w1-w2", "\x07", "w3"], ["w4"]],
        "heads": [[0, 1, 1], [0]],
        "deprels": [["root", "obl", "obl"], ["root"]],
    }
    task = Parse.plan(table)
    long, short = task.encode(tokenizer(), table)
    assert long["words"] == [-1, 0, 0, 0, 1, 2, -1] and short["words"] == [-1, 0, -1]
    assert long["labels"] == [[0, 1], [1, 0], [1, 0]]
    batch = task.collate(tokenizer())([long, short])
    assert batch["labels"].shape == (2, 3, 2) and batch["labels"][1].tolist() == [[0, 1], [-100, -100], [-100, -100]]
    assert batch["attention_mask"].sum(1).tolist() == [7, 3] and batch["words"][1].tolist() == [
        -1,
        0,
        -1,
        -1,
        -1,
        -1,
        -1,
    ]
    assert "labels" not in task.encode(tokenizer(), table, labelled=False)[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"words": [["w1", "w2"], []]}, "sentence 2 holds"),
        ({"words": [["w1", "w2"], "w1"]}, "sentence 2 holds"),
        ({"words": [["w1", "w2"], ["w1"] * (LONGEST + 1)]}, "sentence 2 has 2,001 words"),
        ({"heads": [[0, 1], None]}, "sentence 2 has no heads"),
        ({"heads": [[0, 3], [0]]}, "sentence 1 has the heads"),
        ({"heads": [[0, None], [0]]}, "sentence 1 has the heads"),
        ({"deprels": [["root"], ["root"]]}, "sentence 1 has no deprels"),
    ],
)
def test_bad_data(change: Table, says: str) -> None:
    table: Table = {"words": [["w1", "w2"], ["w1"]], "heads": [[0, 1], [0]], "deprels": [["root", "obl"], ["root"]]}
    with pytest.raises(BadData, match=says):
        Parse.plan({**table, **change})
    with pytest.raises(BadData, match="no column 'words'"):
        Parse.plan({"text": ["a"]})


def test_settings_and_description() -> None:
    table = language(5)
    task = Parse.plan(table, metric="uas", rel_size=10, tree=False)
    assert Parse.read(task.describe()) == task and task.describe()["name"] == "parse"
    with pytest.raises(BadFile):
        Parse.read({"name": "parse"})
    for wrong in ({"metric": "f1"}, {"max_length": 2}, {"rel_size": 0}, {"dropout": 1.0}):
        with pytest.raises(BadPlan):
            Parse.plan(table, **wrong)


# model --------------------------------------------------------------------------------------------------------------


def test_the_head_lies_outside_the_base(tmp_path: Path) -> None:
    model, head = Parse.plan(language(20)).build(str(base_directory(tmp_path)), 0)
    assert backbone(model) is model.backbone
    assert set(head) == {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}
    assert set(base_parameters(model)) == {
        n for n, _ in BertModel(bert_config(), add_pooling_layer=False).named_parameters()
    }
    again, _ = Parse.plan(language(20)).build(str(base_directory(tmp_path)), 0)
    assert same_bits(again, bits(model))


def test_root_words_count_and_padding_does_not() -> None:
    table = language(6)
    task = Parse.plan(table)
    model, encoded = parser(task), task.encode(tokenizer(), table)
    batch = task.collate(tokenizer())(encoded)
    output = model(**batch)
    arcs, rels, labels = output.arc_scores.log_softmax(-1), output.rel_scores.log_softmax(-1), batch["labels"]
    words = [(i, j, *map(int, labels[i, j])) for i, s in enumerate(table["words"]) for j in range(len(s))]
    loss = -sum(arcs[i, j, head] + rels[i, j, kind] for i, j, head, kind in words) / len(words)
    torch.testing.assert_close(output.loss, loss)
    assert sum(head == 0 for *_, head, _ in words) == 6
    assert torch.isneginf(arcs.diagonal(1, 1, 2)).all()
    for i, sentence in enumerate(table["words"]):
        assert torch.isneginf(arcs[i, :, len(sentence) + 1 :]).all()


def test_a_sentence_alone_is_parsed_as_in_a_batch() -> None:
    task = Parse.plan(language(9))
    model, encoded = parser(task), task.encode(tokenizer(), language(9), labelled=False)
    together = run(task, model, encoded)
    assert [row.tolist() for row in together] == [run(task, model, [one])[0].tolist() for one in encoded]


def test_rows_cut_out_of_a_batch_have_the_loss_of_their_sentence() -> None:
    task = Parse.plan(language(9))
    model, encoded = parser(task).eval(), task.encode(tokenizer(), language(9))
    batch = task.collate(tokenizer())(encoded)
    for i, one in enumerate(encoded):
        cut = model(**{name: values[i : i + 1] for name, values in batch.items()}).loss
        torch.testing.assert_close(cut, model(**task.collate(tokenizer())([one])).loss)
        with torch.no_grad():
            assert (
                not model(**{name: values[i : i + 1] for name, values in batch.items()})
                .heads[0, len(one["labels"]) :]
                .any()
            )


@pytest.mark.parametrize("tree", [True, False])
def test_what_is_found_is_a_tree_with_a_root_relation_where_root_is(tree: bool) -> None:
    task = Parse.plan(language(30, longest=12), tree=tree)
    found = run(task, parser(task, 1), task.encode(tokenizer(), language(30, longest=12)))
    assert all(((row[:, 0] == 0) == (row[:, 1] == task.deprels.index("root"))).all() for row in found)
    fine = [(row[:, 0] == 0).sum() == 1 and treebank._cycle(row[:, 0].tolist()) is None for row in found]
    assert all(fine) == tree


def test_long_sentences_are_read_in_windows() -> None:
    table = language(3, longest=120)
    task = Parse.plan(table)
    encoded = task.encode(tokenizer(), table)
    batch = task.collate(tokenizer())(encoded)
    assert batch["input_ids"].shape[1] > 60
    model = parser(task, window=11).eval()
    found = run(task, model, encoded)
    assert [len(row) for row in found] == [len(words) for words in table["words"]]
    model(**batch).loss.backward()
    assert torch.isfinite(model.backbone.embeddings.word_embeddings.weight.grad).all()


def test_windows_change_nothing_where_states_do_not_look_around() -> None:
    task = Parse.plan(language(3, longest=30))
    whole = parser(task, window=38, num_hidden_layers=0).eval()
    torch.nn.init.zeros_(whole.backbone.embeddings.position_embeddings.weight)
    batch = task.collate(tokenizer())(task.encode(tokenizer(), language(3, longest=30)))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    expected = whole._states(ids, mask)
    for window in range(4, ids.shape[1] + 2):
        whole.window = window
        torch.testing.assert_close(whole._states(ids, mask)[mask > 0], expected[mask > 0])


def test_it_runs_under_bf16() -> None:
    task = Parse.plan(language(8))
    batch = task.collate(tokenizer())(task.encode(tokenizer(), language(8)))
    model = parser(task)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    assert output.arc_scores.dtype == output.loss.dtype == torch.float32
    output.loss.backward()
    with torch.no_grad():
        assert model.bfloat16()(**batch).heads.shape == batch["labels"].shape[:2]


def test_a_relation_unseen_in_training_leaves_the_loss_finite() -> None:
    task = Parse.plan(language(8))
    table = {"words": [["w1", "w2"]], "heads": [[0, 1]], "deprels": [["new", "new:x"]]}
    encoded = task.encode(tokenizer(), table)
    assert encoded[0]["labels"] == [[0, -100], [1, -100]]
    assert torch.isfinite(parser(task)(**task.collate(tokenizer())(encoded)).loss)


# learning -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True])
def test_it_learns_under_an_unmodified_trainer(tmp_path: Path, sparse: bool) -> None:
    train, test = language(200), language(60, seed=1)
    task = Parse.plan(train)
    model = parser(task, hidden_size=32)
    encoded = task.encode(tokenizer(), test)
    data = [{k: v for k, v in example.items() if k[0] != "_"} for example in task.encode(tokenizer(), train)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), learning_rate=1e-2, num_train_epochs=8, per_device_train_batch_size=20, use_cpu=True,
        report_to="none", disable_tqdm=True, save_strategy="no", remove_unused_columns=False, dataloader_pin_memory=False,
        logging_strategy="no",
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=data, eval_dataset=encoded, data_collator=task.collate(tokenizer())
    )  # type: ignore[arg-type]
    chance = task.baseline(encoded)["las"]
    if sparse:
        with gs.tune(model, "random", density=0.2) as tuned:
            trainer.train()
            delta = tuned.delta()
        with gs.applied(model, delta):
            scores = task.scores(run(task, model, encoded), encoded)
    else:
        trainer.train()
        scores = task.scores(run(task, model, encoded), encoded)
        heads, rel_scores = trainer.predict(encoded).predictions  # type: ignore[arg-type]
        assert heads.shape[0] == 60 and rel_scores.shape[-1] == 3
    assert scores["las"] > max(0.8, chance + 0.3) and scores["uas"] >= scores["las"]


# answers ------------------------------------------------------------------------------------------------------------


def test_answers_are_written_as_conllu_that_can_be_read(tmp_path: Path) -> None:
    table = language(5)
    task = Parse.plan(table)
    encoded = task.encode(tokenizer(), {"words": table["words"]}, labelled=False)
    answers = task.answers(run(task, parser(task), encoded), encoded)
    path = tmp_path / "parsed.conllu"
    path.write_text(task.write(answers, {"words": table["words"]}))
    read = treebank.read(path)
    assert [read["words"], read["heads"], read["deprels"]] == [
        [a[k] for a in answers] for k in ("words", "heads", "deprels")
    ]
    gold = [{"heads": heads, "deprels": kinds} for heads, kinds in zip(table["heads"], table["deprels"], strict=True)]
    path.write_text("# kept\n" + task.write(gold, read))
    assert task.write(gold, treebank.read(path)) == path.read_text()


def test_a_sentence_is_parsed_alike_whatever_shares_its_batch() -> None:
    torch.manual_seed(0)
    model = BiaffineParser(BertModel(bert_config()), 3, window=8).eval()
    rows = [torch.randint(5, 95, (1, n)) for n in (7, 12, 15)]
    ids = torch.zeros(3, 15, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : row.shape[1]] = row[0]
    mask = (ids > 0).long()
    words = torch.where(mask > 0, torch.arange(15) - 1, -1)
    with torch.no_grad():
        together = model(ids, mask, words).arc_scores
        for i, row in enumerate(rows):
            n = row.shape[1]
            alone = model(row, torch.ones_like(row), torch.arange(n)[None] - 1).arc_scores
            torch.testing.assert_close(together[i, : n - 1, :n], alone[0])
