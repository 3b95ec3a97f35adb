"""Leaves that act around each step: skipped steps, swaps, windows, checkpoints, and what they refuse."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gossamer as gs
from gossamer.delta.support import Support
from gossamer.errors import BadPlan
from gossamer.select.change import change
from gossamer.select.grow_drop import grow_drop
from gossamer.tunable.candidates import Candidates, end_step, largest
from gossamer.tunable.mixout import mixed
from gossamer.tunable.sm3 import SM3
from gossamer.tunable.tuned import Tuned
from tests.tiny import batches, bits, classifier, same_bits

SPIEL = {"every": 3, "window": 2, "rate": 0.4, "total_steps": 10}


class Odd(nn.Module):
    """Two Linears that share a weight, one tied to an embedding, and attention, which reads its output projection's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(20, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.one, self.two, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 20)
        self.two.weight, self.out.weight = self.one.weight, self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids)
        hidden, _ = self.attention(hidden, hidden, hidden)
        return self.out(self.two(self.one(hidden).tanh()))


def steps(tuned: Tuned, optimizer: torch.optim.Optimizer, count: int, seed: int = 0) -> None:
    for batch in batches(count, seed=seed):
        tuned.model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


# --- around ------------------------------------------------------------------------------------------------------


def test_a_step_that_a_scaler_skips_never_happened() -> None:
    model = classifier()
    with gs.tune(model, "spiel-ag", density=0.1, **SPIEL) as tuned:
        optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-2, fused=True)
        tuned.model(**batches(1)[0]).loss.backward()
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(1.0)
        before, state = bits(model), torch.get_rng_state()
        optimizer.step()
        assert tuned.leaves.t == 0
        assert same_bits(model, before)
        assert torch.equal(torch.get_rng_state(), state)
        optimizer.found_inf = torch.tensor(0.0)
        optimizer.step()
        assert tuned.leaves.t == 1


def test_a_step_of_the_head_alone_is_none_of_theirs() -> None:
    with gs.tune(classifier(), "child-f") as tuned:
        before = bits(tuned.model.bert)
        tuned.model(**batches(1)[0]).loss.backward()
        state = torch.get_rng_state()
        torch.optim.SGD(tuned.head.values(), lr=0.1).step()
        assert same_bits(tuned.model.bert, before)
        assert torch.equal(torch.get_rng_state(), state)


# --- mixout ------------------------------------------------------------------------------------------------------


def shifted(model: nn.Module, q: float) -> Tuned:
    tuned = Tuned(model, None, kind="mixout", options={"q": q}, head=False)
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(0.05)
    return tuned


def test_mixout_of_shared_tied_and_inner_weights() -> None:
    model, ids = Odd(), torch.arange(12).view(2, 6)
    base = {n: p.detach().clone() for n, p in model.named_parameters()}
    tuned = shifted(model, 0.6)
    names = {place for hook in (tuned.leaves._start,) for place in hook}
    assert names == {"attention.in_proj_weight", "attention.out_proj.weight", "one.weight"}
    torch.manual_seed(5)
    out = model(ids)
    out.square().mean().backward()
    assert all(isinstance(p, nn.Parameter) for p in (model.one.weight, model.attention.out_proj.weight))
    plain = Odd()
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(0.05)
    torch.manual_seed(5)  # each use draws anew, in the order of use
    replaced = {}
    for name in ("attention.in_proj_weight", "attention.out_proj.weight", "one.weight"):
        replaced[name] = mixed(plain.get_parameter(name), base[name], 0.6)
    replaced["two.weight"] = mixed(plain.one.weight, base["one.weight"], 0.6)
    expected = torch.func.functional_call(plain, replaced, (ids,), tie_weights=False)
    torch.testing.assert_close(out, expected)
    expected.square().mean().backward()
    torch.testing.assert_close(model.one.weight.grad, plain.one.weight.grad)
    torch.testing.assert_close(model.attention.in_proj_weight.grad, plain.attention.in_proj_weight.grad)
    tuned.detach()
    assert same_bits(model, bits(Odd()))


