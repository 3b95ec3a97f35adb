"""The contract of every method row, on several architectures: the entry ticket of a new method is a row here."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    RobertaConfig,
    T5Config,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

import gossamer as gs
from gossamer.train.tune import count
from gossamer.tunable.sm3 import SM3
from tests.tiny import batches, bert_config, bits, same_bits

SMALL = {"vocab_size": 95, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONFIGS: dict[str, PretrainedConfig] = {
    "bert": bert_config(num_labels=2),
    "roberta": RobertaConfig(**SMALL, max_position_embeddings=40, num_labels=2),
    "gpt2": GPT2Config(vocab_size=95, n_embd=16, n_layer=2, n_head=2, n_positions=40, num_labels=2, pad_token_id=0),
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2, num_labels=2, pad_token_id=0),
    "t5": T5Config(vocab_size=95, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, num_labels=2,
                   decoder_start_token_id=0),
    "vit": ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8,
                     patch_size=4, num_labels=2),
}  # fmt: skip
DENSITY = 0.02


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    config = CONFIGS[name]
    return (
        ViTForImageClassification(config) if name == "vit" else AutoModelForSequenceClassification.from_config(config)
    )


def data(name: str, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    made = batches(3, seed=seed)
    if name == "vit":
        generator = torch.Generator().manual_seed(seed)
        return [{"pixel_values": torch.randn(4, 3, 8, 8, generator=generator), "labels": b["labels"]} for b in made]
    if name == "t5":  # its sentence representation is the one at the end-of-sequence token
        for batch in made:
            batch["input_ids"][:, -1] = 1
    return made


class Loop:
    """A plain training loop as a trainer: ten lines, no transformers."""

    def __init__(self, model: nn.Module, batches: list[dict[str, torch.Tensor]], phase: Any = None) -> None:
        self.model, self.batches = model, batches
        self.kind = SM3 if phase is not None and phase.optimizer == "sm3" else torch.optim.AdamW

    def train(self) -> None:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = self.kind(trained, lr=1e-2, weight_decay=0.1)
        for batch in self.batches:
            self.model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def logits(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(**batch).logits


def short(row: Any) -> dict[str, Any]:
    """A row's options for a training of three steps."""
    few = {"warmup": 2, "every": 1, "window": 1, "total_steps": 4}
    return {name: value for name, value in few.items() if name in row.options}


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("method", gs.methods())
def test_contract(method: str, architecture: str, tmp_path: Path) -> None:
    row = gs.methods()[method]
    model, train = build(architecture), data(architecture)
    if method == "bitfit" and architecture in ("llama", "t5"):
        with pytest.raises(gs.GossamerError, match="bias"):
            gs.fit(model, method, trainer=lambda m: Loop(m, train))
        return
    before, seen = bits(model), []
    delta = gs.fit(model, method, trainer=lambda m, phase: Loop(m, train, phase),
                   density=DENSITY if row.counted else None, data=train,
                   watch=lambda phase, found: seen.append(found), values="fp32", **short(row))  # fmt: skip

    assert same_bits(model, before), "the base must be bit-identical after detaching"
    assert len(seen) == sum(hasattr(phase, "lr") for phase in row.phases)
    m = count(model)
    if row.counted:
        assert delta.k == int(m * DENSITY)
    assert delta.m == m
    assert delta.head

    delta.save(tmp_path / "delta.safetensors")
    loaded = gs.load(tmp_path / "delta.safetensors")
    assert loaded == delta
    with gs.applied(model, delta):
        trained = logits(model, train[0])
    with gs.applied(model, loaded):
        assert torch.equal(logits(model, train[0]), trained)
    assert same_bits(model, before)
    assert not torch.equal(logits(model, train[0]), trained)

    if delta.grafts:
        with pytest.raises(gs.GossamerError, match="cannot be merged"):
            gs.merge(model, delta)
        assert same_bits(model, before)
        return
    merged = gs.merge(build(architecture), delta)
    assert torch.equal(logits(merged, train[0]), trained)


