"""Methods that act around each training step, against references written straight from their equations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gossamer.delta.support import Support
from gossamer.select.grow_drop import grow_drop
from gossamer.tunable.around import shared_generator
from gossamer.tunable.mixout import mixed
from gossamer.tunable.sm3 import SM3
from gossamer.tunable.tuned import Tuned


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))


def inputs(count: int, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(7, 5, generator=generator) for _ in range(count)]


def loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x) - x[:, :4].sin() * 2).square().mean()


def dense_gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """∂L/∂W of every weight of a plain copy that holds the same values."""
    plain = network()
    plain.load_state_dict({n: p.detach() for n, p in model.named_parameters() if not n.startswith("gossamer.")})
    loss(plain, x).backward()
    return {n: p.grad.clone() for n, p in plain.named_parameters()}


# --- mixout ------------------------------------------------------------------------------------------------------


def test_mixout_has_the_right_expectation_variance_and_gradient() -> None:
    torch.manual_seed(0)
    theta, start, q = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4), 0.7
    draws = torch.stack([mixed(theta, start, q) for _ in range(40_000)]).detach()
    sd = (theta - start).abs().detach() * (q / (1 - q)) ** 0.5
    assert ((draws.mean(0) - theta.detach()).abs() < 5 * sd / 200).all()  # E θ̃ = θ
    torch.testing.assert_close(draws.std(0), sd, rtol=0.03, atol=1e-6)
    made = mixed(theta, start, q)
    made.sum().backward()
    b = (made == start).float()
    torch.testing.assert_close(theta.grad, (1 - b) / (1 - q))
    torch.testing.assert_close(made.detach(), start + (1 - b) * (theta.detach() - start) / (1 - q))


def test_mixout_in_training_mode_only_and_for_linear_weights_only() -> None:
    model, (x,) = network(), inputs(1)
    tuned = Tuned(model, None, kind="mixout", options={"q": 0.5}, head=False)
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(0.1)
    plain = copy.deepcopy(network())
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(0.1)
    assert torch.equal(model.eval()(x), plain(x))
    torch.manual_seed(3)
    first = model.train()(x)
    torch.manual_seed(3)
    base = network()
    torch.manual_seed(3)
    W = [mixed(plain[i].weight, base[i].weight, 0.5) for i in (0, 2)]  # noqa: N806
    expected = torch.tanh(x @ W[0].T + plain[0].bias) @ W[1].T + plain[2].bias
    torch.testing.assert_close(first, expected)
    tuned.detach()


# --- child-f -----------------------------------------------------------------------------------------------------


def test_child_f_is_adamw_with_a_thinned_update() -> None:
    model, p, lr, wd, eps = network(), 0.4, 1e-2, 0.1, 1e-8
    tuned = Tuned(model, None, kind="child", options={"p": p}, head=False)
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=lr, weight_decay=wd, eps=eps)
    theta = {n: q.detach().clone() for n, q in model.named_parameters()}
    m, v = ({n: torch.zeros_like(q) for n, q in theta.items()} for _ in range(2))
    for t, x in enumerate(inputs(5), 1):
        g = dense_gradients(model, x)
        loss(model, x).backward()
        torch.manual_seed(100 + t)
        optimizer.step()
        optimizer.zero_grad()
        torch.manual_seed(100 + t)
        generator = shared_generator(torch.device("cpu"))
        for n, q in theta.items():
            m[n], v[n] = 0.9 * m[n] + 0.1 * g[n], 0.999 * v[n] + 0.001 * g[n] ** 2
            u = -lr * wd * q - lr * (m[n] / (1 - 0.9**t)) / ((v[n] / (1 - 0.999**t)).sqrt() + eps)
            mask = torch.empty(q.shape, dtype=torch.bool).bernoulli_(p, generator=generator)
            theta[n] = q + mask / p * u
            torch.testing.assert_close(model.get_parameter(n).detach(), theta[n], rtol=1e-4, atol=1e-6)
    tuned.detach()


# --- child-pruning -----------------------------------------------------------------------------------------------


def changed(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: (p.detach() - network().get_parameter(n)).reshape(-1) for n, p in model.named_parameters()}


def test_projection_keeps_exactly_the_k_largest_changes_and_returns_the_rest_to_the_bit() -> None:
    model, k = network(), 11
    tuned = Tuned(
        model, None, kind="projected", options={"every": 3, "burn_in": 6, "per_tensor": False}, k=k, head=False
    )
    optimizer = torch.optim.Adam(tuned.parameters(), lr=1e-2)
    supports = []
    for t, x in enumerate(inputs(9), 1):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        twin = copy.deepcopy(optimizer.state_dict())
        loss(model, x).backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        now = torch.cat(list(changed(model).values()))
        if t in (3, 6):
            free = [nn.Parameter(p) for p in before.values()]
            other = torch.optim.Adam(free, lr=1e-2)
            other.load_state_dict(twin)
            for q, g in zip(free, gradients.values(), strict=True):
                q.grad = g
            other.step()
            size = torch.cat(
                [(q.detach() - network().get_parameter(n)).reshape(-1) for n, q in zip(before, free, strict=True)]
            )
            expected = torch.zeros_like(size)
            largest = size.abs().topk(k).indices
            expected[largest] = size[largest]
            torch.testing.assert_close(now, expected)
        supports.append(now != 0)
        assert int(supports[-1].sum()) == k if t == 3 or t >= 6 else int(supports[-1].sum()) > k
    assert all(torch.equal(supports[5], later) for later in supports[6:]), "after the burn-in the support is kept"
    both = (supports[2] & supports[5]).sum() / (supports[2] | supports[5]).sum()
    assert tuned.leaves.history == pytest.approx([float(both)])
    assert tuned.delta().about["jaccard"] == tuned.leaves.history
    tuned.detach()


# --- SM3 ---------------------------------------------------------------------------------------------------------


def test_sm3_on_a_matrix_a_vector_and_sparse_entries() -> None:
    torch.manual_seed(0)
    W, b, leaf = (nn.Parameter(torch.randn(*s)) for s in ((3, 4), (5,), (6,)))  # noqa: N806
    at = torch.tensor([0, 1, 5, 6, 10, 11])
    leaf.entries = ((3, 4), at)
    optimizer, lr, wd = SM3([W, b, leaf], lr=0.1, weight_decay=0.01), 0.1, 0.01
    w, c, s = (p.detach().clone() for p in (W, b, leaf))
    state = {name: (torch.zeros(3), torch.zeros(4)) for name in "ws"}
    every = torch.zeros(5)
    for _ in range(4):
        for p in (W, b, leaf):
            p.grad = torch.randn_like(p) * (torch.rand_like(p) < 0.8)
        every += b.grad**2
        c = (1 - lr * wd) * c - lr * torch.nan_to_num(b.grad / every.sqrt())
        for name, p in (("w", W), ("s", leaf)):
            g = p.grad.reshape(-1)
            places = [divmod(int(i), 4) for i in (range(12) if name == "w" else at)]
            row, column = (part.clone() for part in state[name])
            nu = torch.stack([min(row[i], column[j]) + g[n] ** 2 for n, (i, j) in enumerate(places)])
            for n, (i, j) in enumerate(places):
                state[name][0][i], state[name][1][j] = max(state[name][0][i], nu[n]), max(state[name][1][j], nu[n])
            step = lr * torch.nan_to_num(g / nu.sqrt())
            if name == "w":
                w = (1 - lr * wd) * w - step.view(3, 4)
            else:
                s = (1 - lr * wd) * s - step
        optimizer.step()
        for p, expected in ((W, w), (b, c), (leaf, s)):
            torch.testing.assert_close(p.detach(), expected)


def test_spiel_ma_grows_where_row_times_column_is_largest() -> None:
    model, options = network(), {"every": 2, "rate": 0.5, "total_steps": 100}
    start = Support({"0.weight": torch.tensor([0, 7, 14, 21, 28]), "2.weight": torch.tensor([3, 10, 17])})
    tuned = Tuned(model, start, kind="spiel-ma", options=options, revise=grow_drop, head=False)
    optimizer = SM3(tuned.parameters(), lr=0.05)
    for x in inputs(2):
        loss(model, x).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, leaf in tuned.leaves.leaves.items():
        state = optimizer.state[leaf]
        score = (state["row"][:, None] * state["column"][None, :]).reshape(-1)
        best = score.argsort(descending=True, stable=True)[: leaf.numel()]
        positive = best[score[best] > 0].sort().values
        assert torch.isin(positive, tuned.leaves.support[name]).all()
        assert torch.equal(leaf.entries[1], tuned.leaves.support[name])
    tuned.detach()


# --- grow_drop ---------------------------------------------------------------------------------------------------


@given(st.data())
def test_grow_drop_is_the_rule_by_brute_force(data: Any) -> None:
    size = data.draw(st.integers(1, 12))
    old = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1)))
    few = st.integers(0, 3).map(float)  # few values, many ties
    delta = [data.draw(few) * data.draw(st.sampled_from([1, -1])) for _ in old]
    seen = data.draw(st.permutations(sorted(data.draw(st.sets(st.integers(0, size - 1))))))
    score = {i: data.draw(few) for i in seen}
    rate = data.draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
    candidates = {"w": (torch.tensor(seen, dtype=torch.int64), torch.tensor([score[i] for i in seen]))}
    support, deltas = Support({"w": torch.tensor(old)}), {"w": torch.tensor(delta)}
    new = grow_drop(support, deltas, candidates, rate=rate)["w"]
    n = round(rate * len(old))
    by_size = [i for _, i in sorted((abs(d), i) for d, i in zip(delta, old, strict=True))]
    stay, dropped = set(by_size[n:]), by_size[:n]
    grown = [i for _, i in sorted((-score[i], i) for i in seen if score[i] > 0 and i not in stay)][:n]
    back = [i for i in reversed(dropped) if i not in grown][: n - len(grown)]
    assert new.tolist() == sorted(stay | set(grown) | set(back))
    assert new.numel() == len(old)


# --- spiel-ag ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clip", "parts", "scale"), [(None, 1, 1.0), (0.3, 1, 1.0), (0.3, 2, 4096.0)])
def test_spiel_ag_is_adam_with_an_age_an_entry(clip: float | None, parts: int, scale: float) -> None:
    """Against a dense simulation: Σ g and Σ g² of everything in the window, moments, ages and δ an entry."""
    model, lr, wd, eps, window, every, rate, total = network(), 0.02, 0.1, 1e-8, 2, 4, 0.4, 14
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    start = {n: torch.arange(0, s, 2) for n, s in sizes.items()}  # half: all other entries are candidates
    options = {"every": every, "rate": rate, "window": window, "total_steps": total}
    tuned = Tuned(model, Support(start), kind="spiel-ag", options=options, revise=grow_drop, head=False)
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=lr, weight_decay=wd, eps=eps)
    d, m, v, age = ({n: torch.zeros(s) for n, s in sizes.items()} for _ in range(4))
    on = {n: torch.zeros(s, dtype=torch.bool).index_fill(0, start[n], True) for n, s in sizes.items()}
    G, Q = ({n: torch.zeros(s) for n, s in sizes.items()} for _ in range(2))  # noqa: N806
    for t, x in enumerate(inputs(total), 1):
        g = {n: a.reshape(-1) for n, a in dense_gradients(model, x).items()}
        for chunk in x.chunk(parts):
            (loss(model, chunk) * len(chunk) / len(x) * scale).backward()
        for p in tuned.parameters():
            p.grad.div_(scale)  # what a GradScaler does before clipping
        norm = torch.sqrt(sum((g[n][on[n]] ** 2).sum() for n in g))
        if clip:
            nn.utils.clip_grad_norm_(tuned.parameters(), clip)
            g = {n: a * min(1.0, clip / float(norm)) for n, a in g.items()}
        optimizer.step()
        optimizer.zero_grad()
        for n in g:
            m[n], v[n], age[n] = 0.9 * m[n] + 0.1 * g[n], 0.999 * v[n] + 0.001 * g[n] ** 2, age[n] + 1
            u = (m[n] / (1 - 0.9 ** age[n])) / ((v[n] / (1 - 0.999 ** age[n])).sqrt() + eps)
            d[n] = torch.where(on[n], d[n] * (1 - lr * wd) - lr * u, 0.0)
            if t % every > every - window or t % every == 0:
                G[n], Q[n] = G[n] + g[n], Q[n] + g[n] ** 2
            if t % every == 0 and t < total:
                quota = round((1.0 if t == every else rate * (1 - t / total)) * int(on[n].sum()))
                old = torch.nonzero(on[n]).flatten()
                stay = old[d[n][old].abs().argsort()[quota:]]
                score = G[n].abs().index_fill(0, stay, -1.0)
                new = on[n].clone().index_fill(0, old, False).index_fill(0, stay, True)
                new[score.topk(quota).indices] = True
                grown = new & ~on[n]
                m[n][grown] = (G[n] / window * (1 - 0.9**window))[grown]
                v[n][grown] = (Q[n] / window * (1 - 0.999**window))[grown]
                age[n][grown], d[n][~new] = window, 0.0
                d[n][grown], on[n] = 0.0, new
                G[n], Q[n] = torch.zeros_like(G[n]), torch.zeros_like(Q[n])
        for n, leaf in tuned.leaves.leaves.items():
            assert torch.equal(tuned.leaves.support[n], torch.nonzero(on[n]).flatten())
            torch.testing.assert_close(leaf.detach(), d[n][on[n]], rtol=2e-3, atol=2e-5)
    assert len(tuned.leaves.history) == 3
    assert any(bool(offset.any()) for offset in tuned.leaves.ages.offsets.values())
    tuned.detach()


def test_sm3_leaves_alone_what_has_a_gradient_too_small_to_square() -> None:
    for shape in ((2, 2), (4,)):
        p = nn.Parameter(torch.ones(shape))
        optimizer = SM3([p], lr=0.1)
        p.grad = torch.tensor([0.0, 1e-30, 1.0, -1.0]).view(shape)
        optimizer.step()
        torch.testing.assert_close(p.detach().reshape(-1), torch.tensor([1.0, 1.0, 0.9, 1.1]))


def test_sm3_keeps_the_dtype_of_its_accumulators_when_loaded() -> None:
    leaf = nn.Parameter(torch.randn(3, 4).bfloat16())
    optimizer = SM3([leaf], lr=0.1)
    leaf.grad = torch.randn_like(leaf)
    optimizer.step()
    kept = optimizer.state_dict()
    other = SM3([leaf], lr=0.1)
    other.load_state_dict(copy.deepcopy(kept))
    for name, found in other.state[leaf].items():
        assert found.dtype == torch.float32
        assert torch.equal(found, optimizer.state[leaf][name])
