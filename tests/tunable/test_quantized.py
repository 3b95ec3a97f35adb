"""Quantized bases: values lie on top of a linear layer's product, gradients pass it, and nothing of it is written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchmarks.common import allocated
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import gossamer as gs
from gossamer.delta.base import base_parameters, identity
from gossamer.delta.quantized import plain, quantized, writable
from gossamer.errors import BadPlan, BaseMismatch
from gossamer.tunable.sm3 import SM3
from gossamer.tunable.tuned import Tuned
from tests.contracts.test_methods import build, data
from tests.tiny import bits, gradients, same_bits
from tests.tunable.test_sparse import some


class Int8(Tensor):
    """A weight in 8 bits with a scale a row, made by hand: it can be multiplied with and dequantized, nothing else."""

    @staticmethod
    def __new__(cls, numbers: Tensor, scale: Tensor) -> Int8:
        return Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype, device=numbers.device)

    def __init__(self, numbers: Tensor, scale: Tensor) -> None:
        self.numbers, self.scale = numbers, scale

    @classmethod
    def of(cls, weight: Tensor) -> Int8:
        scale = weight.abs().amax(1, keepdim=True) / 127
        return cls((weight / scale).round().to(torch.int8), scale)

    def dequantize(self) -> Tensor:
        return self.numbers.to(self.dtype) * self.scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["numbers", "scale"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], *_: Any) -> Int8:
        return Int8(parts["numbers"], parts["scale"])

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.linear:  # as torchao does it: autograd keeps the dequantized weight
            return F.linear(args[0], args[1].dequantize().to(args[0].dtype), *args[2:])
        return super().__torch_function__(function, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return Int8(function(args[0].numbers), function(args[0].scale))
        raise NotImplementedError(function)


def by_hand(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(Int8.of(plain(module.weight)), requires_grad=False)
    return model


def torchao(model: nn.Module) -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


QUANTIZERS = [by_hand, torchao]
Quantize = Callable[[nn.Module], nn.Module]


def in_eight_bits(quantize: Quantize, name: str = "llama") -> nn.Module:
    """A tiny classifier whose backbone is quantized; its head is not."""
    model = build(name)
    quantize(model.base_model)
    return model


def dequantized(model: nn.Module) -> nn.Module:
    """A copy with ordinary weights of the same values."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = nn.Parameter(plain(parameter).clone())
    return model


def numbers(model: nn.Module) -> dict[str, Tensor]:
    """Copies of everything that the model holds, what quantized weights wrap included."""
    found = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        parts = tensor.__tensor_flatten__()[0] if quantized(tensor) else []
        found |= {
            f"{name}.{part}": getattr(tensor, part).clone() for part in parts if getattr(tensor, part) is not None
        }
        if not parts:
            found[name] = tensor.detach().clone()
    return found


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def train(
    tuned: Tuned,
    model: nn.Module,
    name: str = "llama",
    steps: int = 10,
    kind: type[torch.optim.Optimizer] = torch.optim.AdamW,
) -> list[float]:
    optimizer, losses = kind(tuned.parameters(), lr=1e-2), []  # type: ignore[call-arg]
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**data(name)[0]).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def logits(model: nn.Module, name: str = "llama") -> Tensor:
    with torch.no_grad():
        return model.eval()(**data(name)[0]).logits


@pytest.mark.parametrize("quantize", QUANTIZERS)
def test_gradients_are_those_of_the_dequantized_weights_at_the_support(quantize: Quantize) -> None:
    model = in_eight_bits(quantize)
    dense = dequantized(model)
    tuned = Tuned(model, some(model))
    with torch.no_grad():
        for leaf in tuned.leaves.parameters():
            leaf.normal_(0, 0.05)
    with gs.applied(dense, tuned.delta("fp32"), head=False):
        expected = dense(**data("llama")[0]).loss
        expected.backward()
        loss = model(**data("llama")[0]).loss
        loss.backward()
    torch.testing.assert_close(loss, expected)
    closed = [name for name, weight in base_parameters(model).items() if quantized(weight)]
    assert len(closed) == 14 and closed[0] in tuned.leaves.support
    for name, grad in gradients(tuned).items():
        wanted = dense.base_model.get_parameter(name).grad.reshape(-1)[tuned.leaves.support[name]]
        torch.testing.assert_close(grad, wanted, rtol=1e-3, atol=1e-6)
    tuned.detach()


