"""Diff pruning's gates, penalty, alias and rates, each against a reference of a few lines."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import gossamer as gs
from gossamer.cli.show import show
from gossamer.delta.base import base_parameters
from gossamer.errors import BadPlan
from gossamer.tunable.gated import GatedLeaves
from gossamer.tunable.hard_concrete import L, R, expected_open, mean, open_probability, sample, slope
from gossamer.tunable.tuned import Tuned
from tests.tiny import batches, bits, classifier, same_bits

ALPHAS = torch.tensor([-30.0, -5.0, -1.0, -0.0999, -1e-3, 0.0, 1e-9, 0.0999, 0.1002, 1.0, 5.0, 30.0])


def reference(u: Tensor, alpha: Tensor) -> Tensor:
    """z as the paper writes it, differentiable."""
    s = torch.sigmoid(torch.log(u) - torch.log1p(-u) + alpha)
    return (s * (R - L) + L).clamp(0.0, 1.0)


# the hard concrete distribution ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [-3.0, 0.0, 0.07, 1.0, 5.0])
def test_moments_by_monte_carlo(alpha):
    u = torch.rand(400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = torch.tensor(alpha, dtype=torch.float64)
    z = sample(u, a)
    assert torch.allclose(z, reference(u, a))
    assert float(z.mean()) == pytest.approx(float(mean(a)), abs=4 * float(z.std()) / 400_000**0.5 + 1e-9)
    assert float((z > 0).double().mean()) == pytest.approx(float(open_probability(a)), abs=3e-3)


def test_the_mean_by_numerical_integration():
    t = (np.arange(200_000) + 0.5) / 200_000
    for alpha, found in zip(ALPHAS.tolist(), mean(ALPHAS).tolist(), strict=True):
        x = (t - L) / (R - L)  # E[z] = ∫₀¹ P(z > t) dt
        above = 1 / (1 + np.exp(-(np.float64(np.float32(alpha)) - np.log(x) + np.log1p(-x))))
        assert found == pytest.approx(above.mean(), rel=1e-9)


def test_slopes_are_those_of_autograd():
    u = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha = torch.linspace(-2, 4, 1000, dtype=torch.float64, requires_grad=True)
    z = reference(u, alpha)
    torch.testing.assert_close(slope(z.detach()), torch.autograd.grad(z.sum(), alpha)[0])
    assert torch.autograd.gradcheck(mean, ALPHAS.double().requires_grad_(True))


@pytest.mark.parametrize("structured", [False, True])
def test_the_penalty_and_its_gradient_are_those_of_the_product(structured):
    generator = torch.Generator().manual_seed(1)
    alphas = {n: torch.randn(s, generator=generator).mul_(3) for n, s in (("a", (5, 7)), ("b", (4,)))}
    gates = {n: torch.tensor(g) for n, g in (("a", 0.7), ("b", -2.0))}
    c = np.log(-L / R)
    for leaf in (*alphas.values(), *gates.values()):
        leaf.requires_grad_(True)
    total = sum(
        (torch.sigmoid(alphas[n] - c) * (torch.sigmoid(gates[n] - c) if structured else 1.0)).sum() for n in alphas
    )
    total.backward()
    found = {n: expected_open(alphas[n].detach(), gates[n].detach() if structured else None) for n in alphas}
    assert float(sum(value for value, _, _ in found.values())) == pytest.approx(total.item())
    for name, (_, by_alpha, by_gate) in found.items():
        torch.testing.assert_close(by_alpha, alphas[name].grad)
        if structured:
            torch.testing.assert_close(by_gate, gates[name].grad)


# the leaves -----------------------------------------------------------------------------------------------------------


def gated(model: nn.Module, **options: Any) -> Tuned:
    """A model with gated leaves away from their start, so that every gradient is there."""
    tuned = Tuned(model, None, kind="gated", options=options)
    assert isinstance(tuned.leaves, GatedLeaves)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for leaf in tuned.leaves.w.values():
            leaf.copy_(torch.randn(leaf.shape, generator=generator) * 0.1)
        for leaf in (*tuned.leaves.alpha.values(), *tuned.leaves.gate.values()):
            leaf.copy_(torch.randn(leaf.shape, generator=generator))
    return tuned


def still(**changes: Any) -> nn.Module:
    return classifier(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **changes).train()


def drawn(leaves: GatedLeaves, number: int) -> dict[str, tuple[Tensor, Tensor | None]]:
    """The uniform numbers of the forward with this number."""
    found = {}
    for i, (name, w) in enumerate(leaves.w.items()):
        stream = torch.Generator().manual_seed(number + i)
        found[name] = torch.rand(w.shape, generator=stream), torch.rand((), generator=stream) if leaves.gate else None
    return found


@pytest.mark.parametrize("structured", [False, True])
def test_value_and_gradients_are_those_of_autograd(structured):
    model, batch = still(), batches(1)[0]
    plain = copy.deepcopy(model)
    tuned = gated(model, structured=structured)
    leaves = tuned.leaves
    assert isinstance(leaves, GatedLeaves)
    torch.manual_seed(3)
    number = int(torch.randint(1 << 62, ()))
    torch.manual_seed(3)
    loss = model(**batch).loss
    loss.backward()

    mine = {kind: {n: p.detach().clone().requires_grad_(True) for n, p in getattr(leaves, kind).items()}
            for kind in ("w", "alpha", "gate")}  # fmt: skip
    theta = {}
    for name, (u, u_gate) in drawn(leaves, number).items():
        z = reference(u, mine["alpha"][name])
        z = z * reference(u_gate, mine["gate"][name]) if structured else z
        theta[f"bert.{name}"] = base_parameters(plain)[name].detach() + z * mine["w"][name]
    expected = functional_call(plain, theta, kwargs=batch).loss
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for kind, named in mine.items():
        for name, leaf in named.items():
            torch.testing.assert_close(getattr(leaves, kind)[name].grad, leaf.grad, rtol=1e-4, atol=1e-7)
    assert any(leaf.grad.abs().sum() > 0 for leaf in mine["alpha"].values())
    tuned.detach()


@pytest.mark.parametrize("structured", [False, True])
def test_eval_mode_is_the_delta_and_its_gradient_goes_through_the_mean(structured):
    model, batch = still().eval(), batches(1)[0]
    before = bits(model)
    tuned = gated(model, structured=structured)
    leaves = tuned.leaves
    assert isinstance(leaves, GatedLeaves)
    output = model(**batch)
    output.loss.backward()
    name = "encoder.layer.0.output.dense.weight"
    w, alpha = (leaf.detach().clone().requires_grad_(True) for leaf in (leaves.w[name], leaves.alpha[name]))
    theta = model.bert.encoder.layer[0].output.dense.weight.detach() + mean(alpha).float() * w * (
        mean(leaves.gate[name]).item() if structured else 1.0
    )
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, output.logits)
    delta = tuned.delta("fp32")
    change: Any = delta.terms[name][0][1]
    torch.testing.assert_close(change.values, theta.detach() - before[f"bert.{name}"], rtol=1e-4, atol=1e-6)
    gradients = leaves.w[name].grad, leaves.alpha[name].grad
    with tuned.disabled():
        frozen = model(**batch).logits
    assert not torch.equal(frozen, output.logits)
    tuned.detach()
    assert same_bits(model, before)
    assert torch.equal(model(**batch).logits, frozen)
    with gs.applied(model, delta):
        assert torch.equal(model(**batch).logits, output.logits)
        loss = functional_call(model, {f"bert.{name}": theta}, kwargs=batch).loss
        expected = torch.autograd.grad(loss, (w, alpha))
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-7)


class Shared(nn.Module):
    """Layers that share their weights, a tied output, a weight that another module reads; checkpointed or not."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.reentrant = nn.Embedding(20, 8), reentrant
        self.layer = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 8), nn.Tanh())
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def block(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return x + self.attention(x, x, x)[0]

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for _ in range(3):
            x = self.block(x) if self.reentrant is None else checkpoint(self.block, x, use_reentrant=self.reentrant)
        return x @ self.embed.weight.T


def test_one_z_a_forward_also_where_it_is_computed_again():
    found = []
    for reentrant in (None, False, True):
        model = Shared(reentrant)
        tuned = gated(model)
        torch.manual_seed(1)
        first, second = model(torch.arange(12).view(2, 6)), model(torch.arange(12).view(2, 6))
        assert not torch.equal(first, second), "each forward draws anew"
        (first.square().mean() + second.square().mean()).backward()  # both forwards are under way at once
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
        tuned.detach()
    assert len(found[0]) == 2 * 7
    for other in found[1:]:
        for name, grad in found[0].items():
            torch.testing.assert_close(other[name], grad)


def test_a_forward_computed_again_in_another_random_state_is_refused():
    model = Shared(None)
    tuned = gated(model)
    x = torch.randn(2, 6, 8, requires_grad=True)
    y = checkpoint(
        model.block, model.embed(torch.arange(12).view(2, 6)) + x, use_reentrant=False, preserve_rng_state=False
    )
    with pytest.raises(BadPlan, match="preserve_rng_state"):
        y.sum().backward()
    tuned.detach()


def test_gates_on_a_delta_keep_it_underneath():
    model, batch = still(), batches(1)[0]
    with gs.tune(model, "random", density=0.1, head=False) as tuned:
        for leaf in tuned.parameters():
            nn.init.normal_(leaf)
        under = tuned.delta()
    with gs.applied(model, under):
        expected = model(**batch).logits
    tuned = Tuned(model, None, kind="gated", on=under)
    assert torch.equal(model(**batch).logits, expected), "w begins at 0"
    with torch.no_grad():
        tuned.leaves.w["pooler.dense.bias"].fill_(0.5)
    model.eval()
    both = model(**batch).logits
    with tuned.disabled():
        assert torch.equal(model(**batch).logits, expected)
    task = tuned.delta("fp32")
    tuned.detach()
    with gs.applied(model, task + under):
        torch.testing.assert_close(model(**batch).logits, both)


def test_a_backward_may_run_twice_but_not_after_a_step():
    model, batch = still(), batches(1)[0]
    tuned = gated(model)
    leaf = tuned.leaves.alpha["pooler.dense.weight"]
    loss = model(**batch).loss
    loss.backward(retain_graph=True)
    once = leaf.grad.clone()
    loss.backward(retain_graph=True)
    torch.testing.assert_close(leaf.grad, 2 * once)
    torch.optim.SGD(tuned.leaves.parameters(), lr=0.1).step()
    with pytest.raises(BadPlan, match="before the step"):
        loss.backward()
    tuned.detach()


def test_a_copy_is_refused_and_so_is_a_start():
    model = classifier()
    tuned = gated(model)
    with pytest.raises(BadPlan, match="copy"), torch.no_grad():
        copy.deepcopy(model)(**batches(1)[0])
    with pytest.raises(BadPlan, match="no change"):
        Tuned(classifier(), None, kind="gated", start=tuned.delta())
    tuned.detach()


# rates, penalty, phases -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_rates_and_penalty_are_those_of_two_parameter_groups(kind):
    """w and head at the optimizer's rate with decay; α at its own without; λ per weight once a step, on a schedule."""
    trained = []
    for apart in (False, True):
        model, data = still(), batches(6)
        tuned = Tuned(model, None, kind="gated", options={"structured": True, "alpha_lr": 0.05 if not apart else 1e9},
                      penalty=0.0 if apart else 30.0)  # fmt: skip
        leaves = tuned.leaves
        assert isinstance(leaves, GatedLeaves)
        gates = [*leaves.alpha.values(), *leaves.gate.values()]
        groups: list[Any] = [{"params": list(tuned.parameters())}]
        if apart:
            leaves._hooks[0].remove()
            rest = [p for p in tuned.parameters() if not any(p is gate for gate in gates)]
            groups = [{"params": rest}, {"params": gates, "lr": 0.05, "weight_decay": 0.0}]
        optimizer = kind(groups, lr=1e-3, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 2))
        torch.manual_seed(0)
        for i, batch in enumerate(data):
            model(**batch).loss.backward()
            if i % 2:  # two batches a step: the penalty counts once
                if apart:
                    leaves.add_penalty_gradient(30.0 / tuned.m)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        assert len(optimizer.param_groups) == len(groups)
        assert [p for g in optimizer.param_groups for p in g["params"]] == [p for g in groups for p in g["params"]]
        trained.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
        tuned.detach()
    assert trained[0].keys() == trained[1].keys()
    for name, values in trained[0].items():
        assert torch.equal(values, trained[1][name]), name
    assert not torch.equal(trained[0]["gossamer.gate.pooler/dense/weight"], torch.tensor(5.0))


