"""interference: what deltas of one base are to one another, and what each would lose in their sum, without any data.

For two deltas a and b, over the entries that each really changes (those whose change is not 0):

    overlap     Jaccard |A ∩ B| / |A ∪ B|, beside what it would be by chance: each tensor of n entries with k_a and k_b chosen
                at random shares k_a·k_b / n
    conflicts   the share of the common entries whose signs differ, and of their mass: Σ min(|a|, |b|) over those, over
                the same of all common entries, which is what cancels
    cosine      ⟨a, b⟩ / (‖a‖·‖b‖), over all entries
    ratio       ‖b‖ / ‖a‖
    predicted   the share of what a gained that adding b costs:  (‖b‖² + 2·Σ |a_i·b_i| where the signs differ) / ‖a‖²

The prediction is what a quadratic says, of one curvature h in all directions: where a's task has its best at θ0 + a,
going from θ0 to it gained ½h‖a‖² and going on by b costs ½h‖b‖². The best usually lies beyond a (training stops early, and the
loss of a classifier has no best at all); if as far again, going on by b costs ½h(‖b‖² − 2⟨a, b⟩) more exactly. Of
that inner product only the part where signs differ is counted: it is harm for certain, whereas pushing on where they agree
is no gain that one could rely on. It ranks sums, it is no forecast of a score; above 1 all that was gained is at risk.
For several deltas, b is the sum of all others. The curvature is not known without data; `docs/evidence/interference.sh`
measures how well this ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from gossamer.analyze.where import layer_of
from gossamer.delta.delta import Delta
from gossamer.delta.patch import Terms
from gossamer.delta.terms import exact, union
from gossamer.errors import BadPlan, BaseMismatch

Change = tuple[Tensor | None, Tensor]  # flat indices [k], or None for all entries, and values in float64


@dataclass(frozen=True)
class Meeting:
    """Two deltas a and b in one place: a layer, or everywhere. Sums, of which the measures are made."""

    size: int = 0  # weights there
    a: int = 0  # entries that a changes
    b: int = 0
    shared: int = 0  # entries that both change
    by_chance: float = 0.0  # how many that would be if both had chosen at random, tensor by tensor
    conflicts: int = 0  # shared entries whose signs differ
    common: float = 0.0  # Σ min(|a|, |b|) over shared entries
    cancelled: float = 0.0  # the same over conflicts
    dot: float = 0.0  # Σ a·b
    against: float = 0.0  # Σ |a·b| over conflicts
    a_squared: float = 0.0  # ‖a‖²
    b_squared: float = 0.0
    a_shared: float = 0.0  # Σ a² over shared entries
    b_shared: float = 0.0

    def __add__(self, other: Meeting) -> Meeting:
        return Meeting(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def jaccard(self) -> float:
        """|A ∩ B| / |A ∪ B|; 0 where neither changes anything."""
        return _ratio(self.shared, self.a + self.b - self.shared)

    @property
    def chance(self) -> float:
        """The Jaccard similarity of as many entries in each tensor, chosen at random."""
        return _ratio(self.by_chance, self.a + self.b - self.by_chance)

    @property
    def conflict(self) -> float:
        """Share of the shared entries whose signs differ; 1/2 by chance, 0 where none is shared."""
        return _ratio(self.conflicts, self.shared)

    @property
    def conflict_mass(self) -> float:
        """Share of the common mass that cancels."""
        return _ratio(self.cancelled, self.common)

    @property
    def cosine(self) -> float:
        """⟨a, b⟩ / (‖a‖·‖b‖); 0 where one changes nothing."""
        return _ratio(self.dot, math.sqrt(self.a_squared) * math.sqrt(self.b_squared))

    @property
    def ratio(self) -> float:
        """‖b‖ / ‖a‖; infinite where only b changes anything."""
        return math.sqrt(_share(self.b_squared, self.a_squared))

    @property
    def predicted(self) -> tuple[float, float]:
        """What a loses by b and what b loses by a, each as a share of what it gained (see above)."""
        return (
            _share(self.b_squared + 2 * self.against, self.a_squared),
            _share(self.a_squared + 2 * self.against, self.b_squared),
        )

    def facts(self) -> dict[str, float]:
        """The measures as plain numbers; what is not finite (a change of nothing) is left out."""
        found = {"a": self.a, "b": self.b, "shared": self.shared, "jaccard": self.jaccard, "chance": self.chance,
                 "conflict": self.conflict, "conflict_mass": self.conflict_mass, "cosine": self.cosine, "ratio": self.ratio,
                 "predicted_a": self.predicted[0], "predicted_b": self.predicted[1]}  # fmt: skip
        return {name: value for name, value in found.items() if math.isfinite(value)}


@dataclass(frozen=True)
class Interference:
    """What some deltas are to one another; `print` shows it.

    Attributes:
        names: of the deltas, in the order given.
        pairs: (name, name), the earlier first → their `Meeting` everywhere.
        layers: the same pairs → layer → `Meeting` there, in the base's order.
        predicted: name → the share of what that delta gained that the sum of all is predicted to cost it.
    """

    names: tuple[str, ...]
    pairs: Mapping[tuple[str, str], Meeting]
    layers: Mapping[tuple[str, str], Mapping[str, Meeting]]
    predicted: Mapping[str, float]

    def loss(self, name: str, by: str) -> float:
        """The share of what a delta gained that adding another one is predicted to cost it."""
        if (name, by) in self.pairs:
            return self.pairs[name, by].predicted[0]
        if (by, name) in self.pairs:
            return self.pairs[by, name].predicted[1]
        raise BadPlan(f"{name!r} and {by!r} are no pair here; the deltas are {', '.join(self.names)}")

    def __str__(self) -> str:
        wide = max(len(" + ".join(pair)) for pair in self.pairs)
        lines = [f"{'pair':<{wide}}  overlap (chance)   conflicts (mass)   cosine  ratio b/a  loses a | b, predicted"]
        for (a, b), met in self.pairs.items():
            lost = " | ".join(f"{share:.2f}" for share in met.predicted)
            lines.append(f"{f'{a} + {b}':<{wide}}  {met.jaccard:7.2%} ({met.chance:6.2%})   {met.conflict:9.1%} "
                         f"({met.conflict_mass:4.0%})  {met.cosine:+7.3f}  {met.ratio:9.3g}  {lost}")  # fmt: skip
        if len(self.names) > 2:
            lines.append(
                "in the sum of all, predicted: " + ", ".join(f"{n} {x:.2f}" for n, x in self.predicted.items())
            )
        return "\n".join([*lines, "predicted: the share of what a delta gained that the sum costs it, without data"])


def interference(*deltas: Delta, names: Sequence[str] | None = None) -> Interference:
    """Overlap, sign conflicts, cosine and norm ratio of deltas, and what each is predicted to lose in their sum.

    Parameters are gone through one by one: sparse changes meet through their sorted indices, and only a dense or
    low-rank change is ever as large as its parameter. Heads and added modules take no part.

    Args:
        deltas: two or more, of one base.
        names: one for each; by default a, b, c, …

    Raises:
        BadPlan: fewer than two deltas, not as many unlike names, or a change that is not finite.
        BaseMismatch: they were trained on different bases.

    >>> from gossamer.delta.patch import Sparse
    >>> a = Delta.of({"w": Sparse((2, 3), torch.tensor([0, 2]), torch.tensor([1.0, 2.0]))})
    >>> b = Delta.of({"w": Sparse((2, 3), torch.tensor([2, 5]), torch.tensor([-1.0, 1.0]))})
    >>> met = interference(a, b).pairs["a", "b"]
    >>> met.shared, met.conflicts, round(met.cosine, 3), met.predicted[0]
    (1, 1, -0.632, 1.2)
    """
    if len(deltas) < 2 or not all(isinstance(delta, Delta) for delta in deltas):
        raise BadPlan(
            f"interference is between two or more deltas; got {len(deltas)} of {[type(d).__name__ for d in deltas]}"
        )
    called = tuple(names) if names is not None else _letters(len(deltas))
    if len(called) != len(deltas) or len(set(called)) != len(called):
        raise BadPlan(f"names={list(called)}: expected {len(deltas)} names, no two alike")
    for delta, label in zip(deltas, called, strict=True):
        delta.need_sums(f"{label}: interference")
    _one_base(deltas, called)
    pairs = list(combinations(range(len(deltas)), 2))
    found: dict[tuple[int, int], dict[str, Meeting]] = {pair: {} for pair in pairs}
    for name, size in _sizes(deltas).items():
        changes = [_change(delta.terms[name]) if name in delta.terms else None for delta in deltas]
        sums = [_sums(change, label, name) for change, label in zip(changes, called, strict=True)]
        layer = layer_of(name)
        for i, j in pairs:
            met = _meet(size, changes[i], changes[j], sums[i], sums[j])
            found[i, j][layer] = found[i, j].get(layer, Meeting()) + met
    whole = {pair: sum(found[pair].values(), Meeting()) for pair in pairs}
    return Interference(
        called,
        {(called[i], called[j]): whole[i, j] for i, j in pairs},
        {(called[i], called[j]): found[i, j] for i, j in pairs},
        {called[i]: _in_sum(i, len(deltas), whole) for i in range(len(deltas))},
    )


def _in_sum(i: int, count: int, whole: Mapping[tuple[int, int], Meeting]) -> float:
    """(‖Σ_j≠i b_j‖² + 2 Σ_j Σ|a·b_j| where signs differ) / ‖a‖², from what the pairs know."""
    others = [j for j in range(count) if j != i]
    own = {}
    for (a, b), met in whole.items():
        own[a], own[b] = met.a_squared, met.b_squared
    squared = math.fsum(own[j] for j in others) + 2 * math.fsum(whole[pair].dot for pair in combinations(others, 2))
    against = math.fsum(whole[min(i, j), max(i, j)].against for j in others)
    return _share(max(squared, 0.0) + 2 * against, own[i])


def _sizes(deltas: Sequence[Delta]) -> dict[str, int]:
    """Parameter → weights, of all that the bases name, in their order, and of what is touched besides."""
    sizes = {name: math.prod(known.shape) for delta in deltas for name, known in delta.base.items()}
    touched = {name: math.prod(terms[0][1].shape) for delta in deltas for name, terms in delta.terms.items()}
    return {**sizes, **{name: size for name, size in touched.items() if name not in sizes}}


def _one_base(deltas: Sequence[Delta], called: Sequence[str]) -> None:
    for (i, a), (j, b) in combinations(enumerate(deltas), 2):
        differ = [name for name in a.base.keys() & b.base.keys() if a.base[name].agrees(b.base[name]) is False]
        differ += [n for n in a.terms.keys() & b.terms.keys() if a.terms[n][0][1].shape != b.terms[n][0][1].shape]
        if differ:
            raise BaseMismatch(
                f"{called[i]} and {called[j]} were trained on different bases ({min(differ)!r} differs); only deltas of "
                "one base can meet"
            )


def _change(terms: Terms) -> Change:
    """Σ coefficient · patch of one parameter, float64, over the entries that it touches."""
    where = union(terms)
    return where, exact(terms, where)


def _sums(change: Change | None, label: str, name: str) -> tuple[int, float]:
    """(entries that are not 0, squared norm)"""
    if change is None:
        return 0, 0.0
    squared = float(change[1] @ change[1])
    if not math.isfinite(squared):
        raise BadPlan(f"the change of {name!r} by {label} holds NaN or infinite values, so it cannot be compared")
    return int(torch.count_nonzero(change[1])), squared


def _meet(size: int, a: Change | None, b: Change | None, of_a: tuple[int, float], of_b: tuple[int, float]) -> Meeting:
    counts = (of_a[0], of_b[0])
    if a is None or b is None:
        return Meeting(size, *counts, a_squared=of_a[1], b_squared=of_b[1])
    x, y = _common(a, b)
    both = (x != 0) & (y != 0)
    product, least = x * y, torch.minimum(x.abs(), y.abs())
    differ = product < 0
    return Meeting(size, *counts, int(both.sum()), counts[0] * counts[1] / max(size, 1), int(differ.sum()), float(least.sum()),
                   float(least[differ].sum()), float(product.sum()), -float(product[differ].sum()), of_a[1],
                   of_b[1], float(x[both] @ x[both]), float(y[both] @ y[both]))  # fmt: skip


def _common(a: Change, b: Change) -> tuple[Tensor, Tensor]:
    """The values of both at the entries that both touch."""
    (i, x), (j, y) = a, b
    if i is None or j is None:
        return (x if j is None else x[j]), (y if i is None else y[i])
    if i.numel() > j.numel():  # the shorter is looked up in the longer
        y, x = _common(b, a)
        return x, y
    if not j.numel():
        return x[:0], y[:0]
    slots = torch.searchsorted(j, i).clamp_(max=j.numel() - 1)
    hit = j[slots] == i
    return x[hit], y[slots[hit]]


def _letters(count: int) -> tuple[str, ...]:
    return tuple(chr(ord("a") + i) if count <= 26 else f"d{i}" for i in range(count))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _share(harm: float, gained: float) -> float:
    """harm / gained; a delta that changes nothing loses nothing to another that changes nothing, else everything."""
    if gained:
        return harm / gained
    return math.inf if harm else 0.0
