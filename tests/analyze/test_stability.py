"""Stability on convex models, solved exactly, where the theorem must hold."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gossamer.analyze.spectrum import Entries, gradient_norms, smallest_curvature
from gossamer.analyze.stability import bound, groups, interval, stability
from gossamer.errors import BadData, BadPlan

N, WIDTH = 40, 6


def problem(seed: int, kind: str):
    """Data, θ0 and the loss of each example at θ, [n] float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, WIDTH, generator=generator, dtype=torch.float64)
    theta0 = torch.randn(WIDTH, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(WIDTH, generator=generator, dtype=torch.float64)
    y = y + torch.randn(N, generator=generator, dtype=torch.float64)
    if kind == "ridge":
        return x, theta0, lambda theta: (x @ theta - y) ** 2
    return x, theta0, lambda theta: nn.functional.softplus(-torch.sign(y) * (x @ theta))


def solved(each, theta0, density, without):
    """argmin (1/n) Σ w_i ℓ_i + (1 − p)‖θ − θ0‖² by Newton's method, exact to rounding."""
    kept = torch.ones(N, dtype=torch.float64)
    kept[list(without)] = 0

    def objective(theta):
        return (kept * each(theta)).sum() / N + (1 - density) * ((theta - theta0) ** 2).sum()

    theta = theta0.clone()
    for _ in range(50):
        at = theta.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(objective(at), at)
        theta = theta - torch.linalg.solve(torch.autograd.functional.hessian(objective, theta), slope)
    return theta


class Linear(nn.Module):
    def __init__(self, theta, each):
        super().__init__()
        self.theta, self.each = nn.Parameter(theta.clone()), each

    def loss(self, batch):
        return self.each(self.theta)[batch["rows"]].mean()


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 500),
    density=st.sampled_from([0.0, 0.005, 0.3, 0.9, 0.99]),
    kind=st.sampled_from(["ridge", "logistic"]),
)
def test_the_theorem_holds_on_convex_models(seed, density, kind):
    _, theta0, each = problem(seed, kind)
    results = {}

    def train(without):
        results[without] = solved(each, theta0, density, without)
        return results[without]

    left = groups(N, "one", 12, seed=seed)
    found = stability(train, lambda theta, group: each(theta)[list(group)].tolist(), left, seed=seed, resamples=50)
    norms = []
    for without, theta in results.items():  # ρ: a convex loss is steepest at an end of the way from A(S) to A(S∖i)
        model = Linear(theta, each)
        entries = Entries({"theta": (model.theta, None)})
        rows = [{"rows": torch.tensor([i])} for i in (without or range(N))]
        norms += gradient_norms(model, entries, rows, model.loss)
    model = Linear(results[()], each)
    whole = [{"rows": torch.arange(N)}]
    curvature = smallest_curvature(model, Entries({"theta": (model.theta, None)}), whole, model.loss, tolerance=1e-10)
    dense = torch.linalg.eigvalsh(torch.autograd.functional.hessian(lambda theta: each(theta).mean(), results[()]))
    assert curvature.value == pytest.approx(float(dense[0]), rel=1e-6)
    told = bound(rho=max(norms), lambda_min=curvature.value, density=density, n=N)
    assert told.applies and 0 < found.mean <= told.value and 0 < told.ratio(found.mean) <= 1
    assert max(found.each) <= told.value  # each example by itself, too
    assert found.rise > 0 and found.low <= found.mean <= found.high


@pytest.mark.parametrize("density", [0.01, 0.5, 0.99])
def test_a_tenth_left_out_at_once_moves_by_as_many_times_the_bound(density):
    _, theta0, each = problem(3, "logistic")
    found = stability(
        lambda without: solved(each, theta0, density, without),
        lambda theta, group: each(theta)[list(group)].tolist(), groups(N, "tenth", 8), resamples=20,
    )  # fmt: skip
    assert [len(group) for group in found.groups] == [4] * 8
    rho = float(problem(3, "logistic")[0].norm(dim=1).max())  # ‖∇ log(1 + exp(−y xθ))‖ ≤ ‖x‖ everywhere
    assert 0 < found.mean <= 4 * bound(rho=rho, lambda_min=0.0, density=density, n=N).value


def test_a_training_that_ignores_an_example_is_perfectly_stable():
    found = stability(lambda without: 0, lambda _, group: [1.5] * len(group), groups(10, "one", 5))
    assert (found.mean, found.low, found.high, found.rise) == (0.0, 0.0, 0.0, 0.0)
    assert bound(rho=0.0, lambda_min=0.0, density=0.5, n=3).ratio(0.0) == 0.0


def test_the_mean_and_its_interval():
    told = {(): {(0,): [1.0], (1, 2): [2.0, 4.0]}, (0,): {(0,): [1.5]}, (1, 2): {(1, 2): [1.0, 7.0]}}
    found = stability(lambda without: told[without], lambda known, group: known[group], [(0,), (1, 2)])
    assert found.each == (0.5, 2.0) and found.mean == 1.25 and found.rise == pytest.approx((0.5 + 1.0) / 2)
    values = np.random.default_rng(0).normal(3, 1, 200)
    low, high = interval(list(values))
    half = 1.96 * values.std(ddof=1) / math.sqrt(200)
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)
    assert interval(list(values)) == (low, high) and interval([1.0]) == (None, None)


def test_groups_are_drawn_once_and_for_all():
    assert groups(30, "one", 7, seed=1) == groups(30, "one", 7, seed=1) != groups(30, "one", 7, seed=2)
    assert len(set(groups(30, "one", 30))) == 30
    assert all(len(set(group)) == 3 for group in groups(30, "tenth", 4))
    assert groups(5, "tenth", 1)[0].__len__() == 1


def test_no_bound_where_the_curvature_is_too_negative():
    told = bound(rho=1.0, lambda_min=-2.5, density=0.1, n=10)
    assert told.value == math.inf and not told.applies and told.ratio(3.0) == 0.0
    with pytest.raises(BadPlan, match="density"):
        bound(rho=1.0, lambda_min=0.0, density=1.5, n=10)


def test_bad_input():
    with pytest.raises(BadPlan, match="expected one of one, tenth"):
        groups(10, "two")
    with pytest.raises(BadPlan, match="expected 1 to 10"):
        groups(10, "one", 11)
    with pytest.raises(BadData, match="2 or more"):
        groups(1, "one", 1)
    with pytest.raises(BadPlan, match="nothing to leave out"):
        stability(lambda without: 0, lambda _, group: [], [])
    with pytest.raises(BadData, match="diverged"):
        stability(lambda without: 0, lambda _, group: [math.nan], [(1,)])
    with pytest.raises(BadData, match="one each"):
        stability(lambda without: 0, lambda _, group: [], [(1,)])
