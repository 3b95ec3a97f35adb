"""classify: columns and labels are found, scores are the libraries', mistakes are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer.errors import BadData, BadPlan
from gossamer.tasks.classify import Classify
from gossamer.tasks.docstrings import passages, split
from gossamer.tasks.pretrained import load_tokenizer, locate
from gossamer.tasks.readers import read
from gossamer.tasks.task import plan_task, read_task
from tests.tiny import tokenizer


def plan(table: dict[str, list[Any]], **settings: Any) -> Classify:
    return Classify.plan(table, **settings)


@pytest.mark.parametrize(
    ("table", "fields", "labels"),
    [
        (
            {"idx": [1, 2], "label": ["1", "0"], "text_a": ["a b", "c"], "text_b": ["d", "e"]},
            ("text_a", "text_b"),
            ("0", "1"),
        ),
        ({"hypothesis": ["a", "b"], "label": ["n", "e"], "premise": ["c", "d"]}, ("premise", "hypothesis"), ("e", "n")),
        ({"text": ["a", "b"], "label": [10, 2]}, ("text",), ("2", "10")),
        ({"text": ["a", "b"], "label": [True, False]}, ("text",), ("0", "1")),
        ({"sentence": ["a", "b"], "target": [1.0, 0]}, ("sentence",), ("0", "1")),
        ({"title": ["a b", "c d"], "body": ["a b", "c d"], "class": ["x", "y"]}, ("title", "body"), ("x", "y")),
        ({"text": ["a", "b"], "label": [0.5, 1]}, ("text",), None),
        ({"text": ["a", "b"], "label": ["0.5", "1"]}, ("text",), None),
    ],
)
def test_columns_and_labels_are_found(table: dict[str, list[Any]], fields: tuple[str, ...], labels: Any) -> None:
    task = plan(table)
    assert task.fields == fields
    assert task.labels == labels
    assert task.metric == ("accuracy" if labels else "pearson_spearman")
    assert read_task(task.describe()) == task


def test_whole_numbers_are_labels_unless_a_metric_says_otherwise() -> None:
    table = {"text": ["a", "b", "c"], "label": [1, 2, 5]}
    assert plan(table).labels == ("1", "2", "5")
    task = plan(table, metric="spearman")
    assert task.labels is None
    assert [e["labels"] for e in task.encode(tokenizer(), table)] == [1.0, 2.0, 5.0]


@pytest.mark.parametrize(
    ("table", "settings", "says"),
    [
        ({"text": ["a"], "label": ["x"]}, {}, "at least two different labels"),
        ({"text": ["a", "b"], "label": ["x", None]}, {}, "row 2 has no label"),
        ({"text": ["a", "b"]}, {}, "no column 'label'"),
        ({"a": [1], "b": [2], "label": ["x"]}, {}, "cannot tell which columns"),
        ({"text": ["a", "b"], "label": ["x", "y"]}, {"fields": ("nope",)}, "no column 'nope'"),
    ],
)
def test_bad_data(table: dict[str, list[Any]], settings: dict[str, Any], says: str) -> None:
    with pytest.raises(BadData, match=says):
        plan(table, **settings)


def test_bad_plans() -> None:
    table = {"text": ["a", "b"], "label": ["x", "y"]}
    with pytest.raises(BadPlan, match="expected one of accuracy"):
        plan(table, metric="bleu")
    with pytest.raises(BadPlan, match="named twice"):
        plan(table, fields=("text", "text"))
    with pytest.raises(BadPlan, match="classify takes no choices and no colour; it takes fields, label"):
        plan_task("text-classification", table, choices=["a"], colour=1, label=None)
    with pytest.raises(BadPlan, match="unknown task"):
        plan_task("juggle", table)
    with pytest.raises(BadPlan, match="upgrade"):
        read_task({"name": "juggle"})


def test_more_than_two_fields_are_joined_in_the_second_segment() -> None:
    table = {"a": ["w1"] * 2, "b": ["w2"] * 2, "c": ["w3"] * 2, "label": ["x", "y"]}
    task = plan(table, fields=("a", "b", "c"))
    assert task.encode(tokenizer(), table)[0]["input_ids"] == [2, 6, 3, 7, 3, 8, 3]
    assert read_task(task.describe()) == task


def test_a_description_of_an_earlier_version_opens() -> None:
    old = {"fields": ["text"], "label": "label", "labels": ["a", "b"], "metric": "accuracy", "max_length": 128,
           "usual": "a", "name": "classify"}  # fmt: skip
    task = read_task(old)
    assert {**task.describe(), "fields": ["text"], "labels": ["a", "b"]} == old, "and none that has no spans says so"


def test_encoding_and_unseen_labels() -> None:
    task = plan({"text_a": ["w1", "w2"], "text_b": ["w3", "w4"], "label": ["x", "y"]}, max_length=8)
    good = task.encode(tokenizer(), {"text_a": ["w1 w2", "w3"], "text_b": ["w4", "w5 " * 50], "label": ["y", "x"]})
    assert [e["labels"] for e in good] == [1, 0]
    assert good[0]["input_ids"] == [2, 6, 7, 3, 9, 3]
    assert len(good[1]["input_ids"]) == 8
    assert "labels" not in task.encode(tokenizer(), {"text_a": ["w1"], "text_b": ["w2"]}, labelled=False)[0]
    with pytest.raises(BadData, match="'z' in row 2 was not seen in training, which had x, y"):
        task.encode(tokenizer(), {"text_a": ["", ""], "text_b": ["", ""], "label": ["x", "z"]})
    with pytest.raises(BadData, match="row 1 holds 3; expected text"):
        task.encode(tokenizer(), {"text_a": [3], "text_b": ["w1"], "label": ["x"]})
    number = plan({"text": ["a", "b"], "label": [0.5, 1.5]})
    with pytest.raises(BadData, match="predicts a number"):
        number.encode(tokenizer(), {"text": ["a"], "label": ["high"]})


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=4, max_size=40))
def test_binary_scores_by_their_definitions(pairs: list[tuple[int, int]]) -> None:
    guess, gold = np.array(pairs).T
    task = Classify(("text",), "label", ("0", "1"), "accuracy")
    scores = task.scores(np.eye(2)[guess], [{"labels": int(g)} for g in gold])
    tp, fp, fn, tn = (int(((guess == a) & (gold == b)).sum()) for a, b in ((1, 1), (1, 0), (0, 1), (0, 0)))
    assert scores["accuracy"] == pytest.approx((tp + tn) / len(pairs))
    assert scores["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0)
    spread = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert scores["matthews"] == pytest.approx((tp * tn - fp * fn) / spread if spread else 0)
    assert scores["accuracy_f1"] == pytest.approx((scores["accuracy"] + scores["f1"]) / 2)


def test_number_scores_and_baselines() -> None:
    task = Classify(("text",), "label", None, "pearson_spearman")
    gold = [{"labels": v} for v in (0.0, 1.0, 2.0, 4.0)]
    perfect = task.scores(np.array([[0.0], [1.0], [2.0], [4.0]]), gold)
    assert perfect == pytest.approx({"pearson_spearman": 1.0, "pearson": 1.0, "spearman": 1.0})
    assert task.baseline(gold) == {"pearson_spearman": 0.0, "pearson": 0.0, "spearman": 0.0}
    labels = plan({"text": ["a", "b", "c"], "label": ["b", "b", "a"]})
    test = [{"labels": 0}, {"labels": 0}, {"labels": 1}, {"labels": 0}]
    assert labels.baseline(test)["accuracy"] == 0.25  # training's majority, not the test's


def test_minilm_is_found_offline() -> None:
    assert (Path(locate("minilm")) / "model.safetensors").is_file()
    assert locate("some/model") == "some/model"
    assert len(load_tokenizer("minilm")) == 30522


def test_a_directory_without_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((Path(locate("minilm")) / "config.json").read_text())
    with pytest.raises(BadPlan, match="has no tokenizer"):
        load_tokenizer(str(tmp_path))


def test_docstring_passages_are_real_distinct_and_seeded() -> None:
    table = passages(400)
    assert len(table["text"]) == len(set(table["text"])) == len(table["label"]) == 400
    assert len(set(table["label"])) >= 6
    assert table == passages(400)
    train, test = split(table)
    assert (len(train["text"]), len(test["text"])) == (320, 80)
    assert not set(train["text"]) & set(test["text"])


def test_labels_of_mixed_types_are_one_label_where_they_mean_one() -> None:
    table = {"text": list("abcdef"), "label": [1, "1", 1.0, True, 0, "no"]}
    task = Classify.plan(table)
    assert task.labels == ("0", "1", "no")
    assert [task.labels[i] for i in task._targets(table)] == ["1", "1", "1", "1", "0", "no"]


NLI = {
    "premise": ["w1 w2", "w3", "w4"],
    "hypothesis": ["w5", "w6", "w7"],
    "label": ["neutral", "entailment", "contradiction"],
}


@pytest.mark.parametrize(
    "header",
    [
        "language\tpremise\thypothesis\tlabel",
        "language\tsentence1\tsentence2\tgold_label",
        "lang\ttext_a\ttext_b\tlabel",
    ],
)
def test_a_collection_of_another_header_is_read_as_it_was_trained(header: str, tmp_path: Path) -> None:
    path = tmp_path / "dev.tsv"  # of AmericasNLI's shape: a quotation mark is a character
    rows = zip(*NLI.values(), strict=True)
    path.write_text("\n".join([header, *("gn\t" + "\t".join(row) for row in rows)]) + "\n", "utf-8")
    task = plan(NLI)
    assert task.encode(tokenizer(), read(str(path))) == task.encode(tokenizer(), NLI)


def test_other_headers_are_errors_not_guesses() -> None:
    task = plan(NLI)
    with pytest.raises(
        BadData, match="no column 'hypothesis'"
    ):  # it has one of the pair, so it was not meant otherwise
        task.encode(tokenizer(), {"premise": ["a"], "sentence1": ["a"], "sentence2": ["b"], "label": ["neutral"]})
    with pytest.raises(BadData, match="'0' in row 1 was not seen"):  # which number is which label, only its makers know
        task.encode(tokenizer(), {**NLI, "label": ["0", "1", "2"]})
