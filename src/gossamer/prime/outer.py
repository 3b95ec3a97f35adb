"""The outer loop's pieces: where a task starts, its gradient with respect to θ and φ_0, and the step on their mean."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from gossamer.errors import Diverged
from gossamer.prime.episodes import Episode
from gossamer.prime.inner import Inner, Loss, Tensors, adapt

HEAD = "head/"  # before the names of the head's parameters in φ
Seen = dict[str, Any]  # step, task, support (losses before each inner step), query


def head_name(name: str, task: str | None = None) -> str:
    """What a head's parameter is called in φ: the shared head's, or that of a task's own."""
    return HEAD + name if task is None else f"heads/{task}/{name}"


def task_values(phi: Tensors, own: Iterable[str] | None, task: str) -> Tensors:
    """φ as a task sees it: with its own head, given by the names of its parameters, in place of the shared one."""
    if own is None:
        return phi
    rest = {n: p for n, p in phi.items() if not n.startswith((HEAD, "heads/"))}
    return {**rest, **{HEAD + n: phi[head_name(n, task)] for n in own}}


def task_gradient(
    loss: Loss,
    theta: Tensors,
    phi: Tensors,
    start: Tensors,
    episode: Episode,
    how: Inner,
    control: str | None,
    warmup: int,
) -> Seen:
    """One task's gradient, added to that of θ and φ_0; what it saw. Adds nothing where it raises Diverged."""
    wanted = {**{("θ", n): t for n, t in theta.items()}, **{("φ", n): p for n, p in phi.items() if p.requires_grad}}
    if control == "ft":
        total: dict[Any, Tensor] = {}
        losses = []
        for batch in (*episode.support, episode.query):
            value = loss(theta, start, batch)
            losses.append(_finite(value, episode.task))
            found = torch.autograd.grad(
                value / (len(episode.support) + 1), list(wanted.values()), materialize_grads=True
            )
            total = {key: total.get(key, 0) + g for key, g in zip(wanted, found, strict=True)}
        *first, last = losses
        _add(wanted, total, episode.task)
        return {"task": episode.task, "support": first, "query": last}
    if warmup and episode.support:
        alone = {n: p for n, p in start.items() if n.startswith(HEAD)}
        rest = {n: p.detach() for n, p in start.items() if n not in alone}
        quick = Inner(warmup, how.lr, how.optimizer, "first", eps=how.eps)
        warmed, _ = adapt(lambda t, p, b: loss(t, {**rest, **p}, b), theta, alone, episode.support[:1] * warmup, quick,
                          episode.task)  # fmt: skip
        # the shift is a constant: the head's start still has its own gradient
        start = {**start, **{n: start[n] + (w - start[n]).detach() for n, w in warmed.items()}}
    reached, losses = adapt(loss, theta, start, episode.support, how, episode.task)
    value = loss(theta, reached, episode.query)
    query = _finite(value, episode.task)
    # in first order the gradient at the adapted φ stands for that at φ_0
    ends = {key: reached[key[1]] if key[0] == "φ" and how.order == "first" else t for key, t in wanted.items()}
    found = torch.autograd.grad(value, list(ends.values()), materialize_grads=True)
    _add(wanted, dict(zip(ends, found, strict=True)), episode.task)
    return {"task": episode.task, "support": losses, "query": query}


def _add(wanted: Mapping[Any, Tensor], found: Mapping[Any, Tensor], task: str) -> None:
    if not bool(torch.nn.utils.get_total_norm(list(found.values())).isfinite()):
        raise Diverged(f"task {task!r}: its gradient is not finite; lower the inner rate, or skip such tasks")
    for key, tensor in wanted.items():
        tensor.grad = found[key].clone() if tensor.grad is None else tensor.grad.add_(found[key])


def outer_step(built: torch.optim.Optimizer, outer: list[Tensor], done: int, clip: float, step: int) -> None:
    """One outer step on the mean over the tasks that had a gradient."""
    if done:
        grads = [t.grad for t in outer if t.grad is not None]
        for grad in grads:
            grad.div_(done)
        norm = torch.nn.utils.clip_grad_norm_(outer, clip or math.inf)
        if not bool(norm.isfinite()):
            raise Diverged(f"outer step {step + 1}: the gradient of the base is not finite; lower the rates")
        built.step()
    built.zero_grad(set_to_none=True)


def _finite(value: Tensor, task: str) -> float:
    number = float(value.detach())
    if not math.isfinite(number):
        raise Diverged(f"task {task!r}: the query loss is {number}; lower the inner rate, or skip such tasks")
    return number


def task_start(phi: Tensors, head_start: str, seed: list[int]) -> Tensors:
    """Where a task starts: φ_0 and the head's start, or a head drawn anew."""
    if head_start != "fresh":
        return phi
    rng = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(repr(seed).encode()).digest()[:4], "big"))

    def drawn(name: str, p: Tensor) -> Tensor:
        if p.dim() < 2:
            return torch.zeros_like(p) if name.endswith("bias") else p
        return (torch.randn(p.shape, generator=rng) * 0.02).to(p)

    return {n: drawn(n, p) if n.startswith(HEAD) else p for n, p in phi.items()}
