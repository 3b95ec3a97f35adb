"""embed: the known recipe's vectors, losses and scores by their definitions, a head of nothing in every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from transformers import AutoModel, BertConfig, BertForMaskedLM, Trainer, TrainingArguments

import gossamer as gs
from gossamer.delta.base import backbone, base_parameters, outer_parameters
from gossamer.errors import BadData, BadFile, BadPlan
from gossamer.tasks.embed import Embed
from gossamer.tasks.pooled import contrastive
from gossamer.tasks.pretrained import load_tokenizer, locate
from tests.tiny import base_directory, bert_config, bits, same_bits, tokenizer

PAIRS = {"text_a": ["w1 w2", "w3", "w5 w6 w7"], "text_b": ["w2", "w4 w4", "w7"]}
STS = {**PAIRS, "label": [5, 0, 2.5]}


@pytest.mark.parametrize(
    ("table", "settings", "expected"),
    [
        (STS, {}, (("text_a", "text_b"), "label", 5.0, "spearman")),
        (PAIRS, {}, (("text_a", "text_b"), None, 1.0, "mrr")),
        (STS, {"label": "none"}, (("text_a", "text_b"), None, 1.0, "mrr")),
        ({"sentence1": ["a"], "sentence2": ["b"], "score": [0.3]}, {}, (("sentence1", "sentence2"), "score", 1.0, "spearman")),
        ({"sentence1": ["a"], "sentence2": ["b"], "score": ["4.8"]}, {}, (("sentence1", "sentence2"), "score", 5.0, "spearman")),
        ({"query": ["a"], "answer": ["b"]}, {"metric": "accuracy"}, (("query", "answer"), None, 1.0, "accuracy")),
        ({"x": ["a"], "y": ["b"], "label": [1]}, {"fields": ["x", "y"], "scale": 4.0}, (("x", "y"), "label", 4.0, "spearman")),
    ],
)  # fmt: skip
def test_columns_and_scale_are_found(table: dict[str, list[Any]], settings: dict[str, Any], expected: Any) -> None:
    task = Embed.plan(table, **settings)
    assert (task.fields, task.label, task.scale, task.metric) == expected
    assert Embed.read(task.describe()) == task


def test_what_is_wrong_is_said() -> None:
    for table, settings, says in (
        ({"text": ["a"]}, {}, "cannot tell which two columns"),
        ({**PAIRS, "label": ["yes", "no", "no"]}, {}, "row 1 holds 'yes'; a pair's score is a number"),
        ({**PAIRS, "label": [1.0, None, 2.0]}, {}, "row 2 holds None"),
        ({**PAIRS, "label": [1.0, float("nan"), 2.0]}, {}, "row 2 holds nan"),
        ({"text_a": ["a"], "text_b": [7]}, {}, "'text_b', row 1 holds 7; expected text"),
        (PAIRS, {"fields": ["text_a", "nope"]}, "no column 'nope'"),
        (PAIRS, {"label": "nope"}, "no column 'nope'"),
    ):
        with pytest.raises(BadData, match=says):
            Embed.plan(table, **settings)
    for settings in ({"fields": ["text_a"]}, {"metric": "pearson"}, {"temperature": 0.0}, {"scale": -1.0}):
        with pytest.raises(BadPlan):
            Embed.plan(PAIRS, **settings)
    with pytest.raises(BadFile, match="upgrade"):
        Embed.read({"name": "embed"})


def test_encoding(caplog: pytest.LogCaptureFixture) -> None:
    task = Embed.plan(STS, max_length=4)
    examples = task.encode(tokenizer(), STS)
    assert examples[0]["input_ids"] == [2, 6, 7, 3] and examples[0]["input_ids_b"] == [2, 7, 3]
    assert [example["labels"] for example in examples] == [1.0, 0.0, 0.5]
    assert "inputs are longer than 4 tokens" in caplog.text
    batch = task.collate(tokenizer())(examples)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch["input_ids_b"].shape == (3, 4) and batch["labels"].dtype == torch.float32
    assert not any(name.startswith("_") for name in batch)
    alone = task.encode(tokenizer(), {"text": ["w1", ""]}, labelled=False)
    assert alone[0]["input_ids"] == [2, 6, 3] and "input_ids_b" not in alone[0]
    with pytest.raises(BadData, match="no column 'label'"):
        task.encode(tokenizer(), PAIRS)


def embeddings(task: Embed, model: Any, tok: Any, table: dict[str, list[Any]]) -> list[dict[str, Any]]:
    examples = task.encode(tok, table, labelled=False)
    batch = task.collate(tok)(examples)
    with torch.no_grad():
        return task.answers(task.found(model.eval()(**batch), batch), examples)


def test_the_embedded_base_is_the_model_that_it_is_known_as() -> None:
    texts = [
        "A man is playing a guitar.",
        "Somebody plays the guitar.",
        "The stock market fell sharply on Monday.",
    ]
    tok = load_tokenizer("minilm")
    model, head = Embed.plan(PAIRS).build("minilm", 0)
    assert head == [] and list(outer_parameters(model)) == []
    known = AutoModel.from_pretrained(locate("minilm")).eval()
    encoded = tok(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = known(**encoded).last_hidden_state  # the model card's recipe
    mask = encoded["attention_mask"].unsqueeze(-1).expand(hidden.size()).float()
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9), p=2, dim=1)
    task = Embed.plan(PAIRS)
    with gs.applied(model, gs.Delta({})):
        said = embeddings(task, model, tok, {"text": texts})
        pairs = embeddings(task, model, tok, {"text_a": [texts[0]] * 2, "text_b": texts[1:]})
    assert np.array([one["embedding"] for one in said]) == pytest.approx(expected.numpy(), abs=1e-5)
    near, far = (one["cosine"] for one in pairs)
    assert near > 0.6 and far < 0.2
    assert near == pytest.approx(float(expected[0] @ expected[1]), abs=1e-5)


@given(st.integers(1, 6), st.floats(0.02, 2), st.integers(0, 2**31))
def test_the_contrastive_loss_by_its_definition(n: int, temperature: float, seed: int) -> None:
    a, b = torch.randn(2, n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    same = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) < 0.3
    c = np.array([[float(torch.cosine_similarity(x, y, dim=0)) for y in b] for x in a]) / temperature
    each = [np.log(sum(np.exp(c[i, j] - c[i, i]) for j in range(n) if i == j or not same[i, j])) for i in range(n)]
    found = contrastive(a, b, temperature=temperature, same=same)
    assert float(found) == pytest.approx(np.mean(each), abs=1e-6)


def test_equal_texts_are_no_negatives_and_losses_are_of_their_kind(tmp_path: Path) -> None:
    base = str(base_directory(tmp_path))
    twice = {"text_a": ["w1", "w1", "w2 w9"], "text_b": ["w3", "w4", "w4"]}
    task = Embed.plan(twice)
    model = task.build(base, 0)[0].eval()
    out = model(**task.collate(tokenizer())(task.encode(tokenizer(), twice)))
    same = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1]]).bool()
    assert torch.equal(out.loss, contrastive(out.embedding, out.embedding_b, temperature=0.05, same=same))
    scored = Embed.plan(STS, normalized=False)
    model = scored.build(base, 0)[0].eval()
    batch = scored.collate(tokenizer())(scored.encode(tokenizer(), STS))
    out = model(**batch)
    cosines = torch.cosine_similarity(out.embedding, out.embedding_b)
    assert torch.allclose(out.loss, ((cosines - torch.tensor([1, 0, 0.5])) ** 2).mean())
    assert not torch.allclose(out.embedding.norm(dim=-1), torch.ones(3))
    batch.pop("labels")
    assert model(**batch).loss is None


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=8), st.integers(0, 2**31))
def test_ranks_by_their_definition(kinds: list[tuple[int, int]], seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(2, 6, 2))
    found = [np.stack([vectors[0, a], vectors[1, b]]) for a, b in kinds]
    encoded = [{"input_ids_b": [b]} for _, b in kinds]
    each = []
    texts = sorted({b for _, b in kinds})
    for a, b in kinds:
        cosines = [
            vectors[0, a] @ vectors[1, t] / np.linalg.norm(vectors[0, a]) / np.linalg.norm(vectors[1, t]) for t in texts
        ]
        each.append(rankdata([-c for c in cosines])[texts.index(b)])
    scores = Embed.plan(PAIRS).scores(found, encoded)
    assert scores["mrr"] == pytest.approx(np.mean([1 / r for r in each]))
    assert scores["accuracy"] == pytest.approx(np.mean([r == 1 for r in each]))


def test_scores_of_scored_pairs_and_baselines() -> None:
    task = Embed.plan(STS)
    encoded = [{"labels": y, "input_ids_b": [y]} for y in (1.0, 0.0, 0.5)]
    angles = [0.1, 1.2, 0.6]
    found = [np.array([[1, 0], [np.cos(t), np.sin(t)]]) for t in angles]
    scores = task.scores(found, encoded)
    assert scores["spearman"] == pytest.approx(1.0)
    assert scores["pearson"] == pytest.approx(np.corrcoef(np.cos(angles), [1.0, 0.0, 0.5])[0, 1])
    assert task.scores([np.ones((2, 2))] * 3, encoded) == task.baseline(encoded) == {"spearman": 0.0, "pearson": 0.0}
    assert Embed.plan(PAIRS).baseline(encoded) == {"mrr": 0.5, "accuracy": 0.0}
    assert task.answers([], []) == []


@pytest.mark.parametrize("table", [STS, PAIRS], ids=["scored", "pairs"])
@pytest.mark.parametrize("method", ["full", "fisher", "lora"])
def test_it_learns_through_an_unmodified_trainer_without_a_head(tmp_path: Path, table: Any, method: str) -> None:
    base = str(base_directory(tmp_path / "base"))
    task = Embed.plan(table)
    model, head = task.build(base, 0)
    examples, collate = task.encode(tokenizer(), table), task.collate(tokenizer())
    assert backbone(model) is model.backbone and "embeddings.word_embeddings.weight" in base_parameters(model)
    before = bits(model)

    def trainer(m: Any) -> Trainer:
        args = TrainingArguments(str(tmp_path / "run"), max_steps=12, learning_rate=1e-2, report_to="none", disable_tqdm=True,
                                 use_cpu=True, remove_unused_columns=False, dataloader_pin_memory=False,
                                 per_device_train_batch_size=3, save_strategy="no")  # fmt: skip
        return Trainer(m, args, train_dataset=examples, data_collator=collate)

    more: dict[str, Any] = {} if method != "fisher" else {"density": 0.1, "data": [collate(examples)], "per": "batch"}
    delta = gs.fit(model, method, trainer=trainer, head=head or False, **more)
    assert same_bits(model, before) and delta.head == {}
    batch = collate(examples)

    def loss() -> float:
        with torch.no_grad():
            return float(model.eval()(**batch).loss)

    start = loss()
    delta.save(tmp_path / "d.safetensors")
    with gs.applied(model, gs.load(tmp_path / "d.safetensors")):
        assert loss() < start


def test_a_checkpoint_without_a_pooler_gives_no_head_and_saving_gives_the_backbone(tmp_path: Path) -> None:
    config: BertConfig = bert_config()
    BertForMaskedLM(config).save_pretrained(tmp_path / "mlm")
    model, head = Embed.plan(PAIRS).build(str(tmp_path / "mlm"), 0)
    assert head == []
    model.save_pretrained(tmp_path / "out")
    again = AutoModel.from_pretrained(tmp_path / "out", add_pooling_layer=False)
    assert all(torch.equal(p, dict(model.backbone.named_parameters())[n]) for n, p in again.named_parameters())
