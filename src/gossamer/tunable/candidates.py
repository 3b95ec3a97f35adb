"""Candidates: entries outside a support whose gradient is added up over a window of steps (SpIEL-AG).

For a weight with k_i tuned entries at most k_i candidates are held: flat index, Σ g, Σ g² and the number of steps seen.
Each step takes in the k_i largest |g| that it finds and keeps the k_i largest |Σ g| of old and new, so that the whole
window counts and not one micro-batch. A candidate's first step may miss a micro-batch (or a rank) in which it was not
among the largest; from then on its gradients are exact. Every rank ends a step with the same candidates.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from gossamer.tunable.bridge import gather


class Candidates:
    """The candidates of one weight, and what this step's backwards have shown so far."""

    def __init__(self, support: Tensor) -> None:
        device = support.device
        self.support = support  # [q] int64, sorted: the entries that are tuned already
        self.index = torch.zeros(0, dtype=torch.int64, device=device)  # [c], sorted, c ≤ q
        self.total = torch.zeros(0, device=device)  # [c] Σ g
        self.squares = torch.zeros(0, device=device)  # [c] Σ g²
        self.count = torch.zeros(0, dtype=torch.int32, device=device)  # [c] steps seen
        self.active = torch.zeros(support.numel(), device=device)  # [q] Σ g of the tuned entries
        self.clear()

    def clear(self) -> None:
        """Forgets what this step has shown."""
        self.now = torch.zeros_like(self.total)  # [c] g
        self.raw = torch.zeros_like(self.active)  # [q] g of the tuned entries, as the backward gave it
        self.fresh = (self.index[:0], self.total[:0])  # newcomers: flat indices, g

    @torch.no_grad()
    def see(self, grad: Tensor) -> None:
        """Takes in the whole gradient of the weight, from one use in one backward."""
        self.now += gather(grad, self.index).to(self.now)
        self.raw += gather(grad, self.support).to(self.raw)
        index, g = largest(grad, self.support.numel(), without=torch.cat([self.support, self.index]))
        index, g = summed(torch.cat([self.fresh[0], index]), torch.cat([self.fresh[1], g.to(self.total)]))
        self.fresh = _best(index, g.abs(), self.support.numel(), index, g)

    def take(self, scale: Tensor) -> None:
        """Ends a step: adds scale · g to the sums and lets newcomers in."""
        g = self.now * scale
        index = torch.cat([self.index, self.fresh[0]])
        g = torch.cat([g, self.fresh[1] * scale])
        total, squares, count = g.clone(), g.square(), torch.ones_like(index, dtype=torch.int32)
        c = self.index.numel()
        total[:c] += self.total
        squares[:c] += self.squares
        count[:c] += self.count
        self.index, self.total, self.squares, self.count = _best(
            index, total.abs(), self.support.numel(), index, total, squares, count
        )
        self.clear()


@torch.no_grad()
def end_step(found: Mapping[str, Candidates], gradients: Mapping[str, Tensor]) -> None:
    """Ends a step of all weights, with the gradients that the optimizer sees at the tuned entries.

    Those are averaged over ranks, unscaled and clipped; what the backwards have shown is not. One factor brings it to
    the same scale. A step that showed anything infinite is left out.
    """
    several = list(found.values())
    if not several:
        return
    if dist.is_available() and dist.is_initialized():
        _agree(several)
    raw = torch.cat([one.raw for one in several])
    final = torch.cat([gradients[name].to(one.raw) if name in gradients else one.raw for name, one in found.items()])
    square = raw.dot(raw)
    scale = torch.where(square > 0, final.dot(raw) / square, torch.ones_like(square))
    shown = torch.cat([scale[None], *(part for one in several for part in (one.now, one.fresh[1]))])
    if not bool(shown.isfinite().all()):
        for one in several:
            one.clear()
        return
    for name, one in found.items():
        one.active += gradients[name].to(one.raw) if name in gradients else 0.0
        one.take(scale)


def _agree(several: list[Candidates]) -> None:
    """The mean over ranks of what each has shown, and the union of their newcomers."""
    world = dist.get_world_size()
    parts = [part for one in several for part in (one.now, one.raw)]
    flat = torch.cat(parts)
    dist.all_reduce(flat)
    for part, mean in zip(parts, (flat / world).split([p.numel() for p in parts]), strict=True):
        part.copy_(mean)
    sizes = [one.support.numel() for one in several]  # a rank may have shown fewer: −1 fills up
    index, g = torch.full((sum(sizes),), -1, device=flat.device), flat.new_zeros(sum(sizes))
    for at, one in zip(_starts(sizes), several, strict=True):
        here = slice(at, at + one.fresh[0].numel())
        index[here], g[here] = one.fresh
    indices, gs = ([torch.empty_like(x) for _ in range(world)] for x in (index, g))
    dist.all_gather(indices, index)
    dist.all_gather(gs, g)
    for at, size, one in zip(_starts(sizes), sizes, several, strict=True):
        index = torch.cat([x[at : at + size] for x in indices])
        g = torch.cat([x[at : at + size] for x in gs]) / world
        one.fresh = summed(index[index >= 0], g[index >= 0])


def _starts(sizes: list[int]) -> list[int]:
    return [sum(sizes[:i]) for i in range(len(sizes))]


def largest(grad: Tensor, q: int, *, without: Tensor) -> tuple[Tensor, Tensor]:
    """Flat indices and values of the q largest |g| that are not 0 and not in `without`; [≤ q] each, indices sorted.

    A row-sparse gradient (an embedding's) is searched in its rows only.
    """
    if grad.is_sparse:
        grad = grad.coalesce()
        width = grad.values().shape[1]
        where = (grad.indices()[0][:, None] * width + torch.arange(width, device=grad.device)).reshape(-1)
        flat = grad.values().reshape(-1)
        flat = torch.where(torch.isin(where, without), 0.0, flat)
    else:
        where, flat = None, grad.reshape(-1).index_fill(0, without, 0.0)
    slots = flat.abs().topk(min(q, flat.numel()), sorted=False).indices.sort().values
    slots = slots[flat[slots] != 0]
    return (slots if where is None else where[slots]), flat[slots]


def summed(index: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted unique indices, with the sum of what came for each."""
    unique, place = index.unique(return_inverse=True)
    return unique, g.new_zeros(unique.numel()).index_add_(0, place, g)


def _best(index: Tensor, score: Tensor, q: int, *columns: Tensor) -> tuple[Tensor, ...]:
    """The rows with the q largest scores, ordered by index; ties to the lowest index."""
    order = index.argsort()
    order = order[score[order].sort(descending=True, stable=True).indices[:q]]
    order = order[index[order].argsort()]
    return tuple(column[order] for column in columns)
