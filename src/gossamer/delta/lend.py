"""Weights on loan: entries of frozen weights hold round(base + values) for the time of one product, then the base again.

For neighbours whose users expect a base that nobody has touched between forwards (PEFT): a `Stack` keeps the change in the
weights, a loan takes it back before anybody else can look. The base's bits are written back also after an exception, so
what autograd knows of the weights stays true and their version counters are left alone: a reference forward without the
change may run between a forward and its backward. One thread at a time may borrow a weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gossamer.delta.patch import round_once

Loan = tuple[Tensor, Tensor, Tensor]  # a contiguous weight, flat indices [k] int64 sorted and unique, values [k]


@contextmanager
def lent(loans: Iterable[Loan]) -> Iterator[None]:
    """Inside the `with` the weights hold round(base + values) at the given entries.

    >>> weight = torch.tensor([1.0, 2.0])
    >>> with lent([(weight, torch.tensor([1]), torch.tensor([0.5]))]):
    ...     weight.tolist()
    [1.0, 2.5]
    >>> weight.tolist()
    [1.0, 2.0]
    """
    kept: list[Loan] = []
    try:
        for weight, where, values in loans:
            flat = weight.data.view(-1)  # `.data` has a version counter of its own
            before = flat.index_select(0, where)
            kept.append((flat, where, before))
            flat.index_copy_(0, where, rounded(before, values))
        yield
    finally:
        for flat, where, before in reversed(kept):
            flat.index_copy_(0, where, before)


@torch.no_grad()
def written(loans: Iterable[Loan]) -> list[Loan]:
    """Writes the same for good; returns what `put_back` needs to restore the base's own bits."""
    kept: list[Loan] = []
    for weight, where, values in loans:
        flat = weight.view(-1)
        kept.append((weight, where, flat.index_select(0, where)))
        flat.index_copy_(0, where, rounded(kept[-1][2], values))
    return kept


@torch.no_grad()
def put_back(kept: Iterable[Loan]) -> None:
    """Undoes `written`, also on a model that has been moved to another device since."""
    for weight, where, before in kept:
        weight.view(-1).index_copy_(0, where.to(weight.device), before.to(weight))


def rounded(base: Tensor, values: Tensor) -> Tensor:
    """base + values, rounded once to the base's dtype: the bits that `Stack` would write."""
    if base.dtype == torch.float32 and values.dtype == torch.float32:
        return base + values
    return round_once(base.double() + values.double(), base.dtype)
