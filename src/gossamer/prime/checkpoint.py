"""What a priming needs to go on after a kill: θ, φ_0, optimizer, schedule, random numbers, losses. One file, replaced whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.delta.disk import atomic
from gossamer.errors import BadPlan

Facts = Mapping[str, Any]


def keep(
    file: Path, facts: Facts, theta: Mapping[str, Tensor], phi: Mapping[str, Tensor], optimizer: Any, scheduler: Any,
    history: list[dict[str, Any]], step: int,
) -> None:  # fmt: skip
    """Writes the state after `step` outer steps, durable before it counts."""
    state = {"facts": _plain(facts), "theta": {n: t.detach() for n, t in theta.items()},
             "phi": {n: t.detach() for n, t in phi.items()}, "optimizer": optimizer.state_dict(),
             "scheduler": scheduler.state_dict() if scheduler else None, "history": _plain(history), "step": step,
             "random": torch.get_rng_state(),
             "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []}  # fmt: skip
    atomic(file, lambda temporary: torch.save(state, temporary))


def resumed(
    file: Path | None,
    facts: Facts,
    theta: Mapping[str, Tensor],
    phi: Mapping[str, Tensor],
    optimizer: Any,
    scheduler: Any,
) -> tuple[list[dict[str, Any]], int]:
    """Puts a saved state back: the losses so far and the number of steps done; ([], 0) where none was saved.

    Raises:
        BadPlan: no folder was given, or it is of another run.
    """
    if file is None:
        raise BadPlan("resume=True needs checkpoint=, the folder of the run to go on with")
    if not file.is_file():
        return [], 0
    state = torch.load(file, weights_only=True, map_location="cpu")
    told, now = json.loads(state["facts"]), json.loads(_plain(facts))
    differ = sorted(name for name in told.keys() | now.keys() if told.get(name) != now.get(name))
    if differ:
        raise BadPlan(
            f"{file} was begun with other settings ({', '.join(differ)} changed since); resume with those, or start anew"
        )
    with torch.no_grad():
        for mine, its in ((theta, state["theta"]), (phi, state["phi"])):
            for name, tensor in mine.items():
                tensor.copy_(its[name])
    optimizer.load_state_dict(state["optimizer"])
    if scheduler:
        scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["random"])
    for number, random in enumerate(state["cuda"]):
        torch.cuda.set_rng_state(random, number)
    return json.loads(state["history"]), state["step"]


def _plain(facts: Any) -> str:
    return json.dumps(facts, sort_keys=True)
