"""child-f: dense training in which each step moves a random share of the weights, Δθ = (M/p) ∘ u, M ~ Bernoulli(p).

(Xu et al. 2021, task-free Child-Tuning.) u is the full update that the optimizer made, weight decay included; its
moments see the unmasked gradient. The public code masks and scales the gradient instead, so that under Adam, which
divides by the gradient's own scale, the factor 1/p hardly counts and the moments forget the weights left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from gossamer.delta.apply import Stack
from gossamer.errors import BadPlan
from gossamer.tunable.around import Around, shared_generator
from gossamer.tunable.dense import DenseLeaves
from gossamer.tunable.leaves import Wanted


class ChildLeaves(DenseLeaves):
    """Dense leaves whose every update is thinned to a fresh share p and scaled by 1/p. Option `p`."""

    def __init__(self, model: nn.Module, stack: Stack, wanted: Wanted) -> None:
        self.p = float(wanted.options["p"])
        if not 0.0 < self.p <= 1.0:
            raise BadPlan(f"p={self.p:g}: expected the share of weights that a step moves, above 0 and at most 1")
        super().__init__(model, stack, wanted)
        self._before: dict[str, Tensor] = {}
        self._around = Around(self.leaves, before=self._hold, after=self._thin)

    def _hold(self, optimizer: Optimizer, names: list[str]) -> None:
        self._before = {name: self.leaves[name].detach().clone() for name in names}

    @torch.no_grad()
    def _thin(self, optimizer: Optimizer, names: list[str]) -> None:
        generator = shared_generator(self.leaves[names[0]].device)
        for name in names:
            leaf, before = self.leaves[name], self._before.pop(name)
            leaf.copy_(thinned(before, leaf, self.p, generator))

    def detach(self) -> None:
        self._around.remove()
        super().detach()


def thinned(before: Tensor, after: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """before + (M/p) ∘ (after − before), M ~ Bernoulli(p) entry by entry; exactly `before` where M = 0.

    >>> thinned(torch.zeros(3), torch.ones(3), 1.0, torch.Generator())
    tensor([1., 1., 1.])
    """
    wide = torch.promote_types(before.dtype, torch.float32)
    drawn = torch.empty(before.shape, dtype=torch.bool, device=before.device).bernoulli_(p, generator=generator)
    u = after.to(wide) - before.to(wide)
    moved = after if p == 1.0 else (before.to(wide) + u / p).to(before.dtype)
    return torch.where(drawn, moved, before)