@pytest.mark.parametrize("reentrant", [True, False])
def test_mixout_under_gradient_checkpointing_sees_one_mask(reentrant: bool) -> None:
    gradients = []
    for checkpointed in (False, True):
        model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        torch.manual_seed(0)
        with torch.no_grad():
            for p in model.parameters():
                p.normal_()
        tuned = shifted(model, 0.5)
        x = torch.randn(3, 4, requires_grad=True)
        torch.manual_seed(7)
        out = checkpoint(model, x, use_reentrant=reentrant) if checkpointed else model(x)
        torch.rand(3)  # whatever else draws before the backward
        out.square().sum().backward()
        gradients.append([p.grad.clone() for p in tuned.parameters()])
        tuned.detach()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_mixout_survives_an_exception_in_a_forward_and_a_copy() -> None:
    model, ids = Odd(), torch.arange(12).view(2, 6)
    tuned = shifted(model, 0.5)
    handle = model.one.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyError("stop")))
    with pytest.raises(KeyError):
        model(ids)
    handle.remove()
    assert isinstance(model.one.weight, nn.Parameter)
    twin = copy.deepcopy(model)
    twin(ids).sum().backward()
    assert model.one.weight.grad is None
    assert twin.one.weight.grad is not None
    with tuned.disabled():
        torch.testing.assert_close(model(ids), Odd()(ids))  # θ = θ0: whatever b, θ̃ = θ0
    tuned.detach()


# --- windows -----------------------------------------------------------------------------------------------------


def test_candidates_are_the_best_of_the_whole_window() -> None:
    torch.manual_seed(0)
    support = torch.tensor([3, 11, 19, 30])
    found = Candidates(support)
    for _ in range(6):
        for _ in range(2):  # micro-batches
            found.see(torch.randn(40).index_fill_(0, support, 0.5).view(8, 5))
        end_step({"w": found}, {"w": torch.ones(4)})
    assert found.index.numel() == 4
    assert not torch.isin(found.index, support).any()
    assert torch.equal(found.index, found.index.sort().values)
    assert (found.count >= 1).all() and (found.count <= 6).all()
    assert torch.equal(found.active, torch.full((4,), 6.0))


@pytest.mark.parametrize("q", [2, 5])
def test_candidates_against_a_plain_simulation(q: int) -> None:
    torch.manual_seed(q)
    support = torch.arange(q) * 3
    found, held = Candidates(support), {}
    for _ in range(7):
        g = torch.randn(30)
        found.see(g)
        end_step({"w": found}, {"w": g[support]})
        new = [i for i in g.abs().argsort(descending=True).tolist() if i not in held and i not in support.tolist()][:q]
        held = {i: [*held.get(i, []), float(g[i])] for i in [*held, *new]}
        held = dict(sorted(sorted(held.items(), key=lambda item: -abs(sum(item[1])))[:q]))
        assert found.index.tolist() == list(held)
        torch.testing.assert_close(found.total, torch.tensor([sum(x) for x in held.values()]), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.squares, torch.tensor([sum(y * y for y in x) for x in held.values()]))
        assert found.count.tolist() == [len(x) for x in held.values()]


def test_an_infinite_step_is_left_out_of_a_window() -> None:
    support = torch.tensor([0, 1])
    found = Candidates(support)
    found.see(torch.tensor([1.0, 1.0, float("inf"), 2.0]))
    end_step({"w": found}, {"w": torch.ones(2)})
    assert not found.index.numel() and not found.active.any()
    found.see(torch.tensor([1.0, 1.0, 5.0, 2.0]))
    end_step({"w": found}, {"w": torch.ones(2)})
    assert found.index.tolist() == [2, 3]


def test_the_largest_of_a_row_sparse_gradient_are_those_of_the_dense_one() -> None:
    torch.manual_seed(0)
    rows = torch.tensor([1, 4, 6])
    g = torch.sparse_coo_tensor(rows[None], torch.randn(3, 5), (8, 5), check_invariants=True)
    without = torch.tensor([5, 22, 33])
    for a, b in zip(largest(g, 6, without=without), largest(g.to_dense(), 6, without=without), strict=True):
        assert torch.equal(a, b)


# --- revised supports --------------------------------------------------------------------------------------------


