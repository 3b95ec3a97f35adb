"""child-pruning: dense training projected, every s steps, onto the k entries that moved furthest.

After every s optimizer steps the k largest |θ − θ0| stay and the rest return to θ0 (iterative projection; the
projection-based row of Fu et al. 2023, after Xu et al. 2021). After a burn-in the support is kept: every step is then
projected onto it. `history` holds the Jaccard similarity of successive supports: the paper's claim is that projection
makes training discontinuous, and this is how much the support jumps. The optimizer's moments are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from gossamer.delta.apply import Stack
from gossamer.delta.patch import round_once
from gossamer.delta.support import Support
from gossamer.delta.topk import check_k, free, top_k
from gossamer.errors import BadPlan
from gossamer.tunable.around import Around
from gossamer.tunable.dense import DenseLeaves
from gossamer.tunable.leaves import Wanted


class ProjectedLeaves(DenseLeaves):
    """Dense leaves of which, every s steps, only k entries differ from the base.

    Options: `every` (s); `burn_in`, at most 1 a share of the phase's steps, else a number of steps; `per_tensor`.
    """

    def __init__(self, model: nn.Module, stack: Stack, wanted: Wanted) -> None:
        assert wanted.k is not None
        self.k, self.s, self.per_tensor = wanted.k, int(wanted.options["every"]), bool(wanted.options["per_tensor"])
        self.avoid = wanted.avoid
        self.burn_in = float(wanted.options["burn_in"])
        if self.s < 1 or self.burn_in <= 0:
            raise BadPlan(f"every={self.s} and burn_in={self.burn_in:g}: expected at least one step each")
        sizes = free({name: stack.parameters[name].numel() for name in wanted.names}, self.avoid)
        check_k(self.k, sum(sizes.values()))
        super().__init__(model, stack, wanted)
        self.t, self.steps = 0, 0  # done; in the whole phase, 0 while nobody has said
        self.support: Support | None = None
        self.history: list[float] = []
        self._around = Around(self.leaves, after=self._after)

    def begin(self, steps: int) -> None:
        """Is told how many optimizer steps the phase has."""
        if 0 < steps < self.s:
            raise BadPlan(
                f"{steps} steps end before the first projection, after every={self.s}; train longer or lower every"
            )
        self.steps = steps

    def kept(self) -> Support | None:
        return self.support

    @property
    def settled(self) -> bool:
        """Whether the burn-in is over."""
        if self.burn_in < 1.0 and not self.steps:
            raise BadPlan(
                f"burn_in={self.burn_in:g} is a share of the steps, whose number only a transformers Trainer tells; in "
                "a loop of your own give a number of steps"
            )
        share = self.burn_in * self.steps if self.steps else float("inf")
        return self.support is not None and self.t >= (share if self.burn_in <= 1.0 else self.burn_in)

    def _after(self, optimizer: Optimizer, names: list[str]) -> None:
        settled = self.settled  # before this step
        self.t += 1
        if settled:
            self.project()
        elif self.t % self.s == 0:
            scores = {name: (lambda name=name: self.values(name).abs()) for name in self.leaves}
            support = top_k(scores, self.k, per_tensor=self.per_tensor, without=self.avoid)
            if self.support is not None:
                self.history.append(support.jaccard(self.support))
            self.support = support
            self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Returns every entry outside the support to what lies beneath."""
        assert self.support is not None
        for name, leaf in self.leaves.items():
            projected = round_once(self.stack.beneath(name), leaf.dtype).view(-1)
            if name in self.support:
                indices = self.support[name].to(leaf.device)
                projected[indices] = leaf.reshape(-1)[indices]
            self.stack.sites[name].write(projected)

    def facts(self, m: int) -> dict[str, Any]:
        return {"jaccard": list(self.history)}

    def extra(self) -> dict[str, Tensor]:
        found = {f"support:{name}": indices for name, indices in (self.support or {}).items()}
        return {**found, "t": torch.tensor(self.t), "history": torch.tensor(self.history, dtype=torch.float64)}

    def load_extra(self, extra: Mapping[str, Tensor]) -> None:
        found = {name.removeprefix("support:"): i for name, i in extra.items() if name.startswith("support:")}
        self.support = Support(found) if found else None
        self.t, self.history = int(extra["t"]), extra["history"].tolist()

    def detach(self) -> None:
        self._around.remove()
        super().detach()
