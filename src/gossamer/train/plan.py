"""Methods are rows: a name and the phases that make it. To add one, add a row here and a selector in `select/`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from gossamer.errors import BadPlan

DENSITY = 0.005  # of diff pruning and of Fu et al.: half a percent


@dataclass(frozen=True)
class Choose:
    """Chooses which entries to train; `rule` names a function of `select/`.

    Training then begins anew: values and head go back to where the fit before began (rewinding). `keep` goes on from
    what that fit left instead.
    """

    rule: str
    keep: bool = False


@dataclass(frozen=True)
class Fit:
    """Trains, with a fresh optimizer and schedule; values and head start where the last choice left them.

    `lr`, `epochs` and `schedule` are the row's defaults: a mask wants a larger rate than full fine-tuning.
    """

    tunable: str  # what is trainable: a name of `tunable.tuned.KINDS`
    lr: float
    epochs: float = 3.0
    schedule: str = "linear"
    warmup: float = 0.06  # share of the steps
    round: int = 0
    index: int = 0  # place among the fits of the whole run


Phase = Choose | Fit


@dataclass(frozen=True)
class Method:
    """One row. `options` are the keywords of its own, with their defaults."""

    name: str
    line: str
    group: str
    phases: tuple[Phase, ...]
    options: dict[str, Any]
    source: str
    counted: bool = True  # whether it takes a density or k
    skip_norms: bool = False  # leave normalization layers out, as the paper does

    @property
    def fits(self) -> list[Fit]:
        """The phases that train."""
        return [phase for phase in self.phases if isinstance(phase, Fit)]

    def plan(self, rounds: int = 1) -> list[Phase]:
        """The phases in order, numbered; `rounds` repeats them (growing support)."""
        phases = [replace(p, round=r) if isinstance(p, Fit) else p for r in range(rounds) for p in self.phases]
        fits = iter(range(len(phases)))
        return [replace(p, index=next(fits)) if isinstance(p, Fit) else p for p in phases]


DENSE = Fit("dense", lr=1e-4)
SPARSE = Fit("sparse", lr=4e-3)
_ADDED = {"bottleneck": 16, "places": (), "level": 0, "invertible": False, "norms": False}
_TOP = {"per_tensor": False}
_SCORED = {**_TOP, "examples": 1024, "warmup": 50}

ROWS = (
    Method("full", "train every weight", "full", (DENSE,), {}, "the reference", counted=False),
    Method("random", "k weights drawn uniformly", "random", (Choose("uniform"), SPARSE), _TOP, "the control"),
    Method("magnitude", "the k largest |θ0|", "rule-based", (Choose("magnitude"), SPARSE), {**_TOP, "smallest": False},
           "Fu et al. 2023"),
    Method("bitfit", "every bias vector", "rule-based", (Choose("bias"), SPARSE), {}, "Ben-Zaken et al. 2022",
           counted=False),
    Method("gradient", "the k largest mean gradients |Σ g|", "rule-based", (Choose("gradient"), SPARSE), _SCORED,
           "Fu et al. 2023"),
    Method("fisher", "the k largest Σ g² (empirical Fisher)", "rule-based", (Choose("fisher"), SPARSE), _SCORED,
           "Sung et al. 2021; Xu et al. 2021"),
    Method("lt-sft", "train all, keep the k that moved most, rewind, train those", "projection-based",
           (DENSE, Choose("change"), SPARSE), {**_TOP, "rounds": 1, "l1": 0.0}, "Ansell et al. 2022", skip_norms=True),
    Method("houlsby", "bottlenecks behind attention and feed-forward", "added modules", (Fit("houlsby", lr=1e-3),),
           {**_ADDED, "activation": "gelu"}, "Houlsby et al. 2019; He et al. 2021", counted=False),
    Method("pfeiffer", "bottlenecks behind the feed-forward", "added modules", (Fit("pfeiffer", lr=1e-3),),
           {**_ADDED, "activation": "relu"}, "Pfeiffer et al. 2021", counted=False),
    Method("lora", "low-rank changes of linear layers, (α/r)·B·A", "added modules", (Fit("lora", lr=1e-3),),
           {"r": 8, "alpha": 16.0, "targets": ()}, "Hu et al. 2022", counted=False),
)  # fmt: skip


def methods() -> dict[str, Method]:
    """Every method by name: one line, group, phases with their defaults, and options."""
    return {row.name: row for row in ROWS}


def row_of(name: str) -> Method:
    """The row of a method. Raises BadPlan, listing the names, when there is none."""
    rows = methods()
    if name not in rows:
        raise BadPlan(f"unknown method {name!r}; expected one of {', '.join(rows)}")
    return rows[name]


def settle(row: Method, given: dict[str, Any]) -> dict[str, Any]:
    """A row's options with those given. Raises BadPlan, listing the options, for one that it lacks."""
    unknown = [name for name in given if name not in row.options]
    if unknown:
        known = ", ".join(row.options) or "no options"
        raise BadPlan(f"{row.name} has no option {unknown[0]!r}; it takes {known}")
    return {name: _settled(row, name, given.get(name, default)) for name, default in row.options.items()}


def _settled(row: Method, name: str, value: Any) -> Any:
    """The value of an option, of its default's kind and in range."""
    default = row.options[name]
    least = {"rounds": 1, "examples": 1, "bottleneck": 1, "r": 1}.get(name, 0)
    if isinstance(default, tuple):
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list | tuple) or not all(isinstance(pattern, str) and pattern for pattern in value):
            raise BadPlan(f"{row.name}: {name}={value!r}; expected a name pattern, or a list of them")
        return list(value)
    if isinstance(default, bool):
        good, expected = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        good, expected = type(value) is int and value >= least, f"a whole number, {least} or more"
    elif isinstance(default, str):
        good, expected = isinstance(value, str), f"a name such as {default!r}"
    else:
        good = type(value) in (int, float) and math.isfinite(value) and value >= least
        expected = f"a number, {least} or more"
    if not good:
        raise BadPlan(f"{row.name}: {name}={value!r}; expected {expected}")
    return float(value) if isinstance(default, float) else value


def budget(row: Method, m: int, density: float | None, k: int | None) -> int | None:
    """k = ⌊m · density⌋, or the k given; None for a row that has none to choose."""
    if not row.counted:
        if density is not None or k is not None:
            raise BadPlan(f"{row.name} trains a fixed set of weights and takes neither density nor k")
        return None
    if density is not None and k is not None:
        raise BadPlan(f"density={density} and k={k} were both given; give one")
    if k is None:
        density = DENSITY if density is None else density
        if not 0.0 < density <= 1.0:
            raise BadPlan(f"density={density}: expected a share of the weights, above 0 and at most 1")
        k = int(m * density)
        if k < 1:
            raise BadPlan(f"density={density} of {m:,} weights is less than one weight; raise the density")
    if not 1 <= k <= m:
        raise BadPlan(f"k={k:,}: expected between 1 and the model's {m:,} weights")
    return k
