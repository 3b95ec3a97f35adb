"""RSA and CKA against their definitions on whole matrices; forgetting on a tiny model."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gossamer import Delta
from gossamer.analyze.forgetting import forgetting
from gossamer.analyze.similarity import cka, rsa
from gossamer.delta.patch import Sparse
from gossamer.errors import BadData, BadPlan
from tests.tiny import batches, classifier


def dense_rsa(x, y):
    corners = [
        (z @ z.T)[np.triu_indices(len(z), 1)] for z in (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))
    ]
    return np.corrcoef(*corners)[0, 1]


def dense_cka(x, y):
    center = np.eye(len(x)) - 1 / len(x)
    k, m = center @ x @ x.T @ center, center @ y @ y.T @ center
    return (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum())


@settings(max_examples=25, deadline=None)
@given(n=st.integers(4, 1100), d=st.integers(2, 9), seed=st.integers(0, 99))
def test_definitions(n, d, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, d)) + 1, rng.normal(size=(n, d + 1)) + 0.5
    a, b = torch.tensor(x), torch.tensor(y)
    assert rsa(a, b) == pytest.approx(dense_rsa(x, y), abs=1e-5)
    assert cka(a, b) == pytest.approx(dense_cka(x, y), abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), scale=st.floats(0.01, 100))
def test_rotation_and_scale_change_nothing(seed, scale):
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(seed))
    turn = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed + 1))).Q
    for measure in (rsa, cka):
        assert measure(x, scale * x @ turn) == pytest.approx(1, abs=1e-5)
        assert measure(x, x) == pytest.approx(1, abs=1e-6)


def test_bad_vectors():
    with pytest.raises(BadData, match=r"expected vectors of the same tokens.*\[4, 2\], \[5, 2\]"):
        rsa(torch.ones(4, 2), torch.ones(5, 2))
    with pytest.raises(BadData, match="second model's states are not all finite"):
        cka(torch.ones(4, 2), torch.full((4, 2), math.nan))
    assert math.isnan(rsa(torch.ones(4, 2), torch.ones(4, 2)))


def moved(model, name, scale):
    weight = dict(model.base_model.named_parameters())[name]
    values = scale * torch.randn(weight.numel(), generator=torch.Generator().manual_seed(1))
    return Delta.of({name: Sparse(tuple(weight.shape), torch.arange(weight.numel()), values)})


def test_forgetting_grows_with_the_change_and_begins_where_the_change_is():
    model, data = classifier(), batches(6, 8)
    before = {name: p.clone() for name, p in model.named_parameters()}
    name = "encoder.layer.1.output.dense.weight"
    found = forgetting(
        model, {"none": Delta({}), "small": moved(model, name, 0.05), "large": moved(model, name, 1.0)}, data, tokens=300,
        score=lambda delta: {"loss": delta.norm()},
    )  # fmt: skip
    assert found["none"].rsa == pytest.approx([1, 1, 1]) and found["none"].cka == pytest.approx([1, 1, 1])
    for way in ("rsa", "cka"):
        small, large = getattr(found["small"], way), getattr(found["large"], way)
        assert small[:2] == pytest.approx([1, 1]) and large[:2] == pytest.approx([1, 1])
        assert large[2] < small[2] < 1
    assert found["large"].before == {"loss": 0.0} and found["large"].after["loss"] > found["small"].after["loss"] > 0
    assert found["large"].tokens == 300
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_special_and_padding_tokens_are_never_sampled():
    model, data = classifier(), batches(1, 4)
    data[0]["attention_mask"] = data[0]["attention_mask"].clone()
    data[0]["attention_mask"][:, 6:] = 0
    special = data[0]["input_ids"][:, 0].tolist()
    found = forgetting(model, {"none": Delta({})}, data, special=special)["none"]
    assert found.tokens == sum(int(i) not in special for i in data[0]["input_ids"][:, :6].flatten())
    with pytest.raises(BadData, match="hold 0 ordinary tokens"):
        forgetting(model, {"none": Delta({})}, data, special=range(95))
    with pytest.raises(BadPlan, match="iterated only once"):
        forgetting(model, {"none": Delta({})}, iter(data))
