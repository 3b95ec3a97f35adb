"""Sparse leaves: ordinary parameters whose training moves k weights, exactly as dense training under a mask would."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.delta.apply import applied
from gossamer.delta.base import base_parameters
from gossamer.delta.support import Support
from gossamer.errors import BadPlan, Clash, Diverged
from gossamer.tunable.tuned import Tuned
from tests.tiny import batches, bits, classifier, gradients, same_bits


class Odd(nn.Module):
    """Owners and uses of weights that are not a Linear's: 3-D, embedding, norm, a tied output, attention's inner weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8)
        self.norm = nn.LayerNorm(8)
        self.experts = nn.Parameter(torch.randn(3, 8, 8) / 3)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 20)
        self.out.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.embed(ids))
        hidden = torch.einsum("btd,edf->btf", hidden, self.experts)
        hidden, _ = self.attention(hidden, hidden, hidden)
        return self.out(hidden)


def some(model: nn.Module, share: float = 0.3, seed: int = 0) -> Support:
    generator = torch.Generator().manual_seed(seed)
    return Support(
        {n: torch.nonzero(torch.rand(p.numel(), generator=generator) < share).flatten()
         for n, p in base_parameters(model).items()}
    )  # fmt: skip


def test_gradients_are_the_dense_ones_at_the_support() -> None:
    model, ids = Odd(), torch.arange(12).view(2, 6)
    dense = copy.deepcopy(model)
    dense(ids).square().mean().backward()
    tuned = Tuned(model, some(model))
    model(ids).square().mean().backward()
    for name, indices in tuned.leaves.support.items():
        expected = dense.get_parameter(name).grad.reshape(-1)[indices]
        torch.testing.assert_close(gradients(tuned)[name], expected, rtol=1e-5, atol=1e-7)
    assert len(tuned.leaves.support) == len(list(model.parameters())) - len(list(tuned.leaves.parameters()))
    tuned.detach()


def test_frozen_weights_have_no_gradient_and_leaves_are_found() -> None:
    model = classifier()
    with gs.tune(model, "random", density=0.05) as tuned:
        model(**batches(1)[0]).loss.backward()
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert {id(p) for p in trained.values()} == {id(p) for p in tuned.parameters()}
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
        assert sum(p.numel() for n, p in trained.items() if n.startswith("gossamer.")) == tuned.k
        assert {n for n in trained if not n.startswith("gossamer.")} == {"classifier.weight", "classifier.bias"}


def train(
    model: nn.Module, parameters: list[nn.Parameter], steps: int, mask: dict[str, torch.Tensor] | None = None
) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    data = batches(5)
    for step in range(steps):
        model(**data[step % 5]).loss.backward()
        if mask:
            for name, parameter in base_parameters(model).items():
                parameter.grad *= mask[name]
        optimizer.step()
        optimizer.zero_grad()


def test_hundred_steps_equal_dense_training_under_a_mask() -> None:
    model = classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    dense = copy.deepcopy(model)
    support = some(model, 0.05)
    mask = {n: torch.zeros(p.numel()) for n, p in base_parameters(dense).items()}
    for name, indices in support.items():
        mask[name][indices] = 1.0
    train(dense, list(dense.parameters()), 100, {n: m.view_as(base_parameters(dense)[n]) for n, m in mask.items()})
    tuned = Tuned(model, support)
    train(model, list(tuned.parameters()), 100)
    for (name, a), (_, b) in zip(base_parameters(model).items(), base_parameters(dense).items(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6, msg=name)
    tuned.detach()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "data"])
