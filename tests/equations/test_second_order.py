"""sam against its derivation: the best of all masks, Hutchinson's diagonal against the exact one, fisher's two kinds."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.functional import cross_entropy

from gossamer.errors import BadPlan
from gossamer.select.curvature import hutchinson
from gossamer.select.gradient import gradient
from gossamer.select.scoring import accumulate
from gossamer.select.second_order import second_order
from tests.equations.test_selection import Toy, batches, scored, snapshot, toys


def lowest(g: np.ndarray, hessian: np.ndarray, mask: tuple[int, ...]) -> float:
    """The lowest gᵀδ + ½ δᵀHδ that changing only the weights of a mask reaches."""
    few = list(mask)
    delta = np.zeros(len(g))
    delta[few] = np.linalg.solve(hessian[np.ix_(few, few)], -g[few])
    return float(g @ delta + delta @ hessian @ delta / 2)


def damped(h: np.ndarray) -> np.ndarray:
    return np.maximum(h, 0) + np.abs(h).mean()


@pytest.mark.parametrize("k", [1, 3, 5, 9])
@pytest.mark.parametrize("seed", range(4))
def test_the_choice_is_the_best_of_all_masks(k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    g, h = rng.normal(size=10), rng.normal(size=10) * 10.0 ** rng.integers(-2, 2, 10)
    named = {"a": torch.tensor(g[:4]), "b": torch.tensor(g[4:])}
    diagonal = {"a": torch.tensor(h[:4]), "b": torch.tensor(h[4:])}
    for chosen, whole in ((second_order(named, k, diagonal=diagonal), np.diag(damped(h))),
                          (second_order(named, k), 3.7 * np.eye(10))):  # fmt: skip
        mine = tuple(start + i for n, start in (("a", 0), ("b", 4)) if n in chosen for i in chosen[n].tolist())
        assert min(combinations(range(10), k), key=lambda mask: lowest(g, whole, mask)) == mine


@given(toys(), st.integers(1, 40), st.booleans())
def test_identity_chooses_what_gradient_chooses(named: dict[str, Tensor], k: int, per_tensor: bool) -> None:
    k = min(k, sum(t.numel() for t in named.values()))
    assert second_order(named, k, per_tensor=per_tensor) == gradient(named, k, per_tensor=per_tensor)


def test_identity_sees_gradients_whose_squares_would_vanish_or_tie() -> None:
    tiny = {"w": torch.tensor([1e-30, 3e-30, 2e-30]), "v": torch.tensor([1.0, 1.0 + 2.0**-23])}
    for k in range(1, 6):
        assert second_order(tiny, k) == gradient(tiny, k)


def test_a_loss_without_curvature_is_refused() -> None:
    with pytest.raises(BadPlan, match="identity"):
        second_order({"w": torch.ones(3)}, 1, diagonal={"w": torch.zeros(3)})


# Hutchinson -----------------------------------------------------------------------------------------------------------


class Quadratic(nn.Module):
    """L = gᵀθ + ½ θᵀHθ, the same for every example, with θ in two tensors."""

    def __init__(self, whole: Tensor) -> None:
        super().__init__()
        self.whole, self.g = whole, torch.arange(1.0, len(whole) + 1)
        self.a, self.b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.zeros(len(whole) - 4))

    def forward(self, x: Tensor) -> Tensor:
        theta = torch.cat([self.a.reshape(-1), self.b])
        return self.g @ theta + theta @ self.whole @ theta / 2


def of(model: Quadratic, **settings: Any) -> tuple[Tensor, Tensor]:
    found = hutchinson(model, dict(model.named_parameters()), [{"x": torch.zeros(1)}] * settings.pop("times", 1),
                       loss=lambda m, b: m(**b), **settings)  # fmt: skip
    return tuple(torch.cat([part["a"].reshape(-1), part["b"]]) for part in found)  # type: ignore[return-value]


def test_a_diagonal_hessian_is_found_exactly_by_one_vector() -> None:
    h = torch.tensor([3.0, -2.0, 0.0, 1.0, 5.0, 0.25, 7.0])
    model = Quadratic(torch.diag(h))
    g, found = of(model, times=3)
    assert torch.equal(found, 3 * h)
    torch.testing.assert_close(g, 3 * (model.g + h * torch.tensor([1.0] * 4 + [0.0] * 3)))


def test_a_full_hessian_is_met_on_average_and_no_nearer_than_it_should_be() -> None:
    rng = torch.Generator().manual_seed(0)
    half = torch.randn(9, 9, generator=rng)
    whole, probes = half + half.T, 2000
    _, found = of(Quadratic(whole), probes=probes)
    spread = ((whole.square().sum(1) - whole.diag().square()) / probes).sqrt()  # of v_i Σ_j H_ij v_j
    z = (found - whole.diag()) / spread
    assert z.abs().max() < 5
    assert z.square().mean() > 0.2
    once = of(Quadratic(whole))[1]
    assert not torch.equal(of(Quadratic(whole), times=2)[1], 2 * once), "each batch has vectors of its own"
    assert torch.equal(of(Quadratic(whole))[1], once)
    assert not torch.equal(of(Quadratic(whole), seed=1)[1], once)


def test_a_small_network_against_its_exact_hessian() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    data, probes = [{n: v.double() if n == "x" else v for n, v in b.items()} for b in batches((5, 3))], 1500
    parameters = dict(model.named_parameters())

    def loss(values: dict[str, Tensor], batch: dict[str, Tensor]) -> Tensor:
        return cross_entropy(functional_call(model, values, (batch["x"],)), batch["labels"], reduction="sum")

    exact: dict[str, Tensor] = {n: torch.zeros_like(p) for n, p in parameters.items()}
    variance = {n: torch.zeros_like(p) for n, p in parameters.items()}
    for batch in data:
        whole = jacrev(jacrev(loss))({n: p.detach() for n, p in parameters.items()}, batch)
        for n, p in parameters.items():
            rows = torch.cat([whole[n][other].reshape(p.numel(), -1) for other in parameters], dim=1)
            diagonal = whole[n][n].reshape(p.numel(), p.numel()).diag()
            exact[n] += diagonal.reshape(p.shape)
            variance[n] += ((rows.square().sum(1) - diagonal.square()) / probes).reshape(p.shape)
    g, h = hutchinson(model, parameters, data, probes=probes,
                      loss=lambda m, b: cross_entropy(m(b["x"]), b["labels"]))  # fmt: skip
    slopes = accumulate(model, parameters, data, squared=False,
                        loss=lambda m, b: cross_entropy(m(b["x"]), b["labels"]))  # fmt: skip
    for n in parameters:
        torch.testing.assert_close(g[n], slopes[n])
        assert ((h[n] - exact[n]).abs() <= 5 * variance[n].sqrt() + 1e-5).all()


def test_the_pass_leaves_the_model_as_it_was_also_when_it_fails() -> None:
    model = Toy()
    before, head = snapshot(model), dict(model.head.named_parameters())
    g, h = hutchinson(model, scored(model), batches(), examples=7, head=head, warmup=3)
    assert snapshot(model) == before
    assert all(g[n].dtype == h[n].dtype == torch.float32 and h[n].shape == p.shape for n, p in scored(model).items())
    slopes = accumulate(model, scored(model), batches(), squared=False, examples=7, head=head, warmup=3)
    for n in g:
        torch.testing.assert_close(g[n], slopes[n])
    with pytest.raises(BadPlan, match="NaN"):
        hutchinson(model, scored(model), batches(), loss=lambda m, b: m(**b).loss * float("nan"))
    assert snapshot(model) == before


def test_weights_without_curvature_or_part_in_the_loss() -> None:
    model = nn.ParameterDict({"straight": torch.ones(2), "bent": torch.ones(2), "idle": torch.ones(2)})
    g, h = hutchinson(model, dict(model.named_parameters()), [{"x": torch.ones(1)}],
                      loss=lambda m, b: m["straight"].sum() + m["bent"].square().sum())  # fmt: skip
    assert [g[n].tolist() for n in ("straight", "bent", "idle")] == [[1, 1], [2, 2], [0, 0]]
    assert [h[n].tolist() for n in ("straight", "bent", "idle")] == [[0, 0], [2, 2], [0, 0]]
    linear, flat = hutchinson(model, {"straight": model["straight"]}, [{"x": torch.ones(1)}],
                              loss=lambda m, b: m["straight"].sum())  # fmt: skip
    with pytest.raises(BadPlan, match="curvature"):
        second_order(linear, 1, diagonal=flat)


# fisher ---------------------------------------------------------------------------------------------------------------


def test_fisher_per_batch_squares_the_mean_gradient_of_each_batch() -> None:
    model = Toy()
    found = accumulate(model, scored(model), batches(), squared=True, per="batch", examples=9)
    model.eval()
    wanted = {n: torch.zeros_like(p.requires_grad_(True)) for n, p in scored(model).items()}
    for batch, size in zip(batches(), (4, 3, 2), strict=True):
        loss = model(**{n: v[:size] for n, v in batch.items()}).loss
        for n, grad in zip(wanted, torch.autograd.grad(loss, list(scored(model).values())), strict=True):
            wanted[n] += grad.square()
    for n in wanted:
        torch.testing.assert_close(found[n], wanted[n])
    singly = accumulate(model, scored(model), batches(), squared=True)
    assert any(not torch.allclose(singly[n], found[n]) for n in wanted)
