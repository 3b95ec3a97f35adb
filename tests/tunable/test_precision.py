"""Low precision: bf16 bases with float32 values, autocast, and gradient checkpointing that keeps the sampled gradient."""

from __future__ import annotations

import pytest
import torch
from benchmarks.common import allocated, minilm
from benchmarks.common import batch as random_batch
from torch import nn

import gossamer as gs
from gossamer.tunable.sampled import _library
from tests.contracts.test_methods import build, data
from tests.tiny import batches, bits, classifier, same_bits

TINY = ["bert", "llama"]


def train(model: nn.Module, steps: int = 12, **autocast: bool) -> tuple[list[float], gs.Delta]:
    """Losses over one batch, and the delta; asserts on the way that leaves and their gradients are float32."""
    batch, losses = data("bert")[0], []
    with gs.tune(model, "random", density=0.1) as tuned:
        optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, **autocast):
                loss = model(**batch).loss
            loss.backward()
            assert {leaf.dtype for leaf in tuned.leaves.parameters()} == {torch.float32}
            assert {leaf.grad.dtype for leaf in tuned.leaves.parameters() if leaf.grad is not None} == {torch.float32}
            optimizer.step()
            losses.append(loss.item())
        return losses, tuned.delta("fp32")


@pytest.mark.parametrize("name", TINY)
def test_a_bf16_base_trains_and_its_delta_fits_the_float32_base(name: str) -> None:
    half, full = build(name).bfloat16(), build(name)
    before = bits(half)
    losses, delta = train(half, enabled=False)
    assert losses[-1] < losses[0] - 0.05
    assert same_bits(half, before)
    weights = bits(full)
    with gs.applied(full, delta):  # by the digest of the rounded values
        for key, ((_, patch),) in delta.terms.items():
            now, base = full.base_model.get_parameter(key).detach(), weights[_full(full, key)]
            expected = base.reshape(-1)[patch.indices].double() + patch.values.double()
            assert torch.equal(now.reshape(-1)[patch.indices], expected.float())
    assert same_bits(full, weights)
    _, other = train(full, enabled=False)
    with gs.applied(half, other):  # and the other way around
        pass
    assert same_bits(half, before)


def _full(model: nn.Module, key: str) -> str:
    return f"{model.base_model_prefix}.{key}"


def test_values_below_the_base_resolution_are_kept() -> None:
    """Steps too small to show in bf16 add up in the float32 values; the base would have swallowed each of them."""
    model = classifier().bfloat16()
    with gs.tune(model, "random", density=0.01) as tuned:
        leaves = list(tuned.leaves.parameters())
        optimizer = torch.optim.SGD(leaves, lr=1.0)
        for _ in range(64):
            for leaf in leaves:
                leaf.grad = torch.full_like(leaf, -(2.0**-12))
            optimizer.step()
        assert all(torch.equal(leaf, torch.full_like(leaf, 2.0**-6)) for leaf in leaves)


@pytest.mark.parametrize("name", TINY)
def test_autocast_over_a_float32_base(name: str) -> None:
    model = build(name)
    before = bits(model)
    losses, delta = train(model, enabled=True)
    assert losses[-1] < losses[0] - 0.05 and delta.norm() > 0
    assert same_bits(model, before)


def peak(model: nn.Module, **autocast: bool) -> tuple[int, int]:
    """Bytes at the peak of a step over those at its begin, and bytes of the largest trained matrix."""
    batch = batches(1, size=2)[0]
    with gs.tune(model.train(), "random", density=0.005) as tuned:

        def step() -> None:
            with torch.autocast("cpu", dtype=torch.bfloat16, **autocast):
                loss = model(**batch).loss
            loss.backward()
            for parameter in tuned.parameters():
                parameter.grad = None

        step()
        largest = max(p.nbytes for n, p in model.named_parameters() if "layer" in n)
        return allocated(step)[0], largest


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_no_dense_gradient_with_and_without_checkpointing(reentrant: bool | None) -> None:
    model = classifier(hidden_size=256, intermediate_size=2048, num_hidden_layers=3)
    if _library() is None:
        pytest.skip("no compiled kernel: gradients are dense, then gathered")
    if reentrant is not None:
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    found, largest = peak(model, enabled=False)
    # a dense gradient of one matrix more would show: the activations of a layer are about a sixth of it, and all are 0.6
    assert found < (1.6 if reentrant is None else 0.9) * largest


def test_minilm_in_bf16() -> None:
    model = minilm().bfloat16()
    before, batch = bits(model), random_batch(examples=2, tokens=16)
    with gs.tune(model, "random", density=0.005) as tuned:
        optimizer = torch.optim.AdamW(tuned.parameters(), lr=1e-2)
        losses = []
        for _ in range(6):
            optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        delta = tuned.delta()
    assert losses[-1] < losses[0]
    assert same_bits(model, before)
    with gs.applied(minilm(), delta, head=False):
        pass