@pytest.mark.parametrize("method", gs.methods())
def test_bf16_base(method: str) -> None:
    model, train = build("bert").bfloat16(), data("bert")
    before = bits(model)
    row = gs.methods()[method]
    delta = gs.fit(model, method, trainer=lambda m, phase: Loop(m, train, phase),
                   density=DENSITY if row.counted else None, data=train, **short(row))  # fmt: skip
    assert same_bits(model, before)
    assert delta.norm() > 0 or delta.grafts
    plain = logits(model, train[0])
    with gs.applied(model, delta):
        assert delta.grafts or not same_bits(model, before)
        assert not torch.equal(logits(model, train[0]), plain)
    assert same_bits(model, before)


def test_lt_sft_in_rounds_grows_its_support() -> None:
    model, train = build("bert"), data("bert")
    before, seen = bits(model), []
    delta = gs.fit(model, "lt-sft", trainer=lambda m: Loop(m, train), k=101, rounds=3, values="fp32",
                   watch=lambda phase, found: seen.append((phase.tunable, found)))  # fmt: skip
    sparse = [found.support for kind, found in seen if kind == "sparse"]
    assert [support.k for support in sparse] == [33, 67, 101]
    assert all((small - large).k == 0 for small, large in pairwise(sparse))
    assert delta.k == 101
    assert not any("LayerNorm" in name for name in delta.terms)
    assert same_bits(model, before)


def test_a_round_begins_where_the_last_one_ended() -> None:
    model, train = build("bert"), data("bert")
    starts, ends = [], []

    def factory(m: nn.Module) -> Loop:
        starts.append(bits(m.bert))
        return Loop(m, train)

    def watch(phase: Any, found: gs.Delta) -> None:
        with gs.applied(build("bert"), found) as other:
            ends.append(bits(other.bert))

    gs.fit(model, "lt-sft", trainer=factory, k=100, rounds=2, watch=watch)
    dense, sparse, dense_again, sparse_again = starts
    assert all(torch.equal(dense[name], sparse[name]) for name in dense), "phase two begins at the base"
    assert all(torch.equal(ends[1][name], dense_again[name]) for name in dense)
    assert all(torch.equal(ends[1][name], sparse_again[name]) for name in dense)


def test_lt_sft_rewinds_the_head_and_every_weight() -> None:
    model, train = build("bert"), data("bert")
    starts = []

    def factory(m: nn.Module) -> Loop:
        starts.append({n: p.detach().clone() for n, p in m.named_parameters() if not n.startswith("gossamer.")})
        return Loop(m, train)

    gs.fit(model, "lt-sft", trainer=factory, k=50)
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])


def test_any_trainer_class_and_phase_defaults(tmp_path: Path) -> None:
    model, train = build("bert"), data("bert")
    rows = [{n: v[i].tolist() for n, v in batch.items()} for batch in train for i in range(4)]
    rates = []

    def factory(m: nn.Module, phase: Any) -> Trainer:
        rates.append(phase.lr)
        args = TrainingArguments(str(tmp_path / str(phase.index)), learning_rate=phase.lr, max_steps=3, report_to="none",
                                 save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False)  # fmt: skip
        return Trainer(m, args, train_dataset=rows)

    gs.fit(model, "lt-sft", trainer=factory, k=50, l1=0.1)
    assert rates == [phase.lr for phase in gs.methods()["lt-sft"].phases if hasattr(phase, "lr")]
    free, drawn = (gs.fit(build("bert"), "lt-sft", trainer=lambda m: Loop(m, train), k=50, l1=l1) for l1 in (0.0, 1e9))
    assert drawn.norm() != free.norm(), "a loop of one's own has the penalty too"


def test_more_asked_for_than_moved() -> None:
    model = build("bert")
    with pytest.raises(gs.GossamerError, match="only 0 moved"):
        gs.fit(model, "lt-sft", trainer=lambda m: Loop(m, []), k=50)