class Loop:
    def __init__(self, model: nn.Module, steps: int) -> None:
        self.model, self.steps = model, steps

    def train(self) -> None:
        optimizer = torch.optim.Adam([p for p in self.model.parameters() if p.requires_grad], lr=1e-3)
        for batch in batches(self.steps):
            self.model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("method", ["diff-pruning", "diff-pruning-structured"])
def test_projection_keeps_exactly_the_k_largest_and_training_goes_on_from_them(method, tmp_path, capsys):
    seen, starts = [], []

    def factory(model: nn.Module, phase: Any) -> Loop:
        starts.append({n: p.detach().clone() for n, p in model.named_parameters()})
        return Loop(model, 0 if phase.index else 4)  # phase two trains nothing: it ends where it began

    base = still()
    delta = gs.fit(
        still(), method, k=321, trainer=factory, values="fp32", watch=lambda phase, found: seen.append(found)
    )
    scouted = torch.cat([seen[0].terms[name][0][1].values.reshape(-1) for name in sorted(base_parameters(base))])
    kept = torch.cat([torch.zeros(p.numel()).index_put_((i,), v) for p, i, v in places(base, delta)])
    order = torch.sort(scouted.abs(), descending=True, stable=True).indices[:321]
    assert delta.k == 321
    assert torch.equal(kept, torch.zeros_like(scouted).index_copy_(0, order, scouted[order]))
    head = [n for n in starts[0] if n.startswith("classifier.")]
    assert all(torch.equal(starts[1][n], seen[0].head[n]) for n in head), "the head goes on too"
    assert 0 < delta.about["natural_density"] < 1
    assert delta.about["natural_density"] == seen[0].about["natural_density"]
    delta.save(tmp_path / "d.safetensors")
    show(tmp_path / "d.safetensors")
    assert f"{delta.about['natural_density']:.3%} of the weights expected to change" in capsys.readouterr().out


def places(model: nn.Module, delta: gs.Delta) -> list[tuple[Tensor, Tensor, Tensor]]:
    none = torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    found = []
    for name, p in sorted(base_parameters(model).items()):
        patch: Any = delta.terms[name][0][1] if name in delta.terms else None
        found.append((p, *((patch.indices, patch.values) if patch else none)))
    return found


def test_more_asked_for_than_moved():
    with pytest.raises(gs.GossamerError, match=r"only 0 moved.*lower the density"):
        gs.fit(still(), "diff-pruning", k=5, trainer=lambda m: Loop(m, 0))


def test_natural_density_counts_open_gates_of_weights_that_moved():
    tuned = Tuned(still(), None, kind="gated", options={"structured": True})
    leaves = tuned.leaves
    assert isinstance(leaves, GatedLeaves)
    assert leaves.facts(tuned.m) == {"natural_density": 0.0}
    with torch.no_grad():
        leaves.w["pooler.dense.bias"][:10] = 1.0
        leaves.gate["pooler.dense.bias"].zero_()
    assert leaves.facts(100)["natural_density"] == pytest.approx(10 * 0.5 * float(torch.tensor(5.0).sigmoid()) / 100)
    tuned.detach()
