"""Revised: sparse leaves whose support is revised every S steps; k stays the same (SpIEL, Ansell et al. 2024).

The smallest |δ| go, as many grow where the score is largest; the share is ξ_0 · (1 − t/T), the first time all of it.
An entry that stays (or goes and comes back at once) keeps its value and state. What the score is, the kinds in `spiel.py` say.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from gossamer.delta.apply import Stack
from gossamer.delta.support import Support
from gossamer.errors import BadPlan
from gossamer.tunable.around import Around, stepped
from gossamer.tunable.leaves import Wanted
from gossamer.tunable.sparse import SparseLeaves

Scored = dict[str, tuple[Tensor, Tensor]]  # name → candidates' flat indices and scores, on the CPU


class RevisedLeaves(SparseLeaves):
    """What both kinds share. Options: `every` (S), `rate` (ξ_0), `total_steps` (T; 0: a Trainer says)."""

    flat = False  # each weight has a leaf of its own: its entries move, within a quota

    def __init__(self, model: nn.Module, stack: Stack, wanted: Wanted) -> None:
        options = wanted.options
        self.every, self.rate, self.steps = int(options["every"]), float(options["rate"]), int(options["total_steps"])
        if self.every < 1 or not 0.0 <= self.rate <= 1.0:
            raise BadPlan(f"every={self.every}, rate={self.rate:g}: expected 1 or more steps, and a share from 0 to 1")
        assert wanted.revise is not None
        self.grow_drop = wanted.revise
        self._check_length()
        self.t = 0
        self.history: list[float] = []  # Jaccard similarity of successive supports
        super().__init__(model, stack, wanted)
        self._around = Around(self.leaves, before=self.before)
        # a checkpoint holds weights at the support of its time; the frozen weights stay, leaves and support bring back δ
        self._hooks.append(model.register_load_state_dict_pre_hook(self._spare))

    def begin(self, steps: int) -> None:
        """Is told T, the number of optimizer steps in all, unless the option has said it."""
        self.steps = self.steps or steps
        self._check_length()

    def _check_length(self) -> None:
        if 0 < self.steps <= self.every:
            raise BadPlan(
                f"{self.steps} steps end before the first choice of weights after every={self.every}; train longer or "
                "lower every"
            )

    def share(self, t: int) -> float:
        """The share of entries revised after step t; 0 between revisions."""
        if t % self.every or t >= self.steps:
            return 0.0
        return 1.0 if t == self.every else self.rate * (1.0 - t / self.steps)

    def before(self, optimizer: Optimizer, names: list[str]) -> None:
        """Before each step."""
        if not self.steps:
            raise BadPlan(
                "the share of revised weights falls over the whole training, whose length only a transformers Trainer "
                "tells; in a loop of your own, give total_steps="
            )
        mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if any(id(leaf) not in mine for leaf in self.leaves.values()):
            raise BadPlan("a support can be revised only if one optimizer owns all of its leaves; give it all of them")

    def after(self, optimizer: Optimizer, names: list[str]) -> None:
        """After each step, before the weights are written."""

    @abstractmethod
    def scored(self, optimizer: Optimizer, share: float) -> Scored:
        """The candidates of a revision."""
        ...

    def seed(self, optimizer: Optimizer, name: str, grown: Tensor, slots: Tensor) -> None:
        """Gives state to entries that have grown: flat indices, and their places in the leaf."""

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        names = stepped(optimizer, self.leaves)
        if not names:
            return
        self.after(optimizer, names)
        self.t += 1
        share = self.share(self.t)
        if share > 0:
            deltas = {name: leaf.detach().cpu() for name, leaf in self.leaves.items()}
            self.move(self.grow_drop(self.support, deltas, self.scored(optimizer, share), rate=share), optimizer)
        else:
            self.write(names, force=True)

    def move(self, support: Support, optimizer: Optimizer) -> None:
        """Goes over to another support of the same sizes: what stays keeps value and state, what is new starts at 0."""
        self.history.append(support.jaccard(self.support))
        old, columns = self.support, {name: self._columns(optimizer, name) for name in self.leaves}
        self._place(support)
        for name, leaf in self.leaves.items():
            index = support[name]
            stays = torch.isin(index, old[name])
            source = torch.searchsorted(old[name], index).clamp_(max=index.numel() - 1).to(leaf.device)
            for column in (leaf, *columns[name]):
                column.copy_(torch.where(stays.to(column.device), column[source], torch.zeros_like(column)))
            self.seed(optimizer, name, index[~stays].to(leaf.device), torch.nonzero(~stays).flatten().to(leaf.device))
        self.stack.push(self.layer)

    def _columns(self, optimizer: Optimizer, name: str) -> list[Tensor]:
        """The optimizer's state that has one number an entry."""
        state = [x for x in optimizer.state.get(self.leaves[name], {}).values() if isinstance(x, Tensor) and x.dim()]
        if any(x.shape != self.leaves[name].shape for x in state):
            raise BadPlan(
                f"{type(optimizer).__name__} keeps a state that cannot follow a revised support; use torch.optim.AdamW"
            )
        return state

    def _place(self, support: Support) -> None:
        """Takes the layer off and gives it another support; whoever calls pushes it again."""
        self.stack.pop(self.layer)
        self.support = support
        self.layer.clear()
        self._point(self.leaves)

    def _spare(self, module: nn.Module, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        mine = {id(self.stack.parameters[name]) for name in self.leaves}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if id(parameter) in mine and prefix + name in state:
                state[prefix + name] = parameter.detach()

    def facts(self, m: int) -> dict[str, Any]:
        return {"jaccard": list(self.history)}

    def extra(self) -> dict[str, Tensor]:
        found = {f"support:{name}": indices for name, indices in self.support.items()}
        return {**found, "t": torch.tensor(self.t), "history": torch.tensor(self.history, dtype=torch.float64)}

    def load_extra(self, extra: Mapping[str, Tensor]) -> None:
        self._place(Support(columns(extra, "support")))
        self.stack.push(self.layer)
        self.t, self.history = int(extra["t"]), extra["history"].tolist()

    def detach(self) -> None:
        self._around.remove()
        super().detach()


def columns(extra: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors of one kind in what `extra` gave, by name of the weight."""
    return {name.removeprefix(f"{kind}:"): found for name, found in extra.items() if name.startswith(f"{kind}:")}
