"""What is compared: methods with options of their own, and the learning rates that each is given to try.

    --methods random,fisher,lt-sft:rounds=2:l1=0.1     a method, then its options, each after a colon
    --lr-grid x0.3,x1,x3                               multiples of each row's own default rate
    --lr-grid 1e-3,3e-3                                the same rates for every method

The rate that is tuned is that of the last phase. A first phase that only finds where to train (lt-sft's) keeps its
default, or what `full_lr=` and `full_epochs=` say beside the options, so that every method has as many trials as any.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gossamer.errors import BadPlan
from gossamer.train.plan import Method, row_of, settle

SETTINGS = ("full_lr", "full_epochs")  # not options of a row, but of what is trained before the last phase


@dataclass(frozen=True)
class Entry:
    """A method as it was asked for."""

    label: str
    row: Method
    options: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Rates:
    """Learning rates to try: multiples of a row's default, or absolute ones."""

    values: tuple[float, ...]
    multiples: bool

    def of(self, row: Method) -> list[float]:
        """The rates of a row, to six digits, so that 3 × 0.004 is written 0.012."""
        scale = row.fits[-1].lr if self.multiples else 1.0
        return [float(f"{scale * value:.6g}") for value in self.values]


def read_entries(text: str) -> tuple[list[Entry], list[str]]:
    """Entries, and every mistake in them."""
    entries, mistakes = [], []
    for label in (part.strip() for part in text.split(",")):
        try:
            entries.append(_entry(label))
        except BadPlan as error:
            mistakes.append(str(error))
    labels = [entry.label for entry in entries]
    mistakes += [f"{label} is listed twice" for label in dict.fromkeys(labels) if labels.count(label) > 1]
    return entries, mistakes


def _entry(label: str) -> Entry:
    name, *given = label.split(":")
    row = row_of(name)
    options, settings = {}, {}
    for part in given:
        key, sign, value = part.partition("=")
        if not sign or not key:
            raise BadPlan(f"{label}: {part!r} is no option; expected method:option=value, for example lt-sft:rounds=2")
        place = settings if key in SETTINGS else options
        if key in place:
            raise BadPlan(f"{label}: {key} is given twice")
        place[key] = _value(value)
    settle(row, options)
    return Entry(label, row, options, settings)


def _value(text: str) -> Any:
    """A number, true or false, or text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def read_rates(text: str) -> Rates:
    """Rates from `x0.3,x1,x3` or `1e-3,3e-3`. Raises BadPlan on anything else, and on a rate given twice."""
    parts = [part.strip() for part in text.split(",")]
    multiples = {part.startswith("x") for part in parts}
    expected = "expected multiples of each method's default (x0.3,x1,x3) or rates (1e-3,3e-3), above 0"
    if len(multiples) != 1:
        raise BadPlan(f"lr_grid={text!r} mixes multiples and rates; {expected}")
    try:
        values = tuple(float(part.removeprefix("x")) for part in parts)
    except ValueError:
        raise BadPlan(f"lr_grid={text!r} is no list of numbers; {expected}") from None
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise BadPlan(f"lr_grid={text!r}; {expected}")
    if len(set(values)) < len(values):
        raise BadPlan(f"lr_grid={text!r} has one rate twice; every trial must be another")
    return Rates(values, multiples.pop())


def distinct(entries: list[Entry]) -> tuple[list[Entry], list[str]]:
    """Without methods that choose the support of an earlier one in the list, and a note for each that is left out.

    A row names the row whose support it shares at equal options, as its `twin`; a twin's further options, at their
    defaults, change nothing.
    """
    kept: dict[str, Entry] = {}
    notes = []
    for entry in entries:
        known = settle(entry.row, entry.options)
        theirs = row_of(entry.row.twin).options if entry.row.twin else entry.row.options
        # a sam with another curvature is a method of its own; with the default one its probes mean nothing
        own = any(known[n] != entry.row.defaults[n] for n in known.keys() - theirs.keys() - {"probes"})
        shared = {n: v for n, v in known.items() if own or n in theirs}
        key = repr(
            (entry.row.name if own else entry.row.twin or entry.row.name, sorted(shared.items()), entry.settings)
        )
        if key in kept:
            notes.append(f"{entry.label}: same support as {kept[key].label}, run once (--all runs both)")
        kept.setdefault(key, entry)
    return list(kept.values()), notes
