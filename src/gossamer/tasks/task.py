"""What a task is: data to batches, a head, a score. One file a task; its description travels in the delta."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from torch import nn

from gossamer.errors import BadPlan
from gossamer.tasks.classify import Classify
from gossamer.tasks.readers import Table

Scores = Mapping[str, float]
ALIASES = {"classify": "classify", "text-classification": "classify"}  # Hub pipeline tags are aliases


class Task(Protocol):
    """A task, settled: which columns, which labels, which metric."""

    @property
    def metric(self) -> str: ...

    def describe(self) -> dict[str, Any]: ...

    def build(self, base: str, seed: int) -> tuple[nn.Module, list[str]]: ...

    def encode(self, tokenizer: Any, table: Table, *, labelled: bool = True) -> list[dict[str, Any]]: ...

    def scores(self, outputs: np.ndarray, encoded: list[dict[str, Any]]) -> Scores: ...

    def baseline(self, encoded: list[dict[str, Any]]) -> Scores: ...

    def answers(self, outputs: np.ndarray) -> list[dict[str, Any]]: ...


def plan_task(name: str, train: Table, **settings: Any) -> Task:
    """Settles a task on training data: finds columns and labels where they are not given."""
    if name not in ALIASES:
        raise BadPlan(f"unknown task {name!r}; expected one of {', '.join(ALIASES)}")
    return Classify.plan(train, **settings)


def read_task(description: Mapping[str, Any]) -> Task:
    """The task that a delta describes."""
    if description.get("name") not in ALIASES.values():
        raise BadPlan(f"the delta's task {description.get('name')!r} is not known to this gossamer; upgrade gossamer")
    return Classify.read(description)
