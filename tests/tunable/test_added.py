"""Adapters and LoRA in training: what trains, where it is registered, that the file gives the trained model back."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertForMaskedLM, BertForSequenceClassification, GPT2LMHeadModel, Trainer, TrainingArguments

import gossamer as gs
from gossamer.delta.delta import Delta
from gossamer.delta.patch import LowRank, Sparse
from gossamer.errors import BadPlan, Clash, Diverged
from tests.contracts.test_methods import CONFIGS, Loop, build, data, logits
from tests.tiny import bert_config, bits, same_bits

ADDED = ("houlsby", "pfeiffer", "lora")


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("method", ADDED)
def test_the_delta_gives_the_trained_model(method: str, architecture: str) -> None:
    model, train = build(architecture), data(architecture)
    before, names = bits(model), [name for name, _ in model.named_modules()]
    flags = [p.requires_grad for p in model.parameters()]
    plain = logits(model, train[0])
    with gs.tune(model, method) as tuned:
        start = logits(model, train[0])
        torch.testing.assert_close(start, plain, rtol=0, atol=5e-2)
        mine = {id(p) for p in tuned.parameters()}
        assert mine == {id(p) for p in model.parameters() if p.requires_grad}
        assert tuned.k == sum(p.numel() for p in tuned.leaves.parameters())
        model.train()
        Loop(model, train).train()
        trained, delta = logits(model, train[0]), tuned.delta("fp32")
        with tuned.disabled():
            off = logits(model, train[0])
        assert torch.equal(logits(model, train[0]), trained)
    assert same_bits(model, before)
    assert [name for name, _ in model.named_modules()] == names
    assert [p.requires_grad for p in model.parameters()] == flags
    assert hooks(model) == 0
    assert not any("peft" in name for name in vars(model.base_model))
    with gs.applied(model, delta):
        torch.testing.assert_close(logits(model, train[0]), trained, rtol=1e-5, atol=1e-5)
        if delta.grafts:
            assert torch.equal(logits(model, train[0]), trained)
    head_only = Delta({}, base=delta.base, head=delta.head)
    with gs.applied(model, head_only):
        assert torch.equal(logits(model, train[0]), off)
    assert not torch.equal(trained, off)
    assert delta.k == tuned.k == delta.about["k"]
    assert all(isinstance(p, LowRank) for terms in delta.terms.values() for _, p in terms)


@pytest.mark.parametrize("inner", [1, 8])
def test_sizes_of_twelve_layers(inner: int) -> None:
    model = BertForSequenceClassification(bert_config(num_hidden_layers=12, num_labels=2))
    with gs.tune(model, "houlsby", bottleneck=inner) as tuned:
        assert tuned.k == 24 * (2 * 16 * inner + inner + 16)
    with gs.tune(model, "pfeiffer", bottleneck=inner) as tuned:
        assert tuned.k == 12 * (2 * 16 * inner + inner + 16)
    with gs.tune(model, "lora", r=inner) as tuned:
        assert tuned.k == 12 * inner * (4 * 32 + 2 * 48)
    with gs.tune(model, "pfeiffer", bottleneck=inner, norms=True) as tuned:
        assert tuned.k == 12 * (2 * 16 * inner + inner + 16) + 25 * 2 * 16


def test_norms_train_as_a_patch_and_exclusions_hold() -> None:
    model, train = build("bert"), data("bert")
    before = bits(model)
    with gs.tune(model, "pfeiffer", norms=True, exclude=["encoder.layer.0", "embeddings"]) as tuned:
        Loop(model, train).train()
        trained, delta = logits(model, train[0]), tuned.delta("fp32")
    assert [graft.place for graft in delta.grafts] == ["encoder.layer.1.output.dense"]
    assert set(delta.terms) == {f"encoder.layer.1.{m}.LayerNorm.{p}" for m in ("attention.output", "output")
                                for p in ("weight", "bias")}  # fmt: skip
    assert all(isinstance(patch, Sparse) for terms in delta.terms.values() for _, patch in terms)
    with gs.applied(model, delta):
        assert torch.equal(logits(model, train[0]), trained)
    with gs.tune(model, "lora", exclude=["encoder.layer.0", "*.output.*"]) as tuned:
        assert {n.split(".")[2] for n in tuned.leaves.patches()} == {"1"}
        assert len(tuned.leaves.patches()) == 4
    with pytest.raises(BadPlan, match="exclude"), gs.tune(model, "pfeiffer", exclude="encoder"):
        pass
    assert same_bits(model, before)


@pytest.mark.parametrize("method", ADDED)
def test_seeds(method: str) -> None:
    model, train = build("bert"), data("bert")

    def run(seed: int) -> gs.Delta:
        torch.manual_seed(5)
        return gs.fit(model, method, trainer=lambda m: Loop(m, train), seed=seed)

    random = torch.random.get_rng_state()
    with gs.tune(model, method, seed=9):
        assert torch.equal(torch.random.get_rng_state(), random), "attaching draws from a generator of its own"
    assert run(0) == run(0)
    assert run(0) != run(1)


@pytest.mark.parametrize("method", ADDED)
def test_checkpointing_accumulation_clipping_and_autocast(method: str) -> None:
    train = data("bert")

    def gradients(reentrant: bool | None, autocast: bool = False) -> list[torch.Tensor]:
        model = build("bert").train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if reentrant is not None:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        with gs.tune(model, method) as tuned, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            for batch in train:
                model(**batch).loss.backward()
            found = list(tuned.parameters())
            assert float(nn.utils.clip_grad_norm_(found, 1e-3)) > 0
            return [p.grad.clone() for p in found if p.grad is not None]

    plain = gradients(None)
    for reentrant in (False, True):
        for a, b in zip(plain, gradients(reentrant), strict=True):
            torch.testing.assert_close(a, b)
    for a, b in zip(plain, gradients(None, autocast=True), strict=True):
        assert b.dtype == torch.float32
        assert b.isfinite().all()
        assert a.shape == b.shape


@pytest.mark.parametrize("method", ADDED)
def test_leaves_are_float32_over_a_half_precision_base(method: str) -> None:
    model, train = build("llama").bfloat16(), data("llama")
    with gs.tune(model, method) as tuned:
        assert {leaf.dtype for leaf in tuned.leaves.parameters()} == {torch.float32}
        Loop(model, train).train()
        assert tuned.delta().k == tuned.k


@pytest.mark.parametrize("method", ADDED)
def test_an_unmodified_trainer_saves_and_loads_the_leaves(method: str, tmp_path: Any) -> None:
    model = build("bert")
    rows = [{n: v[i].tolist() for n, v in batch.items()} for batch in data("bert") for i in range(4)]
    args = TrainingArguments(str(tmp_path), learning_rate=1e-2, max_steps=4, save_steps=2, eval_strategy="steps", eval_steps=2,
                             load_best_model_at_end=True, report_to="none", disable_tqdm=True, weight_decay=0.1,
                             dataloader_pin_memory=False)  # fmt: skip
    with gs.tune(model, method) as tuned:
        first = [leaf.detach().clone() for leaf in tuned.parameters()]
        trainer = Trainer(model, args, train_dataset=rows, eval_dataset=rows)
        trainer.train()
        last = [leaf.detach().clone() for leaf in tuned.parameters()]
        assert not any(torch.equal(a, b) for a, b in zip(first, last, strict=True))
        saved = torch.load(tmp_path / "checkpoint-4" / "optimizer.pt")
        assert len(saved["state"]) == len(first)
        assert tuned.delta().k == tuned.k


def test_the_leaves_are_read_from_the_model() -> None:
    model, batch = build("bert").eval(), data("bert")[0]
    with gs.tune(model, "pfeiffer") as tuned:
        leaves = {n: p.detach() * 3 for n, p in model.named_parameters() if n.startswith("gossamer.")}
        assert len(leaves) == len(list(tuned.leaves.parameters()))
        plain = model(**batch).logits
        other = torch.func.functional_call(model, leaves, kwargs=batch).logits
        assert not torch.equal(plain, other)
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for leaf in tuned.leaves.parameters():
                leaf.mul_(3)
        assert torch.equal(logits(model, batch), other)
        assert torch.equal(logits(twin, batch), plain), "a copy has leaves of its own"


@pytest.mark.parametrize("method", ADDED)
def test_a_task_above_a_language(method: str) -> None:
    """Language adapters with invertible ends, learned with a language-model head, below a task."""
    torch.manual_seed(0)
    lm, model, train = BertForMaskedLM(bert_config()), build("bert"), data("bert")
    model.bert.load_state_dict(lm.bert.state_dict(), strict=False)
    texts = [{"input_ids": b["input_ids"], "labels": b["input_ids"]} for b in train]
    language = gs.fit(
        lm, "pfeiffer", trainer=lambda m: Loop(m, texts), invertible=True, activation="gelu", values="fp32"
    )
    assert [graft.kind for graft in language.grafts] == ["invertible", "bottleneck", "bottleneck"]
    assert language.grafts[0].inner == 4
    assert not language.head
    plain = logits(model, train[0])
    task_options = {} if method == "lora" else {"level": 1}
    before = bits(model)
    with gs.tune(model, method, on=language, **task_options) as tuned:
        Loop(model, train).train()
        trained, task = logits(model, train[0]), tuned.delta("fp32")
        with tuned.disabled():
            below = logits(model, train[0])
    assert not {graft.key for graft in task.grafts} & {graft.key for graft in language.grafts}
    with gs.applied(model, task + language):
        torch.testing.assert_close(logits(model, train[0]), trained, rtol=1e-5, atol=1e-5)
    with gs.applied(model, language), gs.applied(model, Delta({}, head=task.head)):
        assert torch.equal(logits(model, train[0]), below)
    with gs.applied(model, task):
        assert not torch.allclose(logits(model, train[0]), trained)
    assert torch.equal(logits(model, train[0]), plain)
    assert same_bits(model, before)
    assert hooks(model) == 0
    if method != "lora":
        with pytest.raises(Clash, match="level"), gs.tune(model, method, on=language):
            pass
        assert hooks(model) == 0


def test_an_invertible_module_trains_on_a_tied_language_model() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(CONFIGS["gpt2"])
    before = bits(model)
    ids = data("gpt2")[0]["input_ids"]
    with gs.tune(model, "pfeiffer", invertible=True) as tuned:
        optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-2)
        losses = []
        for _ in range(8):
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            losses.append(loss.item())
            assert all(p.grad is not None for p in tuned.parameters())
            optimizer.step()
            optimizer.zero_grad()
        delta = tuned.delta("fp32")
        trained = model.eval()(input_ids=ids).logits
    assert losses[-1] < losses[0]
    assert same_bits(model, before)
    with gs.applied(model, delta):
        assert torch.equal(model.eval()(input_ids=ids).logits, trained)


def test_training_above_a_delta_that_was_first_used_in_inference_mode() -> None:
    model, train = build("bert"), data("bert")
    below = gs.fit(model, "pfeiffer", trainer=lambda m: Loop(m, train))  # in bf16, so that it is cast when it is used
    with gs.tune(model, "lora", on=below):
        with torch.inference_mode():
            model(**train[0])
        model(**train[0]).loss.backward()


@pytest.mark.parametrize("method", ["houlsby", "pfeiffer"])
def test_compiled_models_train_and_answer_alike(method: str) -> None:
    model, batch = build("bert").eval(), data("bert")[0]
    with gs.tune(model, method) as tuned:
        compiled = torch.compile(model, backend="eager")
        for _ in range(2):
            plain = torch.autograd.grad(model(**batch).loss, list(tuned.parameters()))
            fast = torch.autograd.grad(compiled(**batch).loss, list(tuned.parameters()))
            for a, b in zip(plain, fast, strict=True):
                torch.testing.assert_close(a, b)
            with torch.no_grad():
                for leaf in tuned.parameters():
                    leaf.add_(0.1)
        delta = tuned.delta("fp32")
    with gs.applied(model, delta), torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend="eager")(**batch).logits, model(**batch).logits)


def test_fused_attention_of_torch_runs_its_bottleneck() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), torch.randn(3, 5, 16)
    plain = model(x)
    with gs.tune(model, "houlsby") as tuned:
        optimizer = torch.optim.SGD(tuned.parameters(), lr=10.0)
        model(x).square().mean().backward()
        assert all(leaf.grad.abs().sum() > 0 for leaf in tuned.parameters())
        optimizer.step()
        trained, delta = model(x).detach(), tuned.delta("fp32")
    assert not torch.allclose(trained, plain)
    with gs.applied(model, delta), torch.no_grad():
        torch.testing.assert_close(model(x), trained)
    with gs.tune(model, "lora") as tuned:
        assert {name.split(".")[2] for name in tuned.leaves.patches()} == {"linear1", "linear2"}


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("pfeiffer", {"bottleneck": 0}, "bottleneck=0"),
    ("pfeiffer", {"activation": "swish"}, "swish"),
    ("pfeiffer", {"activation": 3}, "activation=3"),
    ("pfeiffer", {"level": -1}, "level=-1"),
    ("pfeiffer", {"places": "nothing"}, "places='nothing'"),
    ("pfeiffer", {"places": 3}, "name pattern"),
    ("pfeiffer", {"r": 8}, "takes bottleneck"),
    ("pfeiffer", {"density": 0.1}, "neither density nor k"),
    ("lora", {"r": 0}, "r=0"),
    ("lora", {"alpha": float("nan")}, "alpha"),
    ("lora", {"targets": ["query", ""]}, "name pattern"),
    ("lora", {"targets": ["nothing"]}, "targets='nothing'"),
    ("lora", {"exclude": "encoder"}, "targets="),
]


@pytest.mark.parametrize(("method", "options", "says"), BAD)
def test_bad_options_are_refused_before_training(method: str, options: dict[str, Any], says: str) -> None:
    model = build("bert")
    before = bits(model)
    with pytest.raises(BadPlan, match=says), gs.tune(model, method, **options):
        pass
    assert same_bits(model, before)
    assert hooks(model) == 0


@pytest.mark.parametrize("method", ADDED)
def test_no_linear_layers(method: str) -> None:
    model = nn.Sequential(nn.Conv1d(4, 4, 1), nn.ReLU())
    with pytest.raises(BadPlan, match="targets=" if method == "lora" else "places="), gs.tune(model, method):
        pass


def test_lora_over_chosen_layers_and_not_over_shared_ones() -> None:
    model = build("bert")
    with gs.tune(model, "lora", targets=["query", "*.value"]) as tuned:
        assert len(tuned.leaves.patches()) == 4
    with gs.tune(model, "lora", targets="pooler.dense") as tuned:
        assert set(tuned.leaves.patches()) == {"pooler.dense.weight"}
    model.bert.encoder.layer[1].output.dense.weight = model.bert.encoder.layer[0].output.dense.weight
    with pytest.raises(BadPlan, match="serves several"), gs.tune(model, "lora"):
        pass


def test_lora_without_peft_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    model = build("bert")
    before = bits(model)
    with pytest.raises(BadPlan, match=r"gossamer\[peft\]"), gs.tune(model, "lora"):
        pass
    assert same_bits(model, before)


@pytest.mark.parametrize("method", ADDED)
def test_divergence_is_named(method: str) -> None:
    model = build("bert")
    with gs.tune(model, method) as tuned:
        with torch.no_grad():
            next(tuned.parameters()).fill_(float("nan"))
        with pytest.raises(Diverged, match="encoder"):
            tuned.delta()


def test_lora_takes_whole_names_only() -> None:
    """One layer's name is the end of another's, and the other is excluded."""
    block = lambda: nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(4, 4)})])  # noqa: E731

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.encoder = block(), nn.ModuleDict({"layers": block()})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.encoder["layers"][0]["fc"](self.layers[0]["fc"](x))

    model = Two()
    before = bits(model)
    with gs.tune(model, "lora", r=1, targets=["layers.0.fc"], exclude=["encoder"], head=False) as tuned:
        assert type(model.encoder["layers"][0]["fc"]) is nn.Linear
        assert tuned.k == 8
    assert same_bits(model, before)
