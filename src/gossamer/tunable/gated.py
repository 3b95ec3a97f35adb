"""Gated leaves: every weight has a change w and a gate, δ = z ∘ w (diff pruning, Guo et al. 2021).

    θ = θ0 + z ∘ w,  z hard concrete with one α a weight;  structured: θ = θ0 + z·z_g·w, one more α_g a named tensor

w starts at 0 and α at 5. The weights themselves never move: while a forward runs, an alias holds θ, in training mode with
z drawn anew for every forward of the model, in eval mode with E[z], which is also what `patches` give.

Which z a forward draws is decided by a single number, taken from torch's global generator when it begins; each weight has
its own stream from there. So dropout and gates do not disturb one another, a weight that is used twice has one z, and what
gradient checkpointing computes again finds its forward by the state of the generator, which checkpointing puts back.

The expected number of open gates is penalized. Where we deviate from the public code: it adds the penalties of the weights
and of the group, once a group; the paper multiplies them, over every weight. And it prunes by one random z.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from gossamer.delta.apply import Stack
from gossamer.delta.base import LEAVES
from gossamer.delta.patch import Dense, Patch, round_once
from gossamer.delta.quantized import need_floats
from gossamer.errors import BadPlan
from gossamer.tunable.alias import Aliases, Frame
from gossamer.tunable.hard_concrete import expected_open, mean, open_probability, sample, slope
from gossamer.tunable.leaves import Leaves, Wanted

START = 5.0  # of α: gates begin open
CHUNK = 1 << 20  # entries taken to float64 at once
_KNOWN = 1 << 14  # entries of forwards remembered for gradient checkpointing: some dozens of forwards


Uniform = Callable[[], tuple[Tensor, Tensor | None]]  # u of a weight's shape, and of its tensor's gate


class Gate(torch.autograd.Function):
    """θ0 + z·z_g·w of uniform numbers that `uniform` gives, the same at every call; gradients go to w, α and α_g.

    z is kept for the backward, not through `save_for_backward`: what gradient checkpointing computes again holds other
    aliases than what it computed first, and counts what is saved.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, w: Tensor, alpha: Tensor, gate: Tensor | None, uniform: Uniform) -> Tensor:
        ctx.leaves, ctx.uniform, ctx.versions = (w, alpha, gate), uniform, (w._version, alpha._version)
        ctx.z, ctx.z_gate = _sampled(alpha, gate, uniform)
        change = ctx.z * w if ctx.z_gate is None else (ctx.z * w).mul_(ctx.z_gate)
        return change.add_(weight).to(weight.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        w, alpha, gate = ctx.leaves
        if ctx.versions != (w._version, alpha._version):
            raise BadPlan(
                "gated leaves were changed between a forward and its backward (a step of the optimizer in between?); run "
                "the backward before the step"
            )
        z, z_gate = (ctx.z, ctx.z_gate) if ctx.z is not None else _sampled(alpha, gate, ctx.uniform)
        ctx.z = None  # the graph may live longer than it is needed; a second backward draws the same again
        g = (grads[0].to_dense() if grads[0].is_sparse else grads[0]).to(w.dtype)
        by_w = g * z
        by_gate = None if z_gate is None else (by_w * w).sum() * slope(z_gate)
        by_alpha = slope(z).mul_(w).mul_(g)
        if z_gate is not None:
            by_w.mul_(z_gate)
            by_alpha.mul_(z_gate)
        return None, by_w, by_alpha, by_gate, None


def _sampled(alpha: Tensor, gate: Tensor | None, uniform: Uniform) -> tuple[Tensor, Tensor | None]:
    u, u_gate = uniform()
    return sample(u, alpha), None if gate is None or u_gate is None else sample(u_gate, gate)


class GatedLeaves(Leaves):
    """Attaches w and α of every weight (structured: and α_g of every tensor) to a model.

    Options: `structured`; `alpha_lr`, the rate of the gates where the phase's is that of w. Their leaves follow the same
    schedule, and no weight decay.
    """

    def __init__(self, model: nn.Module, stack: Stack, wanted: Wanted) -> None:
        if wanted.start and wanted.start.terms:
            raise BadPlan("gated leaves begin at no change; they cannot start from a delta")
        need_floats({name: stack.parameters[name] for name in wanted.names}, "a method that trains every weight")
        self.model, self.stack = model, stack
        self.alpha_lr = float(wanted.options.get("alpha_lr", 0.1))
        self.w: dict[str, nn.Parameter] = {}
        self.alpha: dict[str, nn.Parameter] = {}
        self.gate: dict[str, nn.Parameter] = {}
        for name in wanted.names:
            weight = stack.parameters[name]
            new = {"dtype": torch.promote_types(weight.dtype, torch.float32), "device": weight.device}
            self.w[name] = nn.Parameter(torch.zeros(weight.shape, **new))
            self.alpha[name] = nn.Parameter(torch.full(weight.shape, START, **new))
            if wanted.options.get("structured", False):
                self.gate[name] = nn.Parameter(torch.tensor(START, **new))
        container = nn.Identity()  # a model that is a Sequential runs its children: this one changes nothing
        for kind, leaves in (("w", self.w), ("alpha", self.alpha), ("gate", self.gate)):
            container.add_module(kind, nn.Identity())
            for name, leaf in leaves.items():
                container.get_submodule(kind).register_parameter(name.replace(".", "/"), leaf)
        model.add_module(LEAVES, container)
        self.active = True
        self._stream = {name: i for i, name in enumerate(self.w)}
        self._known: dict[tuple[int, int], int | None] = {}  # (module, state of the generator) → number of its forward
        self._settled: dict[str, tuple[Any, Tensor]] = {}  # θ at E[z], and of which leaves; in eval mode only
        self._steps = 0
        self._split: list[tuple[Optimizer, dict[str, Any], list[Tensor], dict[str, Any]]] = []
        self._hooks = [
            register_optimizer_step_pre_hook(lambda optimizer, *_: self.before(optimizer)),
            register_optimizer_step_post_hook(lambda optimizer, *_: self.after(optimizer)),
        ]
        weights = {name: stack.parameters[name] for name in self.w}
        self._aliases = Aliases(model, weights, self._make, every=True)

    def parameters(self) -> Iterator[nn.Parameter]:
        for leaves in (self.w, self.alpha, self.gate):
            yield from leaves.values()

    # forward ------------------------------------------------------------------------------------------------------

    def _make(self, frames: list[Frame]) -> dict[str, Tensor]:
        if not self.active:
            return {}
        names = frames[-1].names
        if not self.model.training:
            return {name: self._at_mean(name) for name in names}
        self._settled.clear()
        number, made = self._number(frames), frames[0].memo
        recorded = torch.is_grad_enabled()
        for name in names:
            if (name, recorded) not in made:
                made[name, recorded] = self._drawn(name, number)
        return {name: made[name, recorded] for name in names}

    def _number(self, frames: list[Frame]) -> int:
        """The number that decides what the forward under way draws: a new one, or that of the one computed again."""
        outermost = frames[0]
        key = (id(frames[-1].module), hash(torch.get_rng_state().numpy().tobytes()))
        if len(frames) == 1:
            again = torch._C._current_graph_task_id() != -1  # inside a backward
            if again and key not in self._known:
                raise BadPlan(
                    "a part of the model is computed again in the backward pass with another random state than in its "
                    "forward; with gates, gradient checkpointing must keep it (preserve_rng_state=True)"
                )
            number = self._known[key] if again else None
            self._remember(key, number)
            outermost.memo["number"] = int(torch.randint(1 << 62, ())) if number is None else number
        else:
            self._remember(key, outermost.memo["number"])
        return outermost.memo["number"]

    def _remember(self, key: tuple[int, int], number: int | None) -> None:
        self._known[key] = number  # None: here a forward began, and drew its number
        if len(self._known) > _KNOWN:
            del self._known[next(iter(self._known))]

    def _drawn(self, name: str, number: int) -> Tensor:
        """θ0 + z ∘ w of a forward."""
        weight, w, gate = self.stack.parameters[name], self.w[name], self.gate.get(name)

        def uniform() -> tuple[Tensor, Tensor | None]:
            stream = torch.Generator(w.device).manual_seed(number + self._stream[name])
            new: dict[str, Any] = {"generator": stream, "dtype": w.dtype, "device": w.device}
            u = torch.rand(w.shape, **new)
            return u, None if gate is None else torch.rand((), **new)

        return Gate.apply(weight.detach(), w, self.alpha[name], gate, uniform)  # type: ignore[return-value]

    def _at_mean(self, name: str) -> Tensor:
        """θ0 + E[z] ∘ w, made once as long as nothing moves; where gradients are recorded, they go through E[z]."""
        weight = self.stack.parameters[name].detach()
        leaves = [kind[name] for kind in (self.w, self.alpha, self.gate) if name in kind]
        of = (self._steps, weight.data_ptr(), *(tensor._version for tensor in (self.stack.parameters[name], *leaves)))
        if name not in self._settled or self._settled[name][0] != of:
            change = self.change(name)
            wide = change.dtype == weight.dtype
            total = weight + change if wide else round_once(weight.double() + change, weight.dtype)
            self._settled[name] = (of, total)
        total = self._settled[name][1]
        if not torch.is_grad_enabled():
            return total
        gate = mean(self.gate[name]) if self.gate else 1.0
        change = mean(self.alpha[name]) * gate * self.w[name]
        return total + (change - change.detach()).to(total.dtype)

    @torch.no_grad()
    def change(self, name: str) -> Tensor:
        """δ of a weight, E[z]·w (structured: E[z]·E[z_g]·w), in its shape, float32 (float64 for a float64 base)."""
        w, alpha = self.w[name].detach().reshape(-1), self.alpha[name].detach().reshape(-1)
        gate = mean(self.gate[name]) if self.gate else 1.0
        found = torch.empty_like(w)
        for part in (slice(start, start + CHUNK) for start in range(0, w.numel(), CHUNK)):
            found[part] = mean(alpha[part]) * gate * w[part]
        return found.view(self.w[name].shape)

    # optimizer ----------------------------------------------------------------------------------------------------

    def before(self, optimizer: Optimizer) -> None:
        """For the length of one step the gates' leaves are groups of their own, with their rate and without decay."""
        self.after(optimizer)  # a step that failed may have left them so
        gates = {id(leaf) for kind in (self.alpha, self.gate) for leaf in kind.values()}
        for group in list(optimizer.param_groups):
            whole = group["params"]
            apart = [leaf for leaf in whole if id(leaf) in gates]
            if not apart:
                continue
            first = group.get("initial_lr", group["lr"])  # what a scheduler scales
            rate = self.alpha_lr * (group["lr"] / first if first else 0.0)
            decay = {"weight_decay": 0.0} if "weight_decay" in group else {}
            added = {**group, "params": apart, "lr": rate, **decay}
            group["params"] = [leaf for leaf in whole if id(leaf) not in gates]
            optimizer.param_groups.append(added)
            self._split.append((optimizer, group, whole, added))

    def after(self, optimizer: Optimizer) -> None:
        """Undoes `before`."""
        self._steps += 1  # an optimizer that writes through .data leaves version counters alone
        for split in [split for split in self._split if split[0] is optimizer]:
            _, group, whole, added = split
            group["params"] = whole
            optimizer.param_groups[:] = [other for other in optimizer.param_groups if other is not added]
            self._split.remove(split)

    @torch.no_grad()
    def add_penalty_gradient(self, strength: float) -> None:
        """Adds strength · ∂/∂α of the expected number of open gates, in closed form, tensor by tensor."""
        for name, alpha in self.alpha.items():
            gate = self.gate.get(name)
            _, by_alpha, by_gate = expected_open(alpha, gate)
            for leaf, found in ((alpha, by_alpha), (gate, by_gate)):
                if leaf is None or found is None:
                    continue
                if leaf.grad is None:  # no example reached it; its gate costs all the same
                    leaf.grad = found.mul_(strength)
                else:
                    leaf.grad.add_(found, alpha=strength)

    # results ------------------------------------------------------------------------------------------------------

    def patches(self) -> dict[str, Patch]:
        return {name: Dense(self.change(name).cpu()) for name in self.w}

    @torch.no_grad()
    def facts(self, m: int) -> dict[str, Any]:
        """`natural_density`: the share of the m weights that δ = z ∘ w is expected to change, E‖δ‖₀ / m.

        Gates whose w is 0 (the row of a word that no example has) count as closed: they change nothing.
        """
        expected = 0.0
        for name, alpha in self.alpha.items():
            gate = open_probability(self.gate[name]).double() if self.gate else 1.0
            expected += float((open_probability(alpha) * (self.w[name] != 0)).sum(dtype=torch.float64) * gate)
        return {"natural_density": expected / m}

    def suspend(self) -> None:
        """The weights hold what lies beneath anyway: it is enough that no alias takes their place."""
        self.active = False

    def wake(self) -> None:
        self.active = True

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for optimizer in [split[0] for split in self._split]:
            self.after(optimizer)
        self._aliases.remove()
        self._settled.clear()
        delattr(self.model, LEAVES)
