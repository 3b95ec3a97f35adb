"""LoRA: W + (α/r)·B·A on linear layers, B = 0 at the start (Hu et al. 2022), by the `peft` library.

peft's own layers stand in for the linear ones during training, so it is peft's LoRA that is trained, frozen base and all.
Their result is a low-rank patch a weight, left = (α/r)·B and right = A (the other way around where a layer stores the
transpose), and the original layers come back untouched.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from gossamer.delta.apply import Stack
from gossamer.delta.base import backbone
from gossamer.delta.delta import Delta
from gossamer.delta.patch import LowRank, Patch
from gossamer.delta.quantized import need_floats
from gossamer.errors import BadPlan, Clash
from gossamer.tunable.leaves import Leaves, Wanted
from gossamer.tunable.places import block_linears, linears, named

_ADAPTER = "default"


class LoraLeaves(Leaves):
    """peft's LoRA layers in the place of linear ones. Options: r, alpha, targets (name patterns of linear layers)."""

    def __init__(self, model: nn.Module, stack: Stack, wanted: Wanted) -> None:
        self.model, self.stack, self.bottom = model, stack, backbone(model)
        targets = _targets(model, wanted)
        need_floats({name: stack.parameters[name] for name in targets}, "a LoRA that becomes a delta")
        self.originals = {name: self.bottom.get_submodule(name) for name in targets.values()}
        self.weights = {name: weight for weight, name in targets.items()}  # layer → its weight's name
        try:
            _inject(self.bottom, list(self.originals), wanted)
        except BaseException:
            self.detach()
            raise
        self.layers: dict[str, Any] = {name: self.bottom.get_submodule(name) for name in self.originals}
        for name, layer in self.layers.items():
            dtype = torch.promote_types(stack.parameters[self.weights[name]].dtype, torch.float32)
            for matrix in self._matrices(layer):
                matrix.data = matrix.data.to(dtype)
        if wanted.start and wanted.start.terms:
            try:
                self._begin(wanted.start)
            except BaseException:
                self.detach()
                raise
        stack.grafts.replant(model)  # a module added behind a linear layer takes what LoRA gives, too

    def _begin(self, start: Delta) -> None:
        """Takes the factors of a delta: those of another LoRA of the same layers and rank."""
        found = {name: self.weights[name] for name in self.layers}
        if set(found.values()) != start.terms.keys():
            raise BadPlan(
                "LoRA starts at B = 0, or from a LoRA of the same layers; apply other deltas underneath with on="
            )
        for name, weight in found.items():
            layer, terms = self.layers[name], start.terms[weight]
            a, b = self._matrices(layer)
            ((coefficient, patch),) = terms if len(terms) == 1 else ((1.0, None),)
            shapes = (b.shape, a.shape) if not layer.fan_in_fan_out else (a.T.shape, b.T.shape)
            if not isinstance(patch, LowRank) or (patch.left.shape, patch.right.shape) != shapes:
                raise BadPlan(f"LoRA of rank {a.shape[0]} cannot start from what the delta has at {weight!r}; apply it "
                              "underneath with on=")  # fmt: skip
            left = patch.left.float() * (coefficient / layer.scaling[_ADAPTER])
            right = patch.right.float()
            for matrix, values in ((b, right.T), (a, left.T)) if layer.fan_in_fan_out else ((b, left), (a, right)):
                matrix.data.copy_(values)

    @staticmethod
    def _matrices(layer: Any) -> tuple[nn.Parameter, nn.Parameter]:
        """A [r, in] and B [out, r]."""
        return layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight

    def parameters(self) -> Iterator[nn.Parameter]:
        return (matrix for layer in self.layers.values() for matrix in self._matrices(layer))

    def patches(self) -> dict[str, Patch]:
        found: dict[str, Patch] = {}
        for name, layer in self.layers.items():
            a, b = (matrix.detach().cpu().clone() for matrix in self._matrices(layer))
            left, right = (a.T, b.T) if layer.fan_in_fan_out else (b, a)
            found[self.weights[name]] = LowRank((left * layer.scaling[_ADAPTER]).contiguous(), right.contiguous())
        return found

    def add_penalty_gradient(self, strength: float) -> None:
        """Adds strength · sign of the factors to their gradients; the product itself is never formed."""
        for leaf in self.parameters():
            if leaf.grad is not None:
                leaf.grad.add_(leaf.detach().sign(), alpha=strength)

    def suspend(self) -> None:
        for layer in self.layers.values():
            layer.enable_adapters(False)

    def wake(self) -> None:
        for layer in self.layers.values():
            layer.enable_adapters(True)

    def detach(self) -> None:
        for name, original in self.originals.items():
            parent, _, child = name.rpartition(".")
            setattr(self.bottom.get_submodule(parent), child, original)
        if "peft_config" in vars(self.bottom):  # peft leaves its configuration on what it changes
            del self.bottom.peft_config
        self.stack.grafts.replant(self.model)


def _targets(model: nn.Module, wanted: Wanted) -> dict[str, str]:
    """Weight's name → name of the layer that it belongs to, for the layers to change."""
    bottom = backbone(model)
    patterns = wanted.options.get("targets", ())
    if hasattr(bottom, "peft_config"):
        raise Clash("this model already carries adapters of peft; unload them first")
    inside = named(linears(bottom), patterns, "targets") if patterns else block_linears(bottom)
    names = {id(parameter): name for name, parameter in bottom.named_parameters()}
    users: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            users[id(parameter)] = users.get(id(parameter), 0) + 1
    found: dict[str, str] = {}
    for name, layer in inside.items():
        weight = layer._parameters["weight"]
        if names[id(weight)] not in wanted.names:
            continue
        if users[id(weight)] > 1 or names[id(weight)] in found:
            raise BadPlan(
                f"the weight of {name!r} serves several layers, which LoRA would part; leave it out with targets="
            )
        found[names[id(weight)]] = name
    if not found:
        raise BadPlan(
            f"no linear layer to change was found in the repeated blocks of this {type(bottom).__name__}; name some, for "
            "example targets=['*.query', '*.value']"
        )
    return found


def _inject(bottom: nn.Module, names: list[str], wanted: Wanted) -> None:
    """Lets peft put its layers in, drawn from the seed; what else it sets is put back."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise BadPlan(
            "lora comes from the peft library, which is not installed: pip install 'gossamer[peft]'"
        ) from None
    r, alpha = wanted.options.get("r", 8), wanted.options.get("alpha", 16.0)
    whole = "|".join(map(re.escape, names))  # a pattern matches whole names, a list their ends too
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=0.0, target_modules=whole)
    frozen = [(parameter, parameter.requires_grad) for parameter in bottom.parameters()]
    random = torch.get_rng_state()
    torch.default_generator.manual_seed(wanted.seed)  # the matrices are drawn on the CPU
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to")  # peft sees itself which layers need it
            inject_adapter_in_model(config, bottom, _ADAPTER)
    except ValueError as error:
        raise BadPlan(f"peft cannot put LoRA on this model: {error}") from None
    finally:
        torch.set_rng_state(random)
    for parameter, wanted_grad in frozen:
        parameter.requires_grad_(wanted_grad)