@pytest.mark.parametrize("quantize", QUANTIZERS)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_train_save_load_apply_detach(quantize: Quantize, name: str, tmp_path: Path) -> None:
    model = in_eight_bits(quantize, name)
    before, plain_logits = numbers(model), logits(model, name)
    with gs.tune(model, "random", density=0.1) as tuned:
        assert torch.equal(logits(model, name), plain_logits)  # values of 0 change nothing
        losses = train(tuned, model, name)
        assert losses[-1] < losses[0] - 0.05
        trained, delta = logits(model, name), tuned.delta("fp32")
        with tuned.disabled():
            assert not torch.equal(logits(model, name), trained)
        assert torch.equal(logits(model, name), trained)
    assert same(numbers(model), before) and torch.equal(logits(model, name), plain_logits)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    delta.save(tmp_path / "delta.safetensors")
    delta = gs.load(tmp_path / "delta.safetensors")
    with gs.applied(model, delta):
        assert torch.equal(logits(model, name), trained)
        twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, name), trained)  # a copy keeps what was applied
    assert same(numbers(model), before) and torch.equal(logits(model, name), plain_logits)
    with gs.applied(dequantized(model), delta) as floats:  # the same base in other clothes
        torch.testing.assert_close(logits(floats, name), trained)
    with pytest.raises(BaseMismatch, match="other values"):
        gs.apply(build(name), delta)


@pytest.mark.parametrize("quantize", QUANTIZERS)
def test_a_quantized_bf16_base_has_float32_values(quantize: Quantize) -> None:
    model = build("llama").bfloat16()
    quantize(model.base_model)
    before = numbers(model)
    with gs.tune(model, "random", density=0.1) as tuned:
        losses = train(tuned, model, steps=15)
        assert {leaf.dtype for leaf in tuned.leaves.parameters()} == {torch.float32}
        trained, delta = logits(model), tuned.delta("fp32")
    assert losses[-1] < losses[0] - 0.05 and trained.dtype == torch.bfloat16
    assert same(numbers(model), before)
    with gs.applied(model, delta):
        assert torch.equal(logits(model), trained)


