"""One outer step of priming MiniLM for pfeiffer adapters, one task, T = 4 inner steps (SGD), in ratio to what it contains.

What it contains are T + 1 forward-backward passes in plain PyTorch: T with gradients of adapters and head, one with those of
all weights. The outer step besides makes the inner updates, clips, and steps with AdamW over the base. Second order is against
passes with eager attention, the only one that can be differentiated twice; checkpointed makes inner steps again on the way
back, and what each further one adds to the peak is against the activations of one forward. Batches of 8 × 64 tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from benchmarks.common import MIB, Figure, allocated, batch, interleave, minilm
from gossamer.prime.episodes import Episode
from gossamer.prime.evaluate import evaluator
from gossamer.prime.inner import Inner
from gossamer.prime.outer import HEAD, outer_step, task_gradient
from gossamer.prime.ways import theta_of, way
from gossamer.select.attention import plain_attention
from gossamer.select.scoring import model_loss
from gossamer.tunable.tuned import head_parameters

T = 4
SHAPE = {"examples": 8, "tokens": 64}
WAYS: dict[str, dict[str, Any]] = {
    "first order": {},
    "second order": {"order": "second"},
    "second order, checkpointed": {"order": "second", "recompute": True},
}
GOALS = {"first order": 1.15, "second order": 4.0, "second order, checkpointed": 5.0}


def measure(*, quick: bool = False) -> list[Figure]:
    """Step times in ratio to the passes, and what a further inner step allocates."""
    logging.getLogger("gossamer").setLevel(logging.ERROR)  # which says every time that attention is eager
    model = minilm().train()
    with _steps(model) as made:
        actions = {"passes": made(None), "eager passes": made(None, eager=True)}
        times = interleave({**actions, **{n: made(n) for n in WAYS}}, rounds=3 if quick else 9, warmup=1)
        peaks = {(n, t): allocated(made(n, steps=t))[0] for n in WAYS for t in (2, T)}
        held = allocated(made(None, eager=True, forward=True))[1]
    each = {n: (peaks[n, T] - peaks[n, 2]) / (T - 2) for n in WAYS}
    return [
        *(times.ratio(n, "passes" if n == "first order" else "eager passes", f"outer step: {n} / passes", goal)
          for n, goal in GOALS.items()),
        Figure("peak a further inner step: second order, checkpointed / activations", each["second order, checkpointed"] / held,
               "×", 1.0),
        *(Figure(f"peak a further inner step: {n}", size / MIB, "MiB") for n, size in each.items()),
        Figure("activations of one forward, eager", held / MIB, "MiB"),
        *(Figure(f"peak, T = {t}: {n}", size / MIB, "MiB") for (n, t), size in peaks.items()),
        *(times.milliseconds(n, f"time: {n}") for n in (*actions, *WAYS)),
    ]  # fmt: skip


@contextmanager
def _steps(model: nn.Module) -> Iterator[Callable[..., Callable[[], object]]]:
    """Makes actions over a model that carries adapters: outer steps by a way's name, the passes they contain for None."""
    heads = head_parameters(model, True)
    theta = {n: t.clone().requires_grad_() for n, t in theta_of(model, True).items()}
    base = list(model.base_model.parameters())  # type: ignore[operator, union-attr]
    with way(model, "pfeiffer", head=True) as w:
        phi = {n: t.clone().requires_grad_() for n, t in w.start.items()}
        phi |= {HEAD + n: p.detach().clone().requires_grad_() for n, p in heads.items()}
        small = [*(p for n, p in model.named_parameters() if n in w.start), *heads.values()]
        outer = [*theta.values(), *phi.values()]
        optimizer = torch.optim.AdamW(outer, lr=1e-5, weight_decay=0.0)
        loss = evaluator(model, w, model_loss, "fp32")

        def passes(episode: Episode, *, forward: bool) -> object:
            if forward:
                return [p.requires_grad_() for p in base] and model(**episode.query).loss
            for p in base:
                p.requires_grad_(False)
            for data in episode.support:
                torch.autograd.grad(model(**data).loss, small)
            for p in base:
                p.requires_grad_()
            torch.autograd.grad(model(**episode.query).loss, [*base, *small], materialize_grads=True)
            return None

        def made(
            name: str | None, *, steps: int = T, eager: bool = False, forward: bool = False
        ) -> Callable[[], object]:
            episode = Episode("task", [batch(i, **SHAPE) for i in range(steps)], batch(steps, **SHAPE))
            how = Inner(steps, 0.01, **WAYS[name]) if name else None
            kept: list[object] = []

            def act() -> None:
                twice = eager or (how is not None and how.order == "second")
                with plain_attention(model, "the benchmark") if twice else nullcontext():
                    if how is None:
                        kept.append(passes(episode, forward=forward))
                        return
                    task_gradient(loss, theta, phi, phi, episode, how, None, 0)
                    outer_step(optimizer, outer, 1, 1.0, 0)

            return act

        yield made