def optimizer_for(method: str, tuned: Tuned) -> torch.optim.Optimizer:
    return SM3(tuned.parameters(), lr=1e-2) if method == "spiel-ma" else torch.optim.AdamW(tuned.parameters(), lr=1e-2)


@pytest.mark.parametrize("method", ["spiel-ag", "spiel-ma"])
def test_k_stays_weights_are_base_plus_values_and_the_base_comes_back(method: str) -> None:
    model = classifier()
    before = bits(model)
    options: dict[str, Any] = {n: v for n, v in SPIEL.items() if n in gs.methods()[method].options}
    with gs.tune(model, method, k=400, **options) as tuned:
        optimizer, sizes = optimizer_for(method, tuned), {n: i.numel() for n, i in tuned.leaves.support.items()}
        for turn in range(10):
            steps(tuned, optimizer, 1, seed=turn)
            assert {n: i.numel() for n, i in tuned.leaves.support.items()} == sizes
            delta = tuned.delta("fp32")
            now = bits(model.bert)
            with gs.applied(classifier(), delta, head=False) as other:
                assert all(torch.equal(p, now[n]) for n, p in bits(other.bert).items())
        assert len(tuned.leaves.history) == 3
        assert tuned.leaves.history[0] < 0.2  # the first choice replaces all
        assert min(tuned.leaves.history[1:]) > 0.4
        assert delta.k == 400
    assert same_bits(model, before)


@pytest.mark.parametrize("method", ["spiel-ag", "spiel-ma", "child-pruning"])
@pytest.mark.parametrize("at", [2, 5, 6])
def test_a_checkpoint_brings_a_revised_support_back(method: str, at: int) -> None:
    """What Trainer does: weights, optimizer and extra of step `at`, loaded over a later state and into a fresh model."""
    made: list[gs.Delta] = []
    options: dict[str, Any] = {n: v for n, v in SPIEL.items() if n in gs.methods()[method].options}
    kind = {"child-pruning": "projected"}.get(method, method)

    def attach(model: nn.Module) -> Tuned:
        generator = torch.Generator().manual_seed(0)
        shapes = {n: p for n, p in model.bert.named_parameters() if p.dim() == 2}
        support = Support(
            {n: torch.randperm(p.numel(), generator=generator)[:9].sort().values for n, p in shapes.items()}
        )
        more = {"per_tensor": False, "burn_in": 4.0, **options}
        return Tuned(model, None if kind == "projected" else support, kind=kind, options=more, k=50, revise=grow_drop)

    tuned = attach(classifier().eval())
    optimizer = optimizer_for(method, tuned)
    steps(tuned, optimizer, at)
    saved = copy.deepcopy((tuned.model.state_dict(), optimizer.state_dict(), tuned.leaves.extra(), tuned.delta("fp32")))
    steps(tuned, optimizer, 4, seed=9)
    made.append(tuned.delta("fp32"))
    assert made[0] != saved[3]

    fresh = attach(classifier(seed=0).eval())
    for place in (tuned, fresh):
        again = optimizer if place is tuned else optimizer_for(method, fresh)
        place.model.load_state_dict(saved[0])
        again.load_state_dict(copy.deepcopy(saved[1]))
        place.leaves.load_extra(saved[2])
        assert place.delta("fp32") == saved[3]
        steps(place, again, 4, seed=9)
        made.append(place.delta("fp32"))
        place.detach()
    assert made[0] == made[1] == made[2]
    assert all(d.about["jaccard"] == made[0].about["jaccard"] for d in made)
    assert same_bits(tuned.model, bits(classifier()))


def test_any_optimizer_with_state_an_entry_works_and_others_say_so() -> None:
    for make in (torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop):
        with gs.tune(classifier(), "spiel-ag", k=300, **SPIEL) as tuned:
            steps(tuned, make(tuned.parameters(), lr=1e-2), 7)
            assert len(tuned.leaves.history) == 2
    with gs.tune(classifier(), "spiel-ag", k=300, **SPIEL) as tuned:
        optimizer = torch.optim.SGD(tuned.parameters(), lr=1e-2)
        for leaf in tuned.leaves.parameters():
            optimizer.state[leaf]["blocks"] = torch.zeros(leaf.numel() + 1)
        with pytest.raises(BadPlan, match="cannot follow a revised support"):
            steps(tuned, optimizer, 3)


