"""Coefficients of an expression, found on development data: Tree-structured Parzen Estimator (Bergstra et al. 2011), by Optuna.

Each trial composes the very delta that would be written, applies it once and scores it. The first trial is the plain
expression, every searched name 1. A study lies in an SQLite file: the same command again goes on where it stopped, to
the same result as a run that never stopped, since a trial's sampler depends on the seed, its number and its past only.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.compose.compose import compose
from gossamer.compose.expression import coefficients, names
from gossamer.delta.delta import Delta
from gossamer.errors import BadFile, BadPlan

Point = tuple[dict[str, float], float]  # the searched numbers → the score


@dataclass(frozen=True)
class Search:
    """What is searched: `over` are names of the expression that are neither deltas nor known `numbers`."""

    expression: str
    deltas: Mapping[str, Delta]
    numbers: Mapping[str, float]
    over: Sequence[str]
    low: float = 0.0
    high: float = 1.5
    head: str | None = None
    values: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise BadPlan(f"range {self.low:g},{self.high:g}; expected two finite numbers, the lower one first")
        taken = [name for name in self.over if name in self.deltas or name in self.numbers]
        absent = [name for name in self.over if name not in names(self.expression)]
        if taken:
            raise BadPlan(f"--over {taken[0]!r} is given a value already; search for names that are not bound")
        if absent or not self.over or len(set(self.over)) < len(self.over):
            free = [n for n in names(self.expression) if n not in self.deltas and n not in self.numbers]
            raise BadPlan(
                f"--over {','.join(self.over)!r}: expected names of {self.expression!r} that are not bound, each once: "
                f"{', '.join(free) or 'it has none, so write one, as in a*t + b*l'}"
            )
        coefficients(self.expression, self.deltas, {**self.numbers, **self.start()})

    def start(self) -> dict[str, float]:
        """Every searched name 1, or the nearest to it in the range."""
        return dict.fromkeys(self.over, min(max(1.0, self.low), self.high))

    def at(self, found: Mapping[str, float]) -> Delta:
        """The delta of the expression with the searched names at some numbers."""
        given: dict[str, Any] = {**self.deltas, **self.numbers, **found}
        return compose(self.expression, head=self.head, values=self.values, **given)

    def facts(self, data: str, metric: str) -> dict[str, Any]:
        """What decides a trial's score and place, so that a study is not gone on with under other conditions."""
        digests = {name: delta.digest for name, delta in self.deltas.items()}
        return {"expression": self.expression, "deltas": digests, "numbers": dict(self.numbers), "over": list(self.over),
                "range": [self.low, self.high], "head": self.head, "values": self.values, "seed": self.seed, "data": data,
                "metric": metric}  # fmt: skip


def search(
    wanted: Search,
    score: Callable[[Delta], float],
    *,
    study: Path,
    trials: int,
    falling: bool,
    facts: Mapping[str, Any],
    tick: Callable[[int, float], None] = lambda done, best: None,
) -> list[Point]:
    """All trials of a study, in order, those of earlier runs included.

    Args:
        score: of a delta on development data.
        study: the SQLite file; made where there is none.
        trials: how many in all; a study that has as many makes no more.
        falling: whether smaller scores are better.
        facts: what must be the same for a study to be gone on with.
        tick: called with the number of trials done and the best score, at the start and after each.

    Raises:
        BadPlan: fewer than one trial, no Optuna, or a study of something else. BadFile: the file is no study.
    """
    if trials < 1:
        raise BadPlan(f"trials={trials}; expected at least 1")
    try:
        import optuna
        from sqlalchemy import URL
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise BadPlan(f"--search needs {error.name}; install it with: pip install 'gossamer[cli]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if not study.parent.is_dir():
        raise BadPlan(f"--study {study}: there is no folder {study.parent}")
    url = URL.create("sqlite", database=str(study)).render_as_string()
    space: dict[str, Any] = {
        name: optuna.distributions.FloatDistribution(wanted.low, wanted.high) for name in wanted.over
    }
    try:
        storage = optuna.storages.RDBStorage(url)
    except SQLAlchemyError as error:
        raise BadFile(f"{study} is no study of gossamer compose --search ({error}); choose another --study") from None
    try:
        way = "minimize" if falling else "maximize"
        made = optuna.create_study(storage=storage, study_name="compose", direction=way, load_if_exists=True)
        known = made.user_attrs.get("facts")
        if known is None:
            made.set_user_attr("facts", dict(facts))
        elif known != json.loads(json.dumps(facts)):
            differ = sorted(key for key in known.keys() | facts.keys() if known.get(key) != facts.get(key))
            raise BadPlan(
                f"{study} holds another study ({', '.join(differ)} differ); go on with its settings, or choose another --study"
            )
        for stopped in made.get_trials(states=[optuna.trial.TrialState.RUNNING]):
            made.tell(stopped.number, state=optuna.trial.TrialState.FAIL)
        points = _points(made)
        tick(len(points), best(points, falling)[1] if points else math.nan)
        while len(points) < trials:
            if not points and not made.get_trials(states=[optuna.trial.TrialState.WAITING]):
                made.enqueue_trial(wanted.start())
            made.sampler = optuna.samplers.TPESampler(seed=_seed(wanted.seed, len(points)))
            trial = made.ask(space)
            value = float(score(wanted.at(trial.params)))
            if not math.isfinite(value):
                made.tell(trial, state=optuna.trial.TrialState.FAIL)
                raise BadPlan(f"the score at {trial.params} is {value}; choose a narrower --range, or other data")
            made.tell(trial, value)
            points = _points(made)
            tick(len(points), best(points, falling)[1])
        return points
    finally:
        storage.remove_session()
        storage.engine.dispose()


def best(points: Sequence[Point], falling: bool) -> Point:
    """The best of some points, of equal ones the first."""
    return min(points, key=lambda point: point[1] if falling else -point[1])


def _points(study: Any) -> list[Point]:
    done = [t for t in study.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
    return [(dict(t.params), float(t.value)) for t in sorted(done, key=lambda t: t.number)]


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big")
