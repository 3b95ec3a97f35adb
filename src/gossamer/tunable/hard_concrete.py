"""The hard concrete distribution of diff pruning's gates (Louizos et al. 2018; Guo et al. 2021), as pure functions of α.

    s = σ(log u − log(1 − u) + α),  s̄ = s·(r − l) + l,  z = min(1, max(0, s̄)),  u ~ U(0, 1),  l = −1.5, r = 1.5

The temperature is 1, as in the paper, which is what makes E[z] have a closed form. The public code never takes it: it
prunes by one random z.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

L, R = -1.5, 1.5
CUT = math.log(-L / R)  # α at which a gate is open half of the time
_X0, _X1 = -L / (R - L), (1 - L) / (R - L)  # s at which z leaves 0, and reaches 1
# log(D(x₁)/D(x₀)) = Σ_n (−1)ⁿ⁺¹ dⁿ (c₁ⁿ − c₀ⁿ)/n with c = 1 − 2x; the first term cancels 1/d in E[z], these are the next
_SERIES = [(-1) ** (n + 1) * ((1 - 2 * _X1) ** n - (1 - 2 * _X0) ** n) / n for n in range(2, 11)]


def sample(u: Tensor, alpha: Tensor) -> Tensor:
    """z of uniform u, elementwise.

    >>> sample(torch.tensor([0.1, 0.5, 0.9]), torch.zeros(3))
    tensor([0., 0., 1.])
    """
    return torch.logit(u).add_(alpha).sigmoid_().mul_(R - L).add_(L).clamp_(0.0, 1.0)


def slope(z: Tensor) -> Tensor:
    """∂z/∂α of a sampled z: (z − l)(r − z)/(r − l), which is (r − l)·s(1 − s), where z is neither 0 nor 1; else 0.

    >>> slope(torch.tensor([0.0, 0.5, 1.0]))
    tensor([0.0000, 0.6667, 0.0000])
    """
    inside = (z > 0) & (z < 1)
    return (z - L).mul_(R - z).mul_(inside).div_(R - L)


def mean(alpha: Tensor) -> Tensor:
    """E[z], elementwise, in float64, differentiable.

    E[z] = ∫₀¹ P(z > t) dt = (r − l) ∫ σ(α − logit x) dx for x from x₀ = −l/(r − l) to x₁ = (1 − l)/(r − l). With
    p = σ(α), q = 1 − p, d = p − q and D(x) = p(1 − x) + qx that is p/d + (r − l)·(pq/d²)·log(D(x₁)/D(x₀)); around
    d = 0, where this cancels, its power series in d.

    >>> mean(torch.tensor([-5.0, 0.0, 5.0])).round(decimals=4)
    tensor([0.0036, 0.3333, 0.9848], dtype=torch.float64)
    """
    alpha = alpha.double()
    p, q = alpha.sigmoid(), (-alpha).sigmoid()
    d = p - q
    near = d.abs() < 0.05
    far = torch.where(near, 1.0, d)  # neither branch may divide by 0, nor its derivative
    ratio = (p * (1 - _X1) + q * _X1).log() - (p * (1 - _X0) + q * _X0).log()
    closed = p / far + (R - L) * p * q / far.square() * ratio
    small, terms = torch.where(near, d, 0.0), torch.zeros_like(d)
    for coefficient in reversed(_SERIES):
        terms = terms * small + coefficient
    series = 0.5 + d / 2 + (R - L) * p * q * terms
    return torch.where(near, series, closed)


def open_probability(alpha: Tensor) -> Tensor:
    """P(z ≠ 0) = σ(α − log(−l/r)), elementwise.

    >>> open_probability(torch.tensor([0.0, 5.0]))
    tensor([0.5000, 0.9933])
    """
    return torch.sigmoid(alpha - CUT)


def expected_open(alpha: Tensor, gate: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of one tensor the expected number of open gates Σ_i σ(α_i − c)·σ(α_g − c), and its gradients by α and by α_g.

    Args:
        alpha: of every weight, any shape.
        gate: α_g, one number, or None for the unstructured form, in which that factor is 1.

    Returns:
        (float64 number, gradient in alpha's shape, gradient in gate's shape or None).

    >>> value, by_alpha, by_gate = expected_open(torch.zeros(2, 3), torch.zeros(()))
    >>> value, by_alpha[0, 0], by_gate
    (tensor(1.5000, dtype=torch.float64), tensor(0.1250), tensor(0.7500))
    """
    p = open_probability(alpha)
    total = p.sum(dtype=torch.float64)
    by_alpha = p.addcmul_(p, p, value=-1.0)  # σ' = σ − σ²
    if gate is None:
        return total, by_alpha, None
    p_gate = open_probability(gate)
    return total * p_gate, by_alpha.mul_(p_gate), (total * p_gate * (1 - p_gate)).to(gate.dtype)
