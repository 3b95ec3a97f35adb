"""Lanczos against dense eigenvalues, gradient norms against autograd, on matrices and on a tiny model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.functional import hessian

from gossamer.analyze.spectrum import Entries, gradient_norms, lanczos, smallest_curvature
from gossamer.errors import BadData, BadPlan
from gossamer.select.attention import plain_attention
from tests.tiny import batches, bits, classifier, same_bits


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 30), seed=st.integers(0, 1000), rank=st.integers(0, 30))
def test_lanczos_finds_the_smallest_eigenvalue(size, seed, rank):
    torch.manual_seed(seed)
    root = torch.randn(size, min(rank, size), dtype=torch.float64)  # low rank: many eigenvalues are 0
    matrix = root @ root.T - (torch.outer(root[:, 0], root[:, 0]) * 2 if rank else 0)
    found = lanczos(lambda v: matrix @ v, size, steps=size, tolerance=1e-12, seed=seed)
    dense = torch.linalg.eigvalsh(matrix)
    assert found.value == pytest.approx(float(dense[0]), abs=1e-7 * (1 + float(dense.abs().max())))
    assert found.steps <= size


def test_a_ritz_value_is_never_below_and_the_residual_says_how_near():
    torch.manual_seed(0)
    root = torch.randn(200, 200, dtype=torch.float64)
    matrix = root + root.T
    dense = torch.linalg.eigvalsh(matrix)
    for steps in (3, 10, 60):
        found = lanczos(lambda v: matrix @ v, 200, steps=steps, tolerance=0.0)
        assert found.steps == steps and found.value >= float(dense[0]) - 1e-9
        assert float((dense - found.value).abs().min()) <= found.residual + 1e-9
    assert found.value == pytest.approx(float(dense[0]), rel=1e-6)


def test_a_model_against_dense_derivatives():
    model = classifier(hidden_dropout_prob=0.0).double()
    before = bits(model)
    weight, bias = model.bert.encoder.layer[0].output.dense.weight, model.classifier.bias
    where = torch.tensor([0, 5, 17, 100, 300])
    entries = Entries({"w": (weight, where), "b": (bias, None)})
    data = batches(3, 4)

    def loss(batch):
        return model(**batch).loss

    with plain_attention(model, "the test"):
        found = smallest_curvature(model, entries, data, loss, steps=7, tolerance=1e-10)

    model.eval()
    names = [n for n, p in model.named_parameters() if p is weight or p is bias]

    def at(vector):
        w = weight.detach().reshape(-1).index_copy(0, where, vector[:5]).reshape(weight.shape)
        swapped = dict(zip(names, (w, vector[5:]), strict=True))
        return sum(torch.func.functional_call(model, swapped, (), b).loss for b in data) / 3

    with plain_attention(model, "the test"):
        dense = torch.linalg.eigvalsh(hessian(at, entries.gather([weight.detach(), bias.detach()])))
    assert found.value == pytest.approx(float(dense[0]), abs=1e-8)
    assert same_bits(model, before) and all(p.requires_grad and p.grad is None for p in model.parameters())

    singles = [{n: v[i : i + 1] for n, v in b.items()} for b in data for i in range(4)]
    norms = gradient_norms(model, entries, singles, loss)
    for one, norm in zip(singles, norms, strict=True):
        model.zero_grad()
        loss(one).backward()
        expected = torch.cat([weight.grad.reshape(-1)[where], bias.grad]).norm()
        assert norm == pytest.approx(float(expected), rel=1e-9)


def test_bad_input():
    model = classifier()
    entries = Entries({"b": (model.classifier.bias, None)})
    with pytest.raises(BadData, match="batches are empty"):
        smallest_curvature(model, entries, [], lambda batch: model(**batch).loss)
    with pytest.raises(BadPlan, match="no entries"):
        gradient_norms(model, Entries({}), [], lambda batch: model(**batch).loss)
    with pytest.raises(BadPlan, match="NaN or infinite"):
        lanczos(lambda v: v * float("nan"), 3)
    with pytest.raises(BadPlan, match="NaN or infinite"):
        gradient_norms(model, entries, batches(1, 1), lambda batch: model(**batch).loss * float("inf"))
    with pytest.raises(BadPlan, match="in 0 steps"):
        lanczos(lambda v: v, 3, steps=0)
