"""Corners of tuning that once went wrong without a word."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gossamer as gs
from gossamer.delta.base import base_parameters
from gossamer.delta.support import Support
from gossamer.errors import BadPlan, Clash
from gossamer.tunable.tuned import Tuned
from tests.tiny import batches, bits, classifier, gradients, same_bits


def everything(model: nn.Module) -> Support:
    return Support({n: torch.arange(p.numel()) for n, p in base_parameters(model).items()})


class Twice(nn.Module):
    """A module that calls itself and then uses its own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor, depth: int = 1) -> torch.Tensor:
        inner = self(x, depth - 1) if depth else torch.zeros_like(x)
        return inner + self.w * x


def test_a_module_that_calls_itself_gets_its_whole_gradient() -> None:
    model = Twice()
    tuned = Tuned(model, everything(model))
    model(torch.ones(3)).sum().backward()
    assert torch.equal(gradients(tuned)["w"], torch.full((3,), 2.0))
    tuned.detach()


class Block(nn.Module):
    """Checkpointed attention, which reads its output projection's weight without calling it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x)[0]


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.block, self.reentrant = Block(), reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block(x) if self.reentrant is None else checkpoint(self.block, x, use_reentrant=self.reentrant)


def test_weights_that_another_module_reads_keep_their_gradient_under_checkpointing() -> None:
    found = []
    for reentrant in (None, False, True):
        model = Checkpointed(reentrant)
        tuned = Tuned(model, everything(model))
        torch.manual_seed(1)
        model(torch.randn(2, 4, 8, requires_grad=True)).square().sum().backward()
        found.append(gradients(tuned))
        tuned.detach()
    for other in found[1:]:
        for name, grad in found[0].items():
            torch.testing.assert_close(other[name], grad)


def test_a_copy_of_a_tuned_model_refuses_to_train() -> None:
    model = classifier()
    with gs.tune(model, "random", k=20) as tuned:
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin(**batches(1)[0])
        with pytest.raises(BadPlan, match="copy of a tuned model"):
            twin(**batches(1)[0])
        assert tuned.k == 20


def test_an_interrupted_forward_leaves_nothing_behind() -> None:
    model = classifier()
    before = bits(model)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with gs.tune(model, "random", density=0.1):
        hook = model.bert.encoder.layer[1].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(**batches(1)[0])
        hook.remove()
        model(**batches(1)[0]).loss.backward()
    assert all(isinstance(p, nn.Parameter) for m in model.modules() for p in m._parameters.values() if p is not None)
    assert not any(m.sparse for m in model.modules() if isinstance(m, nn.Embedding))
    assert same_bits(model, before)


def test_deltas_cannot_go_over_a_full_fine_tuning_nor_heads_over_any() -> None:
    model = classifier()
    with gs.tune(model, "random", k=20) as tuned:
        delta = tuned.delta()
        with pytest.raises(Clash, match="head=False"):
            gs.apply(model, delta)
        with gs.applied(model, delta, head=False):
            pass
    with gs.tune(model, "full") as tuned:
        for leaf in tuned.leaves.parameters():
            nn.init.ones_(leaf)
        with pytest.raises(Clash, match="full fine-tuning"), gs.applied(model, delta, head=False):
            pass
        assert tuned.delta().norm() > 0
        with tuned.disabled(), gs.applied(model, delta, head=False):
            pass
        assert tuned.delta().norm() > 0


def test_modes_and_gradients_of_before_come_back_and_moved_buffers_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model.train()
    model[2].eval()
    model[0].weight.grad = torch.ones(3, 3)
    before = bits(model)
    with gs.tune(model, "random", k=5) as tuned:
        model(torch.randn(8, 3)).sum().backward()
        with pytest.raises(BadPlan, match="running_mean"):
            tuned.delta()
    assert same_bits(model, before)
    assert [module.training for module in model] == [True, True, False]
    assert torch.equal(model[0].weight.grad, torch.ones(3, 3))


def test_embeddings_that_rewrite_or_rescale() -> None:
    with pytest.raises(BadPlan, match="max_norm"), gs.tune(nn.Embedding(5, 3, max_norm=1.0), "random", k=2):
        pass
    model = nn.Embedding(5, 3, scale_grad_by_freq=True)
    with gs.tune(model, "random", k=15) as tuned:
        model(torch.tensor([1, 1, 2])).sum().backward()
        assert gradients(tuned)["weight"].reshape(5, 3)[1].tolist() == [1.0, 1.0, 1.0]
    with gs.tune(nn.Embedding(5, 3), "random", k=15) as tuned:
        tuned.model(torch.zeros(0, dtype=torch.int64)).sum().backward()


def test_exclude_is_a_pattern_or_several_and_must_match() -> None:
    model = classifier()
    with gs.tune(model, "random", k=100, exclude="embeddings") as tuned:
        assert not any(name.startswith("embeddings") for name in tuned.leaves.support)
    with pytest.raises(BadPlan, match="'nosuch' matches no weight"), gs.tune(model, "random", k=9, exclude=["nosuch"]):
        pass
