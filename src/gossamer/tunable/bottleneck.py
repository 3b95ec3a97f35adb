"""Bottleneck adapters: small modules behind the projections of a frozen model, h + U·f(D·h).

Houlsby et al. 2019: two a block, behind attention and feed-forward, before dropout, residual and normalization. Pfeiffer
et al. 2021: one a block, behind the feed-forward. With `invertible`, MAD-X's coupling layer at the embeddings too. Both
matrices start near zero (normal, σ = 0.01, cut at 2σ, as in Houlsby's code), so that training starts at the base.

The leaves are float32 whatever the base's dtype; states are cast around them. They are registered in the model's
`gossamer` submodule and the hooks read them from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from gossamer.delta.apply import Stack
from gossamer.delta.attach import Scion
from gossamer.delta.base import LEAVES, backbone, base_parameters
from gossamer.delta.graft import Graft, shapes
from gossamer.delta.patch import Patch
from gossamer.delta.support import Support
from gossamer.errors import BadPlan
from gossamer.tunable.leaves import Leaves, Wanted
from gossamer.tunable.places import Place, find_embeddings, find_places, norm_names
from gossamer.tunable.sparse import SparseLeaves


class BottleneckLeaves(Leaves):
    """Adds bottlenecks `behind` "feedforward" or "both"; with `norms`, normalization layers train as a sparse patch.

    Options: bottleneck (width), activation, places (name patterns of linear layers), level, invertible, norms.
    """

    def __init__(self, model: nn.Module, stack: Stack, wanted: Wanted, *, behind: str) -> None:
        self.model, self.stack = model, stack
        fresh = _fresh(model, behind, wanted)
        stack.grafts.check(model, fresh)
        norms = norm_names(model) if wanted.options.get("norms") else []
        whole = {n: torch.arange(stack.parameters[n].numel()) for n in norms if n in wanted.names}
        # these make the submodule for the leaves, with none in it if norms are frozen
        self.norms = SparseLeaves(model, stack, replace(wanted, support=Support(whole)))
        holder = model.get_submodule(LEAVES)
        started = {(g.place, g.level): g for g in (wanted.start.grafts if wanted.start else ())}
        self.scions: list[Scion] = []
        self.leaves: list[nn.Parameter] = []
        for graft in fresh:
            beside = next(backbone(model).get_submodule(graft.place).parameters())
            first = started.get((graft.place, graft.level), graft)
            names = {part: f"{graft.place}/{part}".replace(".", "/") for part in graft.tensors}
            for part, name in names.items():
                dtype = torch.promote_types(beside.dtype, torch.float32)
                self.leaves.append(nn.Parameter(first.tensors[part].to(beside.device, dtype, copy=True)))
                holder.register_parameter(name, self.leaves[-1])
            self.scions.append(Scion(graft, holder, names))
        stack.grafts.put(model, self.scions)

    def parameters(self) -> Iterator[nn.Parameter]:
        yield from self.leaves
        yield from self.norms.parameters()

    def patches(self) -> dict[str, Patch]:
        return self.norms.patches()

    def grafts(self) -> tuple[Graft, ...]:
        return tuple(
            replace(s.graft, tensors={part: getattr(s.holder, n).detach().cpu().clone() for part, n in s.names.items()})
            for s in self.scions
        )

    def add_penalty_gradient(self, strength: float) -> None:
        """Adds strength · sign of the leaves to their gradients: it draws the modules toward the identity."""
        for leaf in self.leaves:
            if leaf.grad is not None:
                leaf.grad.add_(leaf.detach().sign(), alpha=strength)
        self.norms.add_penalty_gradient(strength)

    def suspend(self) -> None:
        self.stack.grafts.take(self.scions)
        self.norms.suspend()

    def wake(self) -> None:
        self.norms.wake()
        self.stack.grafts.put(self.model, self.scions)

    def detach(self) -> None:
        self.stack.grafts.take(self.scions)
        self.norms.detach()


def _fresh(model: nn.Module, behind: str, wanted: Wanted) -> list[Graft]:
    """The modules as they are before training, drawn from the seed."""
    options, rng = wanted.options, torch.Generator().manual_seed(wanted.seed)
    inner, activation, level = options.get("bottleneck", 16), options.get("activation", "relu"), options.get("level", 0)
    mine = set(wanted.names)
    named = {id(parameter): name for name, parameter in base_parameters(model).items()}

    def spared(place: Place) -> bool:
        return not any(named.get(id(p)) in mine for p in place.module.parameters())

    def drawn(place: Place, kind: str, width: int) -> Graft:
        tensors = {}
        for part, shape in shapes(kind, place.width, width).items():
            tensors[part] = torch.zeros(shape)
            if part.endswith("weight"):
                nn.init.trunc_normal_(tensors[part], std=1e-2, a=-2e-2, b=2e-2, generator=rng)
        return Graft(place.name, tensors, kind, activation, level)

    places = [place for place in find_places(model, behind, options.get("places", ())) if not spared(place)]
    if not places:
        raise BadPlan("exclude= spares every linear layer behind which modules would stand; exclude fewer")
    made = [drawn(place, "bottleneck", inner) for place in places]
    if options.get("invertible"):
        embeddings = find_embeddings(model)
        made.append(drawn(embeddings, "invertible", max(1, embeddings.width // 4)))  # a quarter, as in the paper
    return made
