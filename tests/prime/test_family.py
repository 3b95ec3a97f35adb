"""Where priming provably helps: tasks that share hidden directions, and a φ too small to find them (see `hidden_tasks`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import gossamer as gs
from gossamer.delta.support import Support
from gossamer.prime.episodes import Episodes
from gossamer.prime.maml import Primed, prime
from tests.prime.family import Narrow, collate, hidden_tasks, squared

T = 3
DIAGONAL = torch.arange(0, 16, 5)  # φ: four entries of `down`, and the head
RATES = (0.01, 0.03, 0.06, 0.1, 0.2)


def primed(seed: int, **how: Any) -> Primed:
    drawn = Episodes(hidden_tasks(64, 0, secret=seed), collate, support=16, query=16, inner_steps=T, tasks=3, seed=seed)
    return prime(Narrow(seed=seed), "random", support=Support({"down.weight": DIAGONAL}), head=["out"], episodes=drawn,
                 steps=80, lr=0.05, inner_lr=0.06, loss=squared, **how)  # fmt: skip


def later(seed: int, made: Primed | None) -> float:
    """The mean query loss of unseen tasks after T plain steps on φ and head, at the base's own best rate."""
    fresh = Episodes(
        hidden_tasks(16, 1, secret=seed), collate, support=16, query=30, inner_steps=T, tasks=16, seed=seed
    )
    chosen = torch.zeros(16).index_fill(0, DIAGONAL, 1.0).view(4, 4)
    found = []
    for rate in RATES:
        losses = []
        for episode in fresh.at(0):
            model = Narrow(seed=seed)
            if made:
                gs.merge(model, made.delta)
                gs.merge(model, made.start)
            for batch in episode.support:
                down, out = torch.autograd.grad(squared(model, batch), [model.down.weight, model.out.weight])
                model.down.weight.data -= rate * chosen * down
                model.out.weight.data -= rate * out
            losses.append(squared(model, episode.query).item())
        found.append(sum(losses) / len(losses))
    return min(found)


@pytest.mark.parametrize("seed", range(3))
def test_priming_helps_on_unseen_tasks(seed: int) -> None:
    plain, tuned = later(seed, None), later(seed, primed(seed, control="ft"))  # ft: equal batches and steps
    for order in ("first", "second"):
        assert later(seed, primed(seed, order=order)) < 0.6 * min(plain, tuned)


def test_it_is_the_same_each_time() -> None:
    one, other = primed(0), primed(0)
    assert one.delta == other.delta and one.start == other.start and one.history == other.history
