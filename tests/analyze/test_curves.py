"""Curves: nested subsets, sensitivity to the rate, overfitting; and slices of the loss."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.analyze.curves import nested, overfitting, sensitivity
from gossamer.analyze.surface import direction, surface
from gossamer.delta.apply import applied
from gossamer.delta.delta import Delta
from gossamer.delta.patch import Dense, LowRank, Sparse
from gossamer.errors import BadData, BadPlan
from gossamer.tasks.readers import subset
from tests.tiny import batches, bits, classifier, same_bits


@given(n=st.integers(1, 60), sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_subsets_are_nested_and_those_of_readers(n, sizes, seed):
    sizes = [min(size, n) for size in sizes]
    found = nested(n, sizes, seed=seed)
    assert list(found) == sorted(set(sizes))
    for small, large in zip(list(found)[:-1], list(found)[1:], strict=True):
        assert found[large][:small] == found[small]
    assert all(len(set(places)) == size for size, places in found.items())
    rows = {"row": list(range(n))}
    assert [list(p) for p in nested(n, sizes).values()] == [subset(rows, s)["row"] for s in sorted(set(sizes))]


def test_sensitivity_by_hand():
    scores = {(1e-4, 0): 0.5, (1e-4, 1): 0.7, (1e-3, 0): 0.9, (1e-3, 1): 0.9, (1e-2, 0): 0.8, (1e-2, 1): 0.98}
    found = sensitivity(scores, within=0.02)
    assert found.means == pytest.approx({1e-4: 0.6, 1e-3: 0.9, 1e-2: 0.89})
    assert found.best == 1e-3 and found.share == 2 / 3 and found.span == pytest.approx(0.3)
    assert found.sd == pytest.approx(torch.tensor([0.6, 0.9, 0.89], dtype=torch.float64).std().item())
    assert found.spreads[1e-3] == 0.0
    assert sensitivity(scores, falling=True).best == 1e-4
    one = sensitivity({cell: score for cell, score in scores.items() if cell[1] == 0})
    assert set(one.spreads.values()) == {None}
    with pytest.raises(BadData, match=r"lacks rate 0\.01 with seed 1"):
        sensitivity({cell: score for cell, score in scores.items() if cell != (1e-2, 1)})
    with pytest.raises(BadData, match="two or more"):
        sensitivity({(1e-3, 0): 0.5})
    with pytest.raises(BadData, match="seed 1 is nan"):
        sensitivity({**scores, (1e-2, 1): math.nan})


def test_overfitting_by_hand():
    found = overfitting([(0, 1.0), (10, 0.5), (20, 0.1)], [(5, 0.9), (10, 0.7), (15, 0.8), (20, 1.0)])
    assert found.gap == pytest.approx(0.9) and found.best_step == 10
    assert found.best_gap == pytest.approx(0.2) and found.rise == pytest.approx(0.3)
    assert overfitting([(0, 1.0)], [(0, 1.0), (1, 0.5)]).rise == 0.0
    with pytest.raises(BadData, match="steps rising"):
        overfitting([(0, 1.0)], [(1, 1.0), (1, 0.5)])
    with pytest.raises(BadData, match="not finite"):
        overfitting([(0, math.nan)], [(1, 1.0)])
    with pytest.raises(BadPlan, match="from 1 to 3"):
        nested(3, [4])


def test_a_direction_has_the_norm_of_every_filter():
    model = classifier()
    name, other = "encoder.layer.0.output.dense.weight", "encoder.layer.1.output.dense.weight"
    shape = (16, 32)
    where = torch.tensor([0, 3, 31, 32, 40, 511])
    sparse = Sparse(shape, where, torch.full((6,), 0.25))
    delta = Delta.of(
        {name: sparse, other: Dense(torch.ones(shape)), "encoder.layer.0.output.dense.bias": Dense(torch.ones(16))}
    )
    way = direction(model, delta, seed=3)
    assert way.terms.keys() == {name, other} and way == direction(model, delta, seed=3) != direction(
        model, delta, seed=4
    )
    with applied(model, delta):
        now = {n: model.bert.get_parameter(n).detach().clone() for n in (name, other)}
    for n in (name, other):
        ((_, patch),) = way.terms[n]
        moved = torch.zeros(512).index_copy(0, patch.indices, patch.values).reshape(shape)
        held = torch.where(moved != 0, now[n], 0)
        assert torch.allclose(moved.norm(dim=1), held.norm(dim=1), rtol=1e-4)


def test_slices_pass_through_the_delta_and_leave_the_base():
    model = classifier()
    before = bits(model)
    model.eval()
    (batch,) = batches(1, 8)
    head = {"classifier.bias": torch.tensor([0.5, -0.5])}
    name = "encoder.layer.0.output.dense.weight"
    delta = Delta.of({name: Sparse((16, 32), torch.arange(0, 512, 7), torch.ones(74))}, head=head)

    def loss():
        with torch.no_grad():
            return float(model(**batch).loss)

    line = surface(model, delta, loss, points=5, span=2.0, seed=1)
    with applied(model, delta):
        here = loss()
    with applied(model, delta + 2.0 * direction(model, delta, seed=1)):
        end = loss()
    assert line.places == (-2.0, -1.0, 0.0, 1.0, 2.0)
    assert line.losses[2] == here and line.losses[-1] == end != here
    plane = surface(model, delta, loss, dimensions=2, points=3, span=2.0, seed=1)
    assert [row[1] for row in plane.losses] == [line.losses[0], line.losses[2], line.losses[4]]
    assert same_bits(model, before)
    with pytest.raises(BadPlan, match="odd number"):
        surface(model, delta, loss, points=4)
    with pytest.raises(BadPlan, match="no matrix"):
        direction(model, Delta.of({"encoder.layer.0.output.dense.bias": Dense(torch.ones(16))}))
    with pytest.raises(BadPlan, match="low-rank"):
        direction(model, Delta.of({name: LowRank(torch.ones(1, 32), torch.ones(16, 1))}))
