"""Added modules and LoRA against references of at most ten lines."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import gossamer as gs
from gossamer.delta.graft import Graft, shapes
from gossamer.delta.patch import LowRank
from tests.contracts.test_methods import Loop, build, data


def graft(kind: str, width: int, inner: int, activation: str = "relu", seed: int = 0, dtype=torch.float64) -> Graft:
    rng = torch.Generator().manual_seed(seed)
    tensors = {part: torch.randn(s, generator=rng, dtype=dtype) for part, s in shapes(kind, width, inner).items()}
    return Graft("place", tensors, kind, activation)


def bottleneck(h: Tensor, d: Tensor, p: Tensor, u: Tensor, q: Tensor, gelu: bool) -> Tensor:
    """h + U·f(D·h), one state at a time, gelu(x) = x·Φ(x)."""
    made = []
    for state in h:
        x = d @ state + p
        x = x * 0.5 * (1 + torch.erf(x / 2**0.5)) if gelu else x * (x > 0)
        made.append(state + u @ x + q)
    return torch.stack(made)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_bottleneck_and_its_gradient(activation: str) -> None:
    made = graft("bottleneck", 7, 3, activation)
    h = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    leaves = [t.requires_grad_(True) for t in made.tensors.values()]
    ours, theirs = made.forward(h, made.tensors), bottleneck(h, *leaves, activation == "gelu")
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weight = torch.randn(5, 7, dtype=torch.float64)
    for a, b in zip(*(torch.autograd.grad((out * weight).sum(), [h, *leaves]) for out in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [2, 5, 8, 9])
def test_the_inverse_of_an_invertible_module(width: int) -> None:
    made = graft("invertible", width, 3)
    x = torch.randn(4, 3, width, dtype=torch.float64)
    y = made.forward(x, made.tensors)
    torch.testing.assert_close(made.inverse(y, made.tensors), x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(made.forward(made.inverse(x, made.tensors), made.tensors), x, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(y, x)
    t, a, b = made.tensors, x[..., : width - width // 2], x[..., width - width // 2 :]
    first = a + (b @ t["f.down.weight"].T + t["f.down.bias"]).relu() @ t["f.up.weight"].T + t["f.up.bias"]
    second = b + (first @ t["g.down.weight"].T + t["g.down.bias"]).relu() @ t["g.up.weight"].T + t["g.up.bias"]
    torch.testing.assert_close(y, torch.cat([first, second], -1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_base_and_lora_patch_equal_what_peft_would_merge(architecture: str) -> None:
    model, train = build(architecture), data(architecture)
    base = {name: p.detach().clone() for name, p in model.base_model.named_parameters()}
    with gs.tune(model, "lora", r=3, alpha=7.0) as tuned:
        Loop(model, train).train()
        delta = tuned.delta("fp32")
        merged = {}
        for name, layer in tuned.leaves.layers.items():
            layer.merge()
            merged[f"{name}.weight"] = layer.get_base_layer().weight.detach().clone()
            layer.unmerge()
            layer.get_base_layer().weight.data.copy_(base[f"{name}.weight"])  # unmerging subtracts, which rounds
    assert merged.keys() == delta.terms.keys()
    for name, ((_, patch),) in delta.terms.items():
        assert isinstance(patch, LowRank)
        assert patch.left.shape[1] == 3
        torch.testing.assert_close(base[name] + patch.left @ patch.right, merged[name], rtol=1e-6, atol=1e-7)
        assert not torch.equal(merged[name], base[name])
