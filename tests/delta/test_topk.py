"""Exact top-k against a full stable sort, whatever the sample that brackets the threshold happens to hold."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from gossamer.delta import topk
from gossamer.delta.support import Support
from gossamer.delta.topk import apportion, top_k
from gossamer.errors import BadPlan

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def by_sorting(scores: dict[str, Tensor], k: int) -> Support:
    flat = torch.cat([score.reshape(-1).double() for score in scores.values()])
    best = torch.sort(flat, descending=True, stable=True).indices[:k]
    found, start = {}, 0
    for name, score in scores.items():
        mine = best[(best >= start) & (best < start + score.numel())] - start
        found[name], start = mine.sort().values, start + score.numel()
    return Support(found)


@st.composite
def scored(draw: st.DrawFn) -> dict[str, Tensor]:
    """Up to four tensors with many ties, both zeros, infinities, and neighbors that differ in the last bit."""
    dtype = draw(st.sampled_from(DTYPES))
    few = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 1e-6, -1e-6, 3e4, float("inf"), -float("inf")], dtype=dtype)
    rng = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    shapes = draw(st.lists(st.sampled_from([(), (1,), (7,), (3, 5), (2, 3, 4), (0, 4)]), min_size=1, max_size=4))
    found = {}
    for i, shape in enumerate(shapes):
        score = few[torch.randint(len(few), shape, generator=rng)]
        if draw(st.booleans()):
            score = torch.where(
                torch.rand(shape, generator=rng) < 0.5, score, torch.randn(shape, generator=rng).to(dtype)
            )
        if draw(st.booleans()) and dtype in (torch.float32, torch.float64):
            score = torch.nextafter(score, torch.ones_like(score))
        found[f"p{9 - i}"] = score  # ties follow the order given, not the names
    return found


@given(
    scored(), st.integers(1, 60), st.sampled_from([1, 3, 4, 1 << 20]), st.sampled_from([1, 2, 5, 1024]), st.booleans()
)
def test_equals_a_stable_sort(scores, k, chunk, rate, lazily):
    total = sum(score.numel() for score in scores.values())
    given_ = {n: (lambda s=s: s.clone()) if lazily else s for n, s in scores.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "CHUNK", chunk)
        patch.setattr(topk, "RATE", rate)
        if k > total:
            with pytest.raises(BadPlan, match="is more than the"):
                top_k(given_, k)
            return
        found = top_k(given_, k)
        assert found == by_sorting(scores, k)
        assert found.k == k
        shares = apportion({name: score.numel() for name, score in scores.items()}, k)
        apart = [by_sorting({n: s}, shares[n]) for n, s in scores.items() if shares[n]]
        assert top_k(given_, k, per_tensor=True) == Support({n: i for one in apart for n, i in one.items()})


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_random_scores(dtype, monkeypatch):
    monkeypatch.setattr(topk, "CHUNK", 1000)
    monkeypatch.setattr(topk, "RATE", 4)
    rng = torch.Generator().manual_seed(3)
    scores = {name: torch.randn(m, generator=rng).to(dtype) for name, m in (("a", 3000), ("b", 999), ("c", 1001))}
    for k in (1, 17, 2500, 4999, 5000):
        assert top_k(scores, k) == by_sorting(scores, k)


N = 20_000
ORDERS = {
    "all equal": torch.full((N,), 0.5),
    "both zeros": torch.zeros(N).index_fill(0, torch.arange(0, N, 3), -0.0),
    "ascending": torch.arange(N).float(),
    "descending": -torch.arange(N).float(),
    "mostly zero": torch.zeros(N).index_copy(0, torch.arange(0, N, 50), torch.arange(N // 50).float()),
    "few values": torch.arange(N).remainder(7).float(),
    "ties at the threshold": torch.cat([torch.full((N // 2,), 1.0), torch.arange(N // 2).float()]),
    "infinities": torch.tensor([math.inf, -math.inf, 0.0, 1.0]).repeat(N // 4),
    "minus infinity": torch.full((N,), -math.inf).index_fill(0, torch.arange(3), 1.0),
    "denormals": torch.arange(N).float() * 2.0**-149,
    "neighbors": torch.nextafter(torch.ones(N), torch.full((N,), 2.0)).index_fill(0, torch.arange(0, N, 2), 1.0),
    "periodic": torch.arange(N).remainder(4).eq(0).float() + torch.arange(N) * 1e-6,
}


@pytest.mark.parametrize("k", [1, 2, N // 200, N // 2, N - 1, N])
@pytest.mark.parametrize("order", ORDERS)
def test_orders_and_ties(order, k, monkeypatch):
    monkeypatch.setattr(topk, "CHUNK", 4096)
    monkeypatch.setattr(topk, "RATE", 4)
    a, b, c = ORDERS[order].split([N // 3, 5, N - N // 3 - 5])
    scores = {"z": a, "m": b, "a": c}
    assert top_k(scores, k) == by_sorting(scores, k)


def spiked(attempts: int) -> tuple[Tensor, int]:
    """Scores of which the first samples see nothing but the largest, and how many those are."""
    score = torch.randn(N, generator=torch.Generator().manual_seed(1))
    for seed in range(attempts):
        score[torch.randint(N, (N // 4,), generator=torch.Generator().manual_seed(seed))] += 100.0
    return score, int((score > 50).sum())


@pytest.mark.parametrize("attempts", [1, topk.BRACKETS])
@pytest.mark.parametrize("lazily", [False, True])
def test_a_sample_that_misleads_costs_passes_not_exactness(attempts, lazily, monkeypatch):
    monkeypatch.setattr(topk, "CHUNK", 4096)
    monkeypatch.setattr(topk, "RATE", 4)
    score, spikes = spiked(attempts)
    calls = []

    def computed() -> Tensor:
        calls.append(0)
        return score.clone()

    passes = []
    for k in (spikes // 2, spikes, spikes + 100, N - 10):
        calls.clear()
        assert top_k({"w": computed if lazily else score}, k) == by_sorting({"w": score}, k)
        passes.append(len(calls))
    if lazily:
        assert max(passes) == 2 * (attempts + 1) + 1, "the brackets were expected to fail"


def test_a_bracket_that_holds_too_much_is_drawn_anew(monkeypatch):
    monkeypatch.setattr(topk, "CHUNK", 512)
    score = torch.randn(N, generator=torch.Generator().manual_seed(1))
    brackets = iter([(-math.inf, math.inf), (0.0, 0.0), (5.0, -5.0)])
    monkeypatch.setattr(topk, "_bracket", lambda sample, density: next(brackets))
    assert top_k({"w": score}, 100) == by_sorting({"w": score}, 100)
    assert next(brackets, None) is None


def test_random_numbers_of_training_are_left_alone():
    before = torch.get_rng_state()
    top_k({"w": torch.rand(5000, generator=torch.Generator().manual_seed(0))}, 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_callable_is_called_once_a_pass(monkeypatch):
    for chunk in (100, 1 << 20):
        monkeypatch.setattr(topk, "CHUNK", chunk)
        monkeypatch.setattr(topk, "RATE", 4)
        calls, score = [], torch.randn(2000, generator=torch.Generator().manual_seed(2))
        found = top_k({"w": lambda calls=calls, score=score: calls.append(0) or score}, 20)
        assert found == by_sorting({"w": score}, 20)
        assert len(calls) == 3


def test_scores_that_change_from_call_to_call_are_refused():
    rng = torch.Generator().manual_seed(0)
    with pytest.raises(BadPlan, match="the same at every call"):
        top_k({"w": lambda: torch.randn(4000, generator=rng)}, 1000)


def test_minus_zero_is_zero_and_the_lowest_position_wins_ties():
    assert top_k({"b": torch.tensor([-0.0, 0.0, -1.0]), "a": torch.tensor([0.0])}, 1)["b"].tolist() == [0]
    assert top_k({"w": torch.zeros(2, 3).t()}, 4)["w"].tolist() == [0, 1, 2, 3]


def test_flat_indices_are_row_major_whatever_the_strides():
    assert top_k({"w": torch.tensor([[1.0, 2.0], [3.0, 9.0], [5.0, 6.0]]).t()}, 2)["w"].tolist() == [4, 5]


def test_16_bit_scores_may_go_with_float32_but_not_with_float64():
    scores = {"a": torch.tensor([1.0, 3.0]).bfloat16(), "b": torch.tensor([2.0, 4.0])}
    assert {n: i.tolist() for n, i in top_k(scores, 2).items()} == {"a": [1], "b": [1]}
    for other in (scores, dict(reversed(scores.items()))):
        with pytest.raises(BadPlan, match="one dtype"):
            top_k({**other, "c": torch.zeros(2).double()}, 2)


@pytest.mark.parametrize("k", [0, -1, 7])
@pytest.mark.parametrize("per_tensor", [False, True])
def test_impossible_numbers(k, per_tensor):
    with pytest.raises(BadPlan, match=f"k = {k}"):
        top_k({"a": torch.zeros(2), "b": torch.zeros(4)}, k, per_tensor=per_tensor)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_is_refused_wherever_it_is(dtype, monkeypatch):
    monkeypatch.setattr(topk, "CHUNK", 2)
    for place in range(5):
        score = torch.arange(5).to(dtype)
        score[place] = float("nan")
        with pytest.raises(BadPlan, match="'b' hold NaN"):
            top_k({"a": torch.ones(3, dtype=dtype), "b": score}, 1)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any), st.data())
def test_shares_are_proportional(sizes, data):
    named, total = {f"p{i}": size for i, size in enumerate(sizes)}, sum(sizes)
    k = data.draw(st.integers(1, total))
    shares = apportion(named, k)
    assert sum(shares.values()) == k
    assert all(abs(shares[n] - k * size / total) < 1 and shares[n] <= size for n, size in named.items())


@given(st.data())
def test_nothing_excluded_is_chosen(data):
    sizes = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    scores = {f"p{i}": torch.randint(-3, 4, (n,), generator=generator).float() for i, n in enumerate(sizes)}
    barred = {n: torch.nonzero(torch.rand(s.numel(), generator=generator) < 0.5).flatten() for n, s in scores.items()}
    without = Support(barred)
    left = sum(sizes) - without.k
    assume(left > 0)
    k = data.draw(st.integers(1, left))
    before = {n: s.clone() for n, s in scores.items()}
    found = top_k(scores, k, without=without)
    allowed = [(-float(s[j]), n, j) for n, s in scores.items() for j in range(s.numel()) if j not in barred[n].tolist()]
    best = sorted(allowed)[:k]  # ties to the lowest position; names sort as given
    assert {(n, j) for n, i in found.items() for j in i.tolist()} == {(n, j) for _, n, j in best}
    assert all(torch.equal(before[n], s) for n, s in scores.items())
    shared_out = top_k(scores, k, without=without, per_tensor=True)
    assert shared_out.k == k
    assert not (shared_out & without).k
    with pytest.raises(BadPlan, match="more than"):
        top_k(scores, left + 1, without=without)


def test_much_is_excluded_across_chunks(monkeypatch):
    monkeypatch.setattr(topk, "CHUNK", 1 << 10)
    scores = {"a": torch.randn(5000), "b": torch.randn(70_000)}
    without = top_k(scores, 6000)
    found = top_k(scores, 500, without=without)
    assert found == top_k(scores, 6500) - without
