"""interference against dense arithmetic of a few lines, for every mix of patches; its prediction; its picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gossamer as gs
from gossamer.analyze.interference import Interference, Meeting
from gossamer.analyze.picture import plot
from gossamer.delta.base import identity
from gossamer.delta.graft import Graft, shapes
from gossamer.delta.patch import Dense, LowRank, Patch, Sparse
from gossamer.delta.support import Support
from gossamer.errors import BadPlan, BaseMismatch
from tests.tiny import classifier

SHAPE = (3, 4)
NAMES = ("embeddings.word", "layer.0.a", "layer.0.b", "layer.10.a", "layer.2.a")
# sixteenths: small enough that sums and products are exact, and order cannot matter
numbers = st.integers(-3, 3).map(lambda i: i / 16)


@st.composite
def patches(draw: st.DrawFn) -> Patch:
    kind = draw(st.sampled_from(["sparse", "sparse", "dense", "low"]))
    if kind == "sparse":
        where = sorted(draw(st.sets(st.integers(0, 11), max_size=6)))
        return Sparse(SHAPE, torch.tensor(where, dtype=torch.int64), torch.tensor([draw(numbers) for _ in where]))
    if kind == "dense":
        return Dense(torch.tensor([draw(numbers) for _ in range(12)]).reshape(SHAPE))
    left, right = (torch.tensor([draw(numbers) for _ in range(n)]) for n in (3, 4))
    return LowRank(left[:, None], right[None])


@st.composite
def deltas(draw: st.DrawFn) -> gs.Delta:
    touched = draw(st.sets(st.sampled_from(NAMES)))
    terms = {
        n: tuple((c, draw(patches())) for c in draw(st.lists(st.sampled_from([1.0, -2.0]), max_size=2)))
        for n in touched
    }
    return gs.Delta(terms)


def flat(delta: gs.Delta, prefix: str = "") -> torch.Tensor:
    found = []
    for name in (n for n in NAMES if n.startswith(prefix)):
        total = torch.zeros(12, dtype=torch.float64)
        for coefficient, patch in delta.terms.get(name, ()):
            patch.add_to(total, coefficient)
        found.append(total)
    return torch.cat(found)


def check(met: Meeting, x: torch.Tensor, y: torch.Tensor) -> None:
    both, either, differ = (x != 0) & (y != 0), (x != 0) | (y != 0), x * y < 0
    least = torch.minimum(x.abs(), y.abs())
    assert (met.shared, met.conflicts) == (int(both.sum()), int(differ.sum()))
    assert met.jaccard == (float(both.sum() / either.sum().double()) if either.any() else 0.0)
    assert met.conflict_mass == pytest.approx(float(least[differ].sum() / least.sum()) if least.any() else 0.0)
    if x.any() and y.any():
        assert met.cosine == pytest.approx(float(x @ y / (x.norm() * y.norm())), abs=1e-12)
        assert met.ratio == pytest.approx(float(y.norm() / x.norm()))
        assert met.predicted[0] == pytest.approx(float((y @ y - 2 * (x * y).clamp(max=0).sum()) / (x @ x)))


@given(deltas(), deltas())
def test_every_measure_is_that_of_dense_arithmetic(a: gs.Delta, b: gs.Delta) -> None:
    found = gs.interference(a, b)
    check(found.pairs["a", "b"], flat(a), flat(b))
    for layer, met in found.layers["a", "b"].items():
        start = layer.replace("layer ", "layer.") + "."
        check(met, flat(a, start), flat(b, start))
    turned = gs.interference(b, a)
    assert turned.loss("a", "b") == pytest.approx(found.loss("b", "a"))
    assert str(found)


@given(st.lists(deltas(), min_size=3, max_size=4))
def test_the_sum_of_all_is_predicted_from_its_pairs(several: list[gs.Delta]) -> None:
    found = gs.interference(*several)
    for i, name in enumerate(found.names):
        own, others = flat(several[i]), [flat(d) for j, d in enumerate(several) if j != i]
        if own.any():
            against = sum(float((own * other).clamp(max=0).sum()) for other in others)
            total = sum(others)
            assert isinstance(total, torch.Tensor)
            assert found.predicted[name] == pytest.approx(
                (float(total @ total) - 2 * against) / float(own @ own), abs=1e-9
            )


def at(indices: list[int], values: list[float]) -> gs.Delta:
    return gs.Delta.of({"w": Sparse((1000,), torch.tensor(indices), torch.tensor(values))})


def test_the_corners() -> None:
    a, same, against, apart = at([0, 1], [3.0, 4.0]), at([0, 1], [3.0, 4.0]), at([0, 1], [-3.0, -4.0]), at([7], [5.0])
    found = gs.interference(a, same, against, apart, names=["a", "same", "against", "apart"])
    assert (found.pairs["a", "same"].jaccard, found.pairs["a", "same"].cosine) == (1.0, 1.0)
    assert found.pairs["a", "against"].conflict == found.pairs["a", "against"].conflict_mass == 1.0
    losses = [found.loss("a", other) for other in ("apart", "same", "against")]
    assert losses == [1.0, 1.0, 3.0], "what pulls back costs more than what lies apart"
    assert found.pairs["a", "same"].by_chance == pytest.approx(2 * 2 / 1000)
    with pytest.raises(BadPlan, match="no pair"):
        found.loss("a", "a")


def test_chance_is_what_random_supports_share() -> None:
    made = [at((torch.randperm(1000)[:300]).sort().values.tolist(), [1.0] * 300) for _ in range(12)]
    pairs = gs.interference(*made).pairs.values()
    mean = sum(met.shared for met in pairs) / len(pairs)
    assert mean == pytest.approx(90, abs=8)
    assert next(iter(pairs)).chance == pytest.approx(90 / 510)


def test_nothing_lost_where_nothing_changes() -> None:
    none = gs.Delta({})
    found = gs.interference(at([1], [1.0]), none)
    assert (found.loss("a", "b"), found.loss("b", "a")) == (0.0, float("inf"))
    assert "predicted_b" not in found.pairs["a", "b"].facts()
    assert str(gs.interference(none, none))


def test_heads_and_modules_take_no_part() -> None:
    tensors = {part: torch.ones(size) for part, size in shapes("bottleneck", 4, 2).items()}
    graft = gs.Delta({}, head={"classifier.weight": torch.ones(2)}, grafts=(Graft("layer.0", tensors),))
    assert gs.interference(at([1], [1.0]) + graft, at([1], [2.0])).pairs["a", "b"].shared == 1


def test_mistakes_are_named() -> None:
    a = at([1], [1.0])
    for wrong, said in (([a], "two or more"), ([a, Support({})], "two or more")):
        with pytest.raises(BadPlan, match=said):
            gs.interference(*wrong)  # type: ignore[arg-type]
    for names in (["x"], ["x", "x"]):
        with pytest.raises(BadPlan, match="names"):
            gs.interference(a, a, names=names)
    with pytest.raises(BadPlan, match="NaN"):
        gs.interference(a, at([1], [float("nan")]))
    with pytest.raises(BaseMismatch, match="'w'"):
        gs.interference(a, gs.Delta.of({"w": Dense(torch.ones(3))}))
    known = [gs.Delta({}, base=identity(classifier(seed))) for seed in (0, 1)]
    with pytest.raises(BaseMismatch, match="different bases"):
        gs.interference(*known)


def test_sparse_changes_never_become_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    zeros = torch.zeros

    def counting(*size: int, **options: object) -> torch.Tensor:
        made.append(size[0])
        return zeros(*size, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "zeros", counting)
    huge = [gs.Delta.of({"w": Sparse((10**6, 10**6), torch.tensor([i, 10**11]), torch.ones(2))}) for i in range(3)]
    found = gs.interference(*huge)
    assert found.pairs["a", "b"].shared == 1
    assert max(made) <= 2


@pytest.mark.parametrize("several", [2, 3])
def test_a_picture(several: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = [
        gs.Delta.of({n: Sparse(SHAPE, torch.tensor([i, 5]), torch.randn(2)) for n in NAMES}) for i in range(several)
    ]
    found = gs.interference(*made)
    assert isinstance(found, Interference)
    assert list(found.layers["a", "b"]) == ["embeddings", "layer 0", "layer 10", "layer 2"]
    plot(found, tmp_path / "p.png")
    plot(gs.interference(gs.Delta({}), at([1], [1.0])), tmp_path / "q.png")
    assert (tmp_path / "p.png").stat().st_size > 1000
