"""Ages: Adam with an age of its own for every entry, above an unmodified AdamW with one step for all.

A grown entry starts with the moments that a steps of gradients ḡ would have left, m = ḡ(1 − β1^a), v = mean(g²)(1 − β2^a),
at age a (Ansell et al. 2024). AdamW corrects every entry's bias by its own step; so, after each step, entries of another
age are computed again from its moments:

    δ = δ_before · (1 − lr·wd) − lr · m̂ / (√v̂ + ε),   m̂ = m / (1 − β1^age),  v̂ = v / (1 − β2^age)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from gossamer.errors import BadPlan


class Ages:
    """Per leaf an offset [k_i] int32: age = the optimizer's step + offset; no tensor while all are 0."""

    def __init__(self, leaves: Mapping[str, nn.Parameter]) -> None:
        self.leaves = leaves
        self.offsets: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}

    def offset(self, name: str) -> Tensor:
        leaf = self.leaves[name]
        if name not in self.offsets:
            self.offsets[name] = torch.zeros(leaf.numel(), dtype=torch.int32, device=leaf.device)
        return self.offsets[name]

    def before(self, names: list[str]) -> None:
        self._before = {name: self.leaves[name].detach().clone() for name in names if name in self.offsets}

    @torch.no_grad()
    def after(self, optimizer: Optimizer, names: list[str]) -> None:
        """Corrects what a step made of entries whose age is not the optimizer's step."""
        for name, group in _groups(optimizer, {name: self.leaves[name] for name in names if name in self._before}):
            leaf, state, before = self.leaves[name], optimizer.state[self.leaves[name]], self._before.pop(name)
            if not _adam(state):
                continue
            offset = self.offsets[name]
            lr, (b1, b2) = group["lr"], group["betas"]
            decay = lr * group["weight_decay"] if group.get("decoupled_weight_decay", True) else 0.0
            age = (state["step"].to(leaf.device) + offset).to(leaf.dtype)
            m = state["exp_avg"] / (1.0 - b1**age)
            v = state["exp_avg_sq"] / (1.0 - b2**age)
            leaf.copy_(torch.where(offset == 0, leaf, before * (1.0 - decay) - lr * m / (v.sqrt() + group["eps"])))

    def seed(
        self, optimizer: Optimizer, name: str, slots: Tensor, total: Tensor, squares: Tensor, count: Tensor
    ) -> None:
        """Gives the moments of `count` steps with Σ g and Σ g² to the entries at some slots of a leaf."""
        state = optimizer.state[self.leaves[name]]
        if not _adam(state):
            return
        ((_, group),) = _groups(optimizer, {name: self.leaves[name]})
        if group.get("amsgrad"):
            raise BadPlan("amsgrad keeps a maximum that entries of different ages cannot share; train without it")
        b1, b2 = group["betas"]
        a = count.to(total.dtype)
        state["exp_avg"][slots] = (total / a * (1.0 - b1**a)).to(state["exp_avg"].dtype)
        state["exp_avg_sq"][slots] = (squares / a * (1.0 - b2**a)).to(state["exp_avg_sq"].dtype)
        self.offset(name)[slots] = count - state["step"].to(count)


def _adam(state: Mapping[str, object]) -> bool:
    return {"exp_avg", "exp_avg_sq", "step"} <= state.keys()


def _groups(optimizer: Optimizer, leaves: Mapping[str, nn.Parameter]) -> list[tuple[str, dict]]:
    """Names of leaves with the optimizer's group of each."""
    names = {id(leaf): name for name, leaf in leaves.items()}
    return [(names[id(p)], g) for g in optimizer.param_groups for p in g["params"] if id(p) in names]
