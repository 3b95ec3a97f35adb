"""tune: one phase over a model that stays an ordinary model, for any training loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from gossamer.delta.apply import applied
from gossamer.delta.base import base_parameters
from gossamer.delta.delta import Delta
from gossamer.errors import BadPlan
from gossamer.select.grow_drop import grow_drop
from gossamer.select.scoring import Batch, Loss
from gossamer.train.avoid import Avoid, avoided, check_left
from gossamer.train.choose import Patterns, choose, left_out, listed, maskable
from gossamer.train.match import matched
from gossamer.train.plan import Choose, Fit, budget, row_of, settle
from gossamer.tunable.tuned import Tuned, head_parameters


@contextmanager
def tune(
    model: nn.Module,
    method: str,
    *,
    density: float | None = None,
    k: int | None = None,
    match: str | None = None,
    data: Iterable[Batch] | None = None,
    loss: Loss | None = None,
    on: Delta | None = None,
    head: bool | Patterns = True,
    exclude: Patterns = (),
    avoid: Avoid = (),
    seed: int = 0,
    **options: Any,
) -> Iterator[Tuned]:
    """Chooses weights by a method and makes them trainable; the rest of the backbone is frozen. Restores it on exit.

    Args:
        model: any model; what lies outside `model.base_model` is its task head, trained dense (see `head`).
        method: a method of one phase: full, random, magnitude, bitfit, gradient, sam, fisher, child-d, mixout, child-f,
            spiel-ag, spiel-ma, houlsby, pfeiffer, lora.
        density: share of the backbone's weights (default 0.005), or `k`, their number, or `match`, another method whose
            number of trained weights it shall be: "lora:8", "pfeiffer:16", "houlsby:16", "bitfit".
        data: batches with labels, for the rules that score (gradient, sam, fisher); the first 1,024 examples are used.
        loss: f(model, batch) → mean loss; default ``model(**batch).loss``.
        on: a delta applied underneath, frozen.
        head: True, False, or name patterns of the head's parameters; a language model's output is never a head by itself.
        exclude: name patterns (relative to the backbone) never to be chosen.
        avoid: deltas or supports whose entries are never chosen, so that the new delta is disjoint from them; for methods that
            choose once: random, magnitude, gradient, sam, fisher, child-d (and in `fit` lt-sft and the prunings).
        seed: of the random rule, and of sam's random vectors.
        options: the method's own, see ``methods()``.

    Yields:
        Tuned, with `parameters()`, `delta()`, `disabled()`, `penalize()`.
    """
    row = row_of(method)
    *choices, last = row.plan()
    if not isinstance(last, Fit) or any(isinstance(phase, Fit) for phase in choices):
        raise BadPlan(f"{row.name} has several phases; use fit(model, {row.name!r}, trainer=...)")
    settled = settle(row, options)
    about: dict[str, Any] = {"method": row.name, "seed": seed, "options": settled, "exclude": listed(exclude)}
    exclude = left_out(model, row, exclude)
    barred, others = avoided(model, row, avoid)
    about |= {"avoid": others} if others else {}
    k = budget(row, count(model, head), density, k, match, lambda other: matched(model, other, head))
    if k is not None:
        check_left(k, maskable(model, head, exclude), barred)
    support = None
    with beneath(model, on):
        for phase in choices:
            assert isinstance(phase, Choose)
            support = choose(model, phase.rule, k, data=data, loss=loss, head=head, exclude=exclude, avoid=barred, seed=seed,
                             options=settled)  # fmt: skip
    freeze = base_parameters(model).keys() - maskable(model, head, exclude).keys()
    tuned = Tuned(model, support, kind=last.tunable, on=on, head=head, freeze=freeze, options=settled, seed=seed,
                  k=k, avoid=barred, revise=grow_drop, about=about)  # fmt: skip
    try:
        yield tuned
    finally:
        tuned.detach()


def count(model: nn.Module, head: bool | Patterns = True) -> int:
    """m: the number of weights of the backbone, exclusions included, what belongs to the head not."""
    mine = {id(p) for p in head_parameters(model, head).values()}
    return sum(p.numel() for p in base_parameters(model).values() if id(p) not in mine)


@contextmanager
def beneath(model: nn.Module, on: Delta | None) -> Iterator[None]:
    """The model with the delta underneath, if there is one, for choosing weights."""
    if on is None:
        yield
        return
    with applied(model, on, head=False):
        yield
