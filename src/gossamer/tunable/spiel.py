"""The two kinds of SpIEL (Ansell et al. 2024), which differ in what scores an entry that may grow.

spiel-ag  |Σ g| over a window of γ steps before the revision; grown entries start with seeded Adam moments
spiel-ma  row_i · column_j, the accumulators of SM3, with which it trains; matrices only
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from gossamer.delta.apply import Stack
from gossamer.delta.support import Support
from gossamer.delta.topk import top_k
from gossamer.errors import BadPlan
from gossamer.tunable.aged import Ages
from gossamer.tunable.around import loss_scale
from gossamer.tunable.candidates import Candidates, end_step
from gossamer.tunable.leaves import Wanted
from gossamer.tunable.revised import RevisedLeaves, Scored, columns
from gossamer.tunable.sm3 import SM3


class GradientLeaves(RevisedLeaves):
    """spiel-ag. Option `window` (γ). The optimizer is an unmodified AdamW; any other with state an entry works unseeded."""

    def __init__(self, model: nn.Module, stack: Stack, wanted: Wanted) -> None:
        self.window = int(wanted.options["window"])
        if not 1 <= self.window <= int(wanted.options["every"]):
            raise BadPlan(f"window={self.window}: expected from 1 to every={wanted.options['every']} steps")
        self.candidates: dict[str, Candidates] = {}
        super().__init__(model, stack, wanted)
        self.ages = Ages(self.leaves)

    @property
    def watching(self) -> bool:
        """Whether the next step is in a window before a revision."""
        following = self.t - self.t % self.every + self.every
        return self.share(following) > 0 and self.t >= following - self.window

    def watcher(self, name: str) -> Callable[[Tensor], None] | None:
        if not self.watching:
            return None
        if not self.candidates:  # all, in one order: ranks compare them
            self.candidates = {name: Candidates(self.indices(name)) for name in self.leaves}
        return self.candidates[name].see

    def before(self, optimizer: Optimizer, names: list[str]) -> None:
        super().before(optimizer, names)
        gradients, scale = {name: self.leaves[name].grad for name in names}, loss_scale(optimizer)
        end_step(self.candidates, {name: grad / scale for name, grad in gradients.items() if grad is not None})
        self.ages.before(names)

    def after(self, optimizer: Optimizer, names: list[str]) -> None:
        self.ages.after(optimizer, names)

    def scored(self, optimizer: Optimizer, share: float) -> Scored:
        return {
            name: (torch.cat([one.index, one.support]).cpu(), torch.cat([one.total, one.active]).abs().cpu())
            for name, one in self.candidates.items()
        }

    def move(self, support: Support, optimizer: Optimizer) -> None:
        super().move(support, optimizer)
        self.candidates = {}

    def _columns(self, optimizer: Optimizer, name: str) -> list[Tensor]:
        return [*super()._columns(optimizer, name), self.ages.offset(name)]

    def seed(self, optimizer: Optimizer, name: str, grown: Tensor, slots: Tensor) -> None:
        if grown.numel():
            one = self.candidates[name]
            at = torch.searchsorted(one.index, grown)
            self.ages.seed(optimizer, name, slots, one.total[at], one.squares[at], one.count[at])

    def extra(self) -> dict[str, Tensor]:
        found = {f"age:{name}": offset for name, offset in self.ages.offsets.items()}
        for name, one in self.candidates.items():
            for part in ("index", "total", "squares", "count", "active"):
                found[f"{part}:{name}"] = getattr(one, part)
        return {**super().extra(), **found}

    def load_extra(self, extra: Mapping[str, Tensor]) -> None:
        super().load_extra(extra)
        device = {name: leaf.device for name, leaf in self.leaves.items()}
        self.ages.offsets = {n: age.to(device[n], copy=True) for n, age in columns(extra, "age").items()}
        self.candidates = {}
        for name in columns(extra, "index"):
            one = self.candidates[name] = Candidates(self.indices(name))
            for part in ("index", "total", "squares", "count", "active"):
                setattr(one, part, extra[f"{part}:{name}"].to(device[name], copy=True))
            one.clear()


class AccumulatorLeaves(RevisedLeaves):
    """spiel-ma. The optimizer must be `SM3`; its accumulators are the scores, the same on every rank."""

    def __init__(self, model: nn.Module, stack: Stack, wanted: Wanted) -> None:
        super().__init__(model, stack, wanted)
        self._tell()

    def _tell(self) -> None:
        for name, leaf in self.leaves.items():
            leaf.entries = (tuple(self.stack.parameters[name].shape), self.indices(name))  # type: ignore[attr-defined]

    def _place(self, support: Support) -> None:
        super()._place(support)
        self._tell()

    def before(self, optimizer: Optimizer, names: list[str]) -> None:
        super().before(optimizer, names)
        if not isinstance(optimizer, SM3):
            raise BadPlan(
                f"spiel-ma scores weights with SM3's accumulators, and {type(optimizer).__name__} has none; build "
                "gossamer.tunable.sm3.SM3(trained, lr=…) over the parameters with requires_grad, and give it to Trainer "
                "as optimizers=(that, None)"
            )

    def scored(self, optimizer: Optimizer, share: float) -> Scored:
        found: Scored = {}
        for name, leaf in self.leaves.items():
            state, own = optimizer.state.get(leaf, {}), self.support[name]
            n = round(share * own.numel())
            if state and n:
                scores = torch.outer(state["row"], state["column"]).reshape(-1)
                mine = scores[self.indices(name)].cpu()
                scores[self.indices(name)] = -1.0
                best = top_k({name: scores}, min(n, scores.numel()))[name]
                found[name] = (torch.cat([best, own]), torch.cat([scores[best.to(scores.device)].cpu(), mine]))
        return found

    def _columns(self, optimizer: Optimizer, name: str) -> list[Tensor]:
        return []  # rows and columns outlive the entries