def test_decay_clipping_and_accumulation_move_nothing_else(optimizer: str) -> None:
    model = classifier()
    before = bits(model)
    with gs.tune(model, "random", k=200) as tuned:
        made: torch.optim.Optimizer
        if optimizer == "data":  # writes through .data, which leaves version counters alone
            made = DataSGD(tuned.parameters(), lr=0.1)
        else:
            kind = torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD
            made = kind(tuned.parameters(), lr=1e-2, weight_decay=0.1)
        for step, batch in enumerate(batches(8)):
            (model(**batch).loss / 2).backward()
            if step % 2:
                torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
                made.step()
                made.zero_grad()
        changed = {
            n: torch.nonzero((p != before[f"bert.{n}"]).reshape(-1)).flatten()
            for n, p in base_parameters(model).items()
        }
        assert 0 < sum(c.numel() for c in changed.values()) <= 200
        for name, entries in changed.items():
            assert torch.isin(entries, tuned.leaves.support.get(name, torch.zeros(0, dtype=torch.int64))).all()
    assert same_bits(model, before)


class DataSGD(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = p.data - group["lr"] * p.grad


def test_weight_decay_draws_the_change_toward_zero() -> None:
    model = classifier()
    with gs.tune(model, "random", k=50, head=False) as tuned:
        leaves = list(tuned.parameters())
        for leaf in leaves:
            leaf.data.fill_(1.0)
            leaf.grad = torch.zeros_like(leaf)
        torch.optim.SGD(leaves, lr=0.1, weight_decay=1.0).step()
        assert all(torch.equal(leaf, torch.full_like(leaf, 0.9)) for leaf in leaves)
        name, indices = next(iter(tuned.leaves.support.items()))
        base = tuned.stack.sites[name].kept
        values = tuned.leaves.by_weight([("values", leaves[0].detach())])[name]
        assert torch.equal(
            base_parameters(model)[name].detach().reshape(-1)[indices], (base.double() + values.double()).float()
        )


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant: bool) -> None:
    found = []
    for checkpointing in (False, True):
        model = classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            if reentrant:
                model.enable_input_require_grads()
        with gs.tune(model, "random", density=0.05) as tuned:
            model(**batches(1)[0]).loss.backward()
            found.append(gradients(tuned))
    # the embeddings lie before the checkpointed layers; reentrant checkpointing cuts nothing off for them either
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name])


def test_autocast_and_bf16_bases_train_fp32_leaves() -> None:
    model = classifier()
    with gs.tune(model, "random", density=0.05) as tuned:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(**batches(1)[0]).loss
        loss.backward()
        assert all(leaf.grad.dtype == torch.float32 for leaf in tuned.leaves.parameters())
    half = classifier().bfloat16()
    before = bits(half)
    with gs.tune(half, "random", density=0.05) as tuned:
        optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-2)
        for batch in batches(3):
            half(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert all(leaf.dtype == torch.float32 for leaf in tuned.leaves.parameters())
        delta = tuned.delta()
    assert delta.norm() > 0
    assert same_bits(half, before)


def test_second_backward() -> None:
    model, ids = Odd().double(), torch.arange(12).view(2, 6)
    model.attention.eval()
    tuned = Tuned(model, some(model, 0.1))
    leaf = tuned.leaves.leaves["values"]

    def gradient() -> torch.Tensor:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return torch.autograd.grad(model(ids).square().mean(), leaf, create_graph=True)[0]

    second = torch.autograd.grad(gradient()[0], leaf)[0]
    step = 1e-6
    with torch.no_grad():
        leaf[0] += step
    above = gradient()[0].item()
    with torch.no_grad():
        leaf[0] -= 2 * step
    below = gradient()[0].item()
    assert second[0].item() == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-9)
    tuned.detach()


def test_disabled_is_the_frozen_base_and_comes_back() -> None:
    model = classifier().eval()
    batch = batches(1)[0]
    for method in ("random", "full"):
        frozen = model(**batch).logits
        with gs.tune(model, method, head=False) as tuned:
            optimizer = torch.optim.SGD(tuned.parameters(), lr=1.0)
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            moved = model(**batch).logits
            with tuned.disabled():
                assert torch.equal(model(**batch).logits, frozen)
            assert torch.equal(model(**batch).logits, moved)
            assert not torch.equal(moved, frozen)