# --- refusals ----------------------------------------------------------------------------------------------------


def test_what_cannot_work_says_so_before_training() -> None:
    class Vectors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.scale = nn.Embedding(5, 3), nn.Parameter(torch.ones(3))

    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    def enter(model: nn.Module, method: str, **options: Any) -> None:
        with gs.tune(model, method, **options):
            pass

    with pytest.raises(BadPlan, match="linear layers"):
        enter(Vectors(), "mixout")
    with pytest.raises(BadPlan, match="matrices only"):
        enter(Scales(), "spiel-ma", k=1)
    with pytest.raises(BadPlan, match="q=1"):
        enter(classifier(), "mixout", q=1.0)
    with pytest.raises(BadPlan, match="p=0"):
        enter(classifier(), "child-f", p=0.0)
    with pytest.raises(BadPlan, match="window=30"):
        enter(classifier(), "spiel-ag", window=30)
    with pytest.raises(BadPlan, match="rate=2"):
        enter(classifier(), "spiel-ag", rate=2.0)
    with pytest.raises(BadPlan, match="before the first choice"):
        enter(classifier(), "spiel-ag", total_steps=20)
    model = classifier()
    before = bits(model)
    with pytest.raises(BadPlan, match="burn_in=0"):
        gs.fit(model, "child-pruning", trainer=lambda m: None, burn_in=0.0)
    assert same_bits(model, before)


def test_what_cannot_work_says_so_at_the_first_step() -> None:
    with gs.tune(classifier(), "spiel-ag", k=99) as tuned, pytest.raises(BadPlan, match="total_steps"):
        steps(tuned, torch.optim.AdamW(tuned.parameters()), 1)
    with gs.tune(classifier(), "spiel-ma", k=99, total_steps=50) as tuned, pytest.raises(BadPlan, match=r"sm3\.SM3"):
        steps(tuned, torch.optim.AdamW(tuned.parameters()), 1)
    with (
        gs.tune(classifier(), "spiel-ag", k=99, total_steps=50) as tuned,
        pytest.raises(BadPlan, match="one optimizer"),
    ):
        steps(tuned, torch.optim.AdamW(list(tuned.leaves.parameters())[:2]), 1)
    leaves = Tuned(classifier(), None, kind="projected", k=9, options={"every": 1, "burn_in": 0.5, "per_tensor": False})
    with pytest.raises(BadPlan, match="share of the steps"):
        steps(leaves, torch.optim.AdamW(leaves.parameters()), 1)


def test_gradients_that_a_fused_optimizer_has_yet_to_unscale() -> None:
    """A GradScaler hands its scale to fused optimizers; penalties and scores must be on the same footing as without it."""
    found = []
    for scale in (None, 1024.0):
        model = classifier().eval()
        with gs.tune(model, "random", k=60, head=False) as tuned:
            tuned.penalize(0.5 * tuned.m)
            optimizer = torch.optim.SGD(tuned.parameters(), lr=1.0, fused=True)
            for leaf in tuned.parameters():
                leaf.data.fill_(1.0)
                leaf.grad = torch.zeros_like(leaf)
            if scale:
                optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(0.0)
            optimizer.step()
            found.append(torch.cat([1.0 - leaf.detach() for leaf in tuned.parameters()]))
    torch.testing.assert_close(found[0], found[1])


def test_projection_must_come_round_and_what_it_kept_counts_as_moved() -> None:
    tuned = Tuned(classifier(), None, kind="projected", k=9, options={"every": 6, "burn_in": 1.0, "per_tensor": False})
    with pytest.raises(BadPlan, match="before the first projection"):
        tuned.begin(5)
    tuned.detach()
    moved = {"w": torch.tensor([0.0, 3.0, 0.0, 0.0])}
    with pytest.raises(BadPlan, match="only 1 moved"):
        change(moved, 2)
    assert change(moved, 2, kept=Support({"w": torch.tensor([1, 3])}))["w"].tolist() == [1, 3]