@pytest.mark.parametrize("quantize", QUANTIZERS)
def test_sums_and_a_delta_underneath(quantize: Quantize) -> None:
    model = in_eight_bits(quantize)
    with gs.tune(model, "random", density=0.1, head=False) as tuned:
        train(tuned, model)
        first = tuned.delta("fp32")
    with gs.tune(model, "random", density=0.1, seed=1, on=first, head=False) as tuned:
        train(tuned, model)
        both, second = logits(model), tuned.delta("fp32")
    with gs.applied(model, first + second):
        assert torch.equal(logits(model), both)
    one = gs.apply(model, first)
    two = gs.apply(model, second)
    assert torch.equal(logits(model), both)
    one.restore()
    alone = logits(model)
    two.restore()
    with gs.applied(model, second):
        assert torch.equal(logits(model), alone)
    with gs.applied(model, first - first):
        plain_logits = logits(model)
    assert torch.equal(logits(model), plain_logits)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_and_autocast_give_the_same_gradients(reentrant: bool) -> None:
    def gradients(checkpointing: bool, autocast: bool) -> list[Tensor]:
        model = in_eight_bits(by_hand).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            if reentrant:
                model.enable_input_require_grads()
        with gs.tune(model, "random", density=0.1) as tuned:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = model(**data("llama")[0]).loss
            loss.backward()
            return [leaf.grad.clone() for leaf in tuned.leaves.parameters()]

    usual = gradients(False, False)
    for a, b in zip(usual, gradients(True, False), strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(usual, gradients(True, True), strict=True):
        assert b.dtype == torch.float32
        assert (a - b).norm() < 0.1 * a.norm() + 1e-4


def test_trainer_and_moves(tmp_path: Path) -> None:
    model = in_eight_bits(by_hand)
    rows = [{k: v[i] for k, v in batch.items()} for batch in data("llama") for i in range(4)]

    def trainer(strategy: str) -> Callable[[nn.Module], Trainer]:
        args = TrainingArguments(str(tmp_path), max_steps=3, save_strategy=strategy, report_to=[], use_cpu=True,
                                 disable_tqdm=True, learning_rate=1e-2)  # fmt: skip
        return lambda tuned: Trainer(tuned, args, train_dataset=rows)  # type: ignore[arg-type]

    delta = gs.fit(model, "random", density=0.1, trainer=trainer("no"))  # it moves the model to its device
    with gs.applied(model, delta):
        trained = logits(model)
        assert torch.equal(logits(model.to("cpu")), trained)
    with pytest.raises(BadPlan, match='save_strategy="no"'):
        gs.fit(model, "random", density=0.1, trainer=trainer("steps"))


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(64, 64)
        self.layers = nn.ModuleList([nn.Linear(256, 256, bias=False) for _ in range(8)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).repeat(1, 4)
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.mark.parametrize("quantize", QUANTIZERS)
def test_no_float_copies_of_the_weights_are_kept_for_the_backward(quantize: Quantize) -> None:
    model, x = Wide(), torch.randn(4, 64)
    quantize(model.layers)
    with gs.tune(model, "random", density=0.001) as tuned:

        def step() -> None:
            model(x).square().mean().backward()
            for leaf in tuned.parameters():
                leaf.grad = None

        step()
        assert allocated(step)[0] < 4 * 4 * 256**2  # dequantizing one weight takes up to three copies, eight are layers


def test_an_optimizer_step_between_forward_and_backward_is_an_error() -> None:
    model = in_eight_bits(by_hand)
    with gs.tune(model, "random", density=0.1) as tuned:
        loss = model(**data("llama")[0]).loss
        for leaf in tuned.parameters():
            leaf.grad = torch.ones_like(leaf)
        torch.optim.SGD(list(tuned.leaves.parameters()), lr=0.1).step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


REVISED = {"density": 0.1, "every": 3, "total_steps": 10}
OTHERS = {
    "spiel-ag": {**REVISED, "window": 2},
    "spiel-ma": REVISED,
    "magnitude": {"density": 0.1},
    "bitfit": {},
    "pfeiffer": {},
}


@pytest.mark.parametrize("method", OTHERS)
def test_other_methods_that_run(method: str) -> None:
    name = "bert" if method == "bitfit" else "llama"
    model = in_eight_bits(by_hand, name)
    before = numbers(model)
    with gs.tune(model, method, **OTHERS[method]) as tuned:
        losses = train(tuned, model, name, kind=SM3 if method == "spiel-ma" else torch.optim.AdamW)
        trained, delta = logits(model, name), tuned.delta("fp32")
    assert losses[-1] < losses[0]
    assert same(numbers(model), before)
    with gs.applied(model, delta):
        torch.testing.assert_close(logits(model, name), trained)


@pytest.mark.parametrize("method", ["full", "mixout", "child-f", "lora", "fisher", "gradient"])
def test_methods_that_need_float_weights_say_so(method: str) -> None:
    model = in_eight_bits(by_hand)
    before = numbers(model)
    with pytest.raises(BadPlan, match="quantized"), gs.tune(model, method, data=data("llama")):
        pass
    assert same(numbers(model), before)


def test_errors_of_what_cannot_be_written() -> None:
    model = in_eight_bits(by_hand)
    with gs.tune(model, "random", density=0.1, head=False) as tuned:
        train(tuned, model)
        delta = tuned.delta()
    with pytest.raises(BadPlan, match="cannot hold a delta"):
        gs.merge(model, delta)
    full = dequantized(model)
    with gs.tune(full, "full", head=False) as tuned:
        train(tuned, full, steps=1)
        dense = tuned.delta()
    with pytest.raises(BadPlan, match="densely or by low rank"):
        gs.apply(model, dense)
    by_hand(model)
    with pytest.raises(BadPlan, match="a task head"), gs.tune(model, "random"):
        pass
    table = build("llama")
    table.base_model.embed_tokens.weight = nn.Parameter(Int8.of(table.base_model.embed_tokens.weight.detach()), False)
    with (
        pytest.raises(BadPlan, match=r"'embed_tokens.weight' is a quantized weight of Embedding"),
        gs.tune(table, "random"),
    ):
        pass
    packed = build("llama")
    layer = packed.base_model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter(torch.zeros(256, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(BadPlan, match=r"torch.uint8.*exclude="), gs.tune(packed, "random"):
        pass


class Buffers(nn.Module):
    """A linear layer whose weight is buffers, no parameter: nothing of it can be chosen."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = Int8.of(linear.weight.detach())
        self.register_buffer("numbers", weight.numbers)
        self.register_buffer("scale", weight.scale)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.numbers * self.scale)


def test_around_layers_that_hold_buffers_the_rest_is_trained() -> None:
    model = build("llama")
    for layer in model.base_model.layers:
        layer.mlp.up_proj = Buffers(layer.mlp.up_proj)
    before = bits(model)
    assert not [name for name in identity(model) if "up_proj" in name]
    with gs.tune(model, "random", density=0.1) as tuned:
        losses = train(tuned, model)
    assert losses[-1] < losses[0] - 0.05 and same_bits(model, before)


def test_identity_is_that_of_the_dequantized_values() -> None:
    model = in_eight_bits(by_hand)
    assert identity(model) == identity(dequantized(model))
    weight = next(p for p in model.parameters() if quantized(p))
    assert not writable(weight) and writable(plain(weight))
    assert torch.equal(plain(weight), weight.dequantize())