def test_delta_applied_is_the_trained_model() -> None:
    model = classifier().eval()
    batch = batches(1)[0]
    for method in ("random", "full", "bitfit"):
        with gs.tune(model, method) as tuned:
            optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-2)
            for other in batches(3):
                model(**other).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            model.eval()
            trained = model(**batch).logits
            delta = tuned.delta("fp32")
        with applied(model, delta):
            torch.testing.assert_close(model(**batch).logits, trained, rtol=1e-5, atol=1e-6)


def test_tuning_on_a_delta_keeps_it_underneath() -> None:
    model = classifier().eval()
    before = bits(model)
    with gs.tune(model, "random", density=0.05, seed=1, head=False) as tuned:
        for leaf in tuned.leaves.parameters():
            leaf.data.normal_()
        language = tuned.delta()
    batch = batches(1)[0]
    with applied(model, language):
        expected = model(**batch).logits
    with gs.tune(model, "random", density=0.05, seed=2, on=language) as tuned:
        assert torch.equal(model(**batch).logits, expected)
        for leaf in tuned.leaves.parameters():
            torch.nn.init.normal_(leaf)
        both = model(**batch).logits
        task = tuned.delta("fp32")
    with applied(model, task + language):
        torch.testing.assert_close(model(**batch).logits, both, rtol=1e-5, atol=1e-6)
    assert same_bits(model, before)


def test_an_exception_inside_restores_everything() -> None:
    model = classifier().train()
    before, wanted = bits(model), [p.requires_grad for p in model.parameters()]

    def fail() -> None:
        with gs.tune(model, "full") as tuned:
            for p in tuned.parameters():
                p.data.add_(1.0)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert same_bits(model, before)
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert model.training
    assert not hasattr(model, "gossamer")


def test_refusals() -> None:
    model = classifier()
    with gs.tune(model, "random", k=10) as tuned:
        with pytest.raises(Clash), gs.tune(model, "random", k=10):
            pass
        with pytest.raises(BadPlan, match="bf16"):
            tuned.delta("int3")
        next(iter(tuned.leaves.parameters())).data.fill_(float("nan"))
        with pytest.raises(Diverged, match="diverged"):
            tuned.delta()
    with pytest.raises(BadPlan, match="over"):
        tuned.delta()
    for wrong in (
        {"density": 0.0},
        {"density": 1.5},
        {"density": 1e-9},
        {"k": 0},
        {"k": 10**9},
        {"density": 0.1, "k": 3},
    ):
        with pytest.raises(BadPlan), gs.tune(model, "random", **wrong):
            pass
    with pytest.raises(BadPlan, match="takes per_tensor"), gs.tune(model, "random", colour=1):
        pass
    with pytest.raises(BadPlan, match="fit"), gs.tune(model, "lt-sft"):
        pass
    with pytest.raises(BadPlan, match="expected one of"), gs.tune(model, "lottery"):
        pass
    with pytest.raises(BadPlan, match="data="), gs.tune(model, "fisher"):
        pass
    with pytest.raises(BadPlan, match="bias"), gs.tune(nn.Linear(3, 3, bias=False), "bitfit"):
        pass


def test_l1_adds_its_gradient_once_a_step_after_clipping() -> None:
    model = classifier()
    with gs.tune(model, "random", k=30, head=False) as tuned:
        leaves = list(tuned.parameters())
        signs = []
        for leaf in leaves:
            leaf.data.copy_(torch.arange(leaf.numel()) % 3 - 1.0)
            leaf.grad = torch.zeros_like(leaf)
            signs.append(leaf.detach().clone())
        optimizer = torch.optim.SGD(leaves, lr=1.0)
        tuned.penalize(0.5 * tuned.m)
        optimizer.step()
        for leaf, sign in zip(leaves, signs, strict=True):
            assert torch.equal(leaf.detach(), sign - 0.5 * sign)
