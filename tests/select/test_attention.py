"""Attention that is differentiated twice: switched to plain steps, said so, put back; an error where it cannot be."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import GPT2Config, GPT2ForSequenceClassification

from gossamer.errors import BadPlan
from gossamer.select.attention import plain_attention
from gossamer.select.curvature import hutchinson
from tests.tiny import batches, bits, classifier, same_bits


def test_fused_attention_is_switched_said_so_and_put_back(caplog: pytest.LogCaptureFixture) -> None:
    model, seen = classifier(), []
    assert model.config._attn_implementation == "sdpa"
    with caplog.at_level(logging.WARNING), plain_attention(model, "this pass") as fused:
        seen.append(model.config._attn_implementation)
    assert (seen, fused) == (["eager"], ["sdpa"])
    assert model.config._attn_implementation == "sdpa"
    assert "this pass" in caplog.text
    assert "sdpa to eager" in caplog.text
    caplog.clear()
    model.set_attn_implementation("eager")
    with plain_attention(model, "this pass") as fused:
        assert fused == []
    assert model.config._attn_implementation == "eager"
    assert not caplog.text


def test_each_part_gets_its_own_attention_back() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = classifier(), classifier()
            self.two.set_attn_implementation("eager")

    pair = Pair()
    seen = []

    def fail() -> None:
        with plain_attention(pair, "it"):
            seen.append(pair.one.config._attn_implementation)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == ["eager"]
    assert (pair.one.config._attn_implementation, pair.two.config._attn_implementation) == ("sdpa", "eager")


@pytest.mark.parametrize("decoder", [False, True])
def test_the_pass_on_a_transformer_is_that_of_eager_attention(decoder: bool) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=95, n_embd=16, n_layer=2, n_head=2, n_positions=40, num_labels=2, pad_token_id=0)
    model = GPT2ForSequenceClassification(config) if decoder else classifier()
    before, kind = bits(model), model.config._attn_implementation
    parameters = dict(model.base_model.named_parameters())
    found = hutchinson(model, parameters, batches(2))[1]
    assert same_bits(model, before)
    assert model.config._attn_implementation == kind
    model.set_attn_implementation("eager")
    for name, wanted in hutchinson(model, parameters, batches(2))[1].items():
        torch.testing.assert_close(found[name], wanted)
    assert sum(float(h.abs().sum()) for h in found.values()) > 0


class Direct(nn.Module):
    """Calls PyTorch's attention itself, as code without transformers does."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.eye(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = x @ self.w
        return scaled_dot_product_attention(q, q, q).square().mean()


def test_attention_called_directly_needs_no_switch() -> None:
    model, x = Direct(), torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    found = hutchinson(model, dict(model.named_parameters()), [{"x": x}], loss=lambda m, b: m(**b))[1]
    assert float(found["w"].abs().sum()) > 0


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return 2 * grad * ctx.saved_tensors[0]


def test_what_cannot_be_differentiated_twice_is_an_error() -> None:
    model = Direct()
    with pytest.raises(BadPlan, match="differentiates twice"):
        hutchinson(model, dict(model.named_parameters()), [{"x": torch.ones(1)}],
                   loss=lambda m, b: Once.apply(m.w).sum().square())  # type: ignore[union-attr]  # fmt: skip
    with pytest.raises(RuntimeError, match="other"), plain_attention(model, "it"):
        raise RuntimeError("other trouble")
