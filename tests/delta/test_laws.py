"""The laws of delta arithmetic, against dense NumPy arithmetic in float64."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gossamer.delta.base import Record
from gossamer.delta.delta import Delta
from gossamer.delta.graft import Graft, shapes
from gossamer.delta.patch import Dense, LowRank, Sparse
from gossamer.delta.store import load
from gossamer.errors import BadPlan, BaseMismatch, Clash, NotLinear

SHAPES = {"a": (5, 7), "b": (11,), "c": (3, 4), "d": (2, 3, 2)}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
KINDS = ("sparse", "dense", "lowrank")
coefficients = st.one_of(st.sampled_from([1.0, -1.0, 0.5, 2.0, 3.0]), st.floats(-8, 8).filter(lambda c: abs(c) > 1e-3))


def patch_of(kind: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Sparse | Dense | LowRank:
    rng = torch.Generator().manual_seed(seed)
    if kind == "lowrank" and len(shape) == 2:
        rank = 1 + seed % 3
        return LowRank(*(torch.randn(s, generator=rng).to(dtype) for s in ((shape[0], rank), (rank, shape[1]))))
    if kind == "dense":
        return Dense(torch.randn(shape, generator=rng).to(dtype))
    size = math.prod(shape)
    indices = torch.randperm(size, generator=rng)[: seed % (size + 1)].sort().values
    return Sparse(shape, indices, torch.randn(indices.numel(), generator=rng).to(dtype))


@st.composite
def deltas(draw: st.DrawFn, kinds: tuple[str, ...] = KINDS) -> Delta:
    names = draw(st.sets(st.sampled_from(sorted(SHAPES)), min_size=1))
    kind, dtype, seed = st.sampled_from(kinds), st.sampled_from(DTYPES), st.integers(0, 50)
    return Delta.of({name: patch_of(draw(kind), SHAPES[name], draw(dtype), draw(seed)) for name in sorted(names)})


def full(delta: Delta, *, absolute: bool = False) -> dict[str, np.ndarray]:
    """Every entry of the change in float64; `absolute` adds magnitudes up instead, as a scale for rounding errors."""
    size = np.abs if absolute else np.asarray
    found = {name: np.zeros(math.prod(shape)) for name, shape in SHAPES.items()}
    for name, terms in delta.terms.items():
        for c, patch in terms:
            if isinstance(patch, Sparse):
                found[name][patch.indices.numpy()] += size(c) * size(patch.values.double().numpy())
            elif isinstance(patch, Dense):
                found[name] += size(c) * size(patch.values.double().numpy()).ravel()
            else:
                left, right = (size(t.double().numpy()) for t in (patch.left, patch.right))
                found[name] += size(c) * (left @ right).ravel()
    return found


def same(a: Delta, b: Delta) -> None:
    """Equal as sums in float64, and, without low-rank patches, to one ulp of the coalesced fp32 values."""
    left, right, scale = full(a), full(b), full(a, absolute=True)
    for name in SHAPES:
        assert (np.abs(left[name] - right[name]) <= 2.0**-48 * scale[name]).all()
    left, right = full(a.coalesce()), full(b.coalesce())
    for name in SHAPES:
        if not any(isinstance(patch, LowRank) for d in (a, b) for _, patch in d.terms.get(name, ())):
            ulp = np.spacing(np.maximum(np.abs(left[name]), np.abs(right[name])).astype(np.float32))
            assert (np.abs(left[name] - right[name]) <= ulp + 2.0**-48 * scale[name]).all()


@given(deltas(), deltas(), coefficients, coefficients)
def test_addition_commutes(a, b, c, d):
    assert a + b == b + a
    assert c * a + d * b == d * b + c * a
    assert (a + b).base == (b + a).base


@given(deltas(), deltas(), deltas(), coefficients, coefficients)
def test_addition_associates(a, b, c, x, y):
    assert (a + b) + c == a + (b + c)
    same((x * a + y * b) + c, x * a + (y * b + c))
    assert sum([a, b, c]) == a + b + c


@given(deltas(), deltas(), coefficients, coefficients)
def test_scaling_distributes(a, b, c, d):
    same(c * (a + b), c * a + c * b)
    same((c + d) * a, c * a + d * a)
    same(c * (d * a), (c * d) * a)


@given(deltas(), deltas(), coefficients)
def test_inverse_and_neutral_elements(a, b, c):
    assert not (a - a).terms
    assert not (c * a - c * a).terms
    assert not (0 * a).terms
    assert a + b - b == a
    assert 1.0 * a == a
    assert -1 * -a == a
    assert a + Delta({}) == a


@given(deltas(), deltas(), coefficients)
def test_operands_stay_as_they_were(a, b, c):
    before = {name: [(x, patch.key) for x, patch in terms] for name, terms in a.terms.items()}
    _ = (a + c * b).coalesce(), a - b, (c * a).rounded("bf16"), a.dot(b)
    fresh = Delta({name: tuple((x, dataclasses.replace(p)) for x, p in terms) for name, terms in a.terms.items()})
    assert {name: [(x, patch.key) for x, patch in terms] for name, terms in fresh.terms.items()} == before


@given(deltas(), deltas(), coefficients)
def test_coalescing_keeps_the_change(a, b, c):
    whole = (a + c * b).coalesce()
    assert all(len({type(patch) for _, patch in terms}) == len(terms) for terms in whole.terms.values())
    assert whole.coalesce() == whole
    exact, found, scale = full(a + c * b), full(whole), full(a + c * b, absolute=True)
    for name in SHAPES:
        np.testing.assert_array_less(np.abs(exact[name] - found[name]), 2.0**-22 * scale[name] + 1e-300)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_lone_patch_of_its_kind_keeps_its_dtype(dtype):
    a = Delta.of({"a": patch_of("sparse", (5, 7), dtype, 9)}) + Delta.of({"a": patch_of("lowrank", (5, 7), dtype, 9)})
    assert a.coalesce() == a


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.integers(0, 99)), min_size=2, max_size=12))
def test_a_sum_of_many_is_rounded_once(parts):
    def on_grid(dtype, seed):  # multiples of 2^-20 below 2^3, so that no sum in float64 is inexact
        rng = torch.Generator().manual_seed(seed)
        patch = patch_of("sparse", (11,), torch.float32, 1 + seed % 11)
        values = torch.randint(-(1 << 23), 1 << 23, (patch.count,), generator=rng) * 2.0**-20
        return Sparse((11,), patch.indices, values.to(dtype))

    whole = sum(Delta.of({"b": on_grid(*part)}) for part in parts)
    exact = [Fraction(0)] * 11
    for c, patch in whole.terms.get("b", ()):
        for index, value in zip(patch.indices.tolist(), patch.values.tolist(), strict=True):
            exact[index] += Fraction(c) * Fraction(value)
    for _, patch in whole.coalesce().terms.get("b", ()):
        wanted = torch.tensor([float(exact[i]) for i in patch.indices], dtype=torch.float64)
        assert torch.equal(patch.values, wanted.to(patch.values.dtype))
        bf16 = [float(value) for (_, p) in whole.rounded("bf16").terms["b"] for value in p.values]
        for found, index in zip(bf16, patch.indices.tolist(), strict=True):
            assert found == 0 == exact[index] or abs(found - exact[index]) <= abs(exact[index]) * 2.0**-8


@given(deltas(), deltas())
def test_dot_and_norm_are_those_of_the_dense_change(a, b):
    left, right, scale = full(a + 0.5 * b), full(b), full(b, absolute=True)
    bound = sum(full(a + b, absolute=True)[name] @ scale[name] for name in SHAPES) * 1e-12 + 1e-12
    assert math.isclose((a + 0.5 * b).dot(b), sum(left[name] @ right[name] for name in SHAPES), abs_tol=bound)
    assert a.dot(b) == b.dot(a)
    assert math.isclose(a.norm(), math.sqrt(sum(v @ v for v in full(a).values())), rel_tol=1e-12)


@given(deltas(), deltas())
def test_load_of_save_is_the_delta_bit_for_bit(tmp_path_factory, a, b):
    path = tmp_path_factory.mktemp("laws") / "d.safetensors"
    for delta in (a, (a + 0.3 * b).coalesce(), a.rounded("bf16"), a.rounded("fp32")):
        delta.save(path, force=True)
        assert load(path) == delta
    (a + 0.3 * b).save(path, force=True)
    assert load(path) == (a + 0.3 * b).coalesce()


def test_everything_else_comes_back_from_the_file_too(tmp_path, every_kind):
    size = every_kind.save(tmp_path / "d.safetensors")
    found = load(tmp_path / "d.safetensors")
    assert found == every_kind
    assert (found.base, found.about) == (every_kind.base, every_kind.about)
    assert size == (tmp_path / "d.safetensors").stat().st_size
    assert {t.dtype for t in found.head.values()} == {torch.float32, torch.float16}
    assert (found.k, found.m, found.density) == (8 + 1 + 2 + 6 + 14, 65, 31 / 65)


def test_a_loaded_delta_does_not_depend_on_its_file(tmp_path, every_kind):
    path = tmp_path / "d.safetensors"
    every_kind.save(path)
    found = load(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert found == every_kind


def test_one_tensor_may_serve_several_parameters(tmp_path):
    shared = torch.randn(4, 4)
    delta = Delta.of(
        {"a": Dense(shared), "b": Dense(shared), "c": Dense(shared[1:])}, head={"h": shared.expand(2, 4, 4)}
    )
    delta.save(tmp_path / "d.safetensors")
    assert load(tmp_path / "d.safetensors") == delta


def test_values_are_rounded_once_and_as_a_whole():
    tie = torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)  # by way of fp32 it would become 1
    assert Delta.of({"b": Sparse((11,), torch.tensor([3]), tie)}).rounded("bf16").terms["b"][0][1].values == 1 + 2.0**-7
    halves = 0.5 * Delta.of({"b": Dense(torch.full((11,), 1 + 2.0**-8))}) + Delta.of({"b": Dense(torch.ones(11))})
    ((coefficient, patch),) = halves.rounded("bf16").terms["b"]
    assert coefficient == 1.0
    assert patch.values.dtype == torch.bfloat16
    assert float(patch.values[0]) == 1.5
    with pytest.raises(BadPlan, match="fp8"):
        halves.rounded("fp8")


# grafts ---------------------------------------------------------------------------------------------------------------


def graft_of(place: str, level: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Graft:
    rng = torch.Generator().manual_seed(seed + 10 * level)
    kind = "invertible" if place == "e" else "bottleneck"
    return Graft(place, {p: torch.randn(s, generator=rng).to(dtype) for p, s in shapes(kind, 5, 2).items()}, kind,
                 level=level)  # fmt: skip


@st.composite
def grafted(draw: st.DrawFn) -> Delta:
    """Any delta with grafts; at one place and level always the same one, so that no two clash."""
    places = draw(st.sets(st.tuples(st.sampled_from("efg"), st.integers(0, 2)), min_size=1))
    return dataclasses.replace(draw(deltas()), grafts=tuple(graft_of(*place) for place in places))


@given(grafted(), grafted(), grafted(), deltas(), coefficients)
def test_grafts_are_kept_side_by_side(a, b, c, plain, x):
    assert a + b == b + a
    assert (a + b).digest == (b + a).digest
    assert (a + b) + c == a + (b + c)
    assert {(g.place, g.level) for g in (a + b).grafts} == {(g.place, g.level) for d in (a, b) for g in d.grafts}
    assert (a + a).grafts == a.grafts == (a + x * plain).grafts == (a - plain).grafts
    assert a + Delta({}) == a == 1.0 * a == 1 * a
    assert a + plain - plain == a
    assert a.digest != dataclasses.replace(a, grafts=()).digest
    assert (a + b).coalesce().grafts == (a + b).grafts
    assert a.k == dataclasses.replace(a, grafts=()).k + sum(graft.count for graft in a.grafts)


@given(grafted(), grafted(), coefficients)
def test_grafts_do_not_scale_or_subtract(a, b, c):
    for wrong in (lambda: -a, lambda: 0 * a, lambda: a - a, lambda: b - a, lambda: (c if c != 1 else 2) * a):
        with pytest.raises(NotLinear, match="nor subtracted"):
            wrong()


@given(grafted(), grafted())
def test_grafts_come_back_from_the_file(tmp_path_factory, a, b):
    path = tmp_path_factory.mktemp("laws") / "d.safetensors"
    for delta in (a, (a + b).coalesce(), a.rounded("bf16"), dataclasses.replace(a, terms={})):
        delta.save(path, force=True)
        assert load(path) == delta
    assert all(t.dtype == torch.bfloat16 for graft in a.rounded("bf16").grafts for t in graft.tensors.values())


def test_two_unlike_grafts_want_two_levels():
    a, b = (Delta({}, grafts=(graft_of("f", 0, seed),)) for seed in (1, 2))
    with pytest.raises(Clash, match="level=1"):
        a + b
    with pytest.raises(Clash):
        Delta({}, grafts=(*a.grafts, *b.grafts))
    for change in ({"level": 1}, {"activation": "gelu"}, {"place": "g"}):
        other = Delta({}, grafts=(dataclasses.replace(a.grafts[0], **change),))
        assert other != a
        assert other.digest != a.digest
    assert "grafts=1" in repr(a)
    assert a.norm() == 0.0


def test_a_file_without_grafts_is_of_the_first_version(tmp_path, every_kind, with_grafts):
    every_kind.save(tmp_path / "plain.safetensors")
    with_grafts.save(tmp_path / "grafted.safetensors")
    assert b'"format\\":1' in (tmp_path / "plain.safetensors").read_bytes()
    assert b'"format\\":2' in (tmp_path / "grafted.safetensors").read_bytes()
    assert b"graft" not in (tmp_path / "plain.safetensors").read_bytes()
    assert load(tmp_path / "grafted.safetensors") == with_grafts


# heads, bases, provenance ---------------------------------------------------------------------------------------------

BODY = Delta.of({"b": patch_of("sparse", (11,), torch.float32, 6)})
WITH = dataclasses.replace(BODY, head={"classifier.bias": torch.tensor([1.0, 2.0])})
OTHER = dataclasses.replace(BODY, head={"classifier.bias": torch.tensor([1.0, 3.0])})


def test_heads_stay_outside_the_algebra():
    kept = WITH.head["classifier.bias"]
    for delta in (0.5 * WITH, WITH * -2, -WITH, 0 * WITH, WITH + BODY, BODY + WITH, WITH - OTHER, WITH + WITH):
        assert torch.equal(delta.head["classifier.bias"], kept)
    assert not (BODY - WITH).head
    with pytest.raises(Clash, match="keep one"):
        WITH + OTHER
    assert WITH != OTHER
    assert WITH != BODY
    assert WITH + OTHER.without_head() == 2 * WITH


def test_deltas_of_unlike_bases_do_not_add():
    def on(digest: str, dtype: str = "float32", **more: str) -> Delta:
        return dataclasses.replace(BODY, base={"b": Record((11,), dtype, {dtype: digest, **more})})

    with pytest.raises(BaseMismatch, match="different bases"):
        on("0") + on("1")
    rich, poor = on("0", bfloat16="2"), on("2", "bfloat16")
    assert (rich + poor).base == (poor + rich).base == rich.base
    with pytest.raises(BaseMismatch, match="shapes"):
        BODY + Delta.of({"b": Dense(torch.zeros(12))})


@pytest.mark.parametrize("bad", [math.nan, math.inf, "2", None, torch.tensor(2.0)])
def test_only_finite_numbers_scale(bad):
    with pytest.raises(NotLinear):
        BODY * bad
    with pytest.raises(NotLinear):
        BODY * 1e200 * 1e200


def test_only_deltas_add():
    for bad in (1, "x", None):
        with pytest.raises(TypeError):
            BODY + bad
        with pytest.raises(TypeError):
            BODY - bad


def test_provenance_of_a_sum():
    task = {"task": {"kind": "tag"}, "base": "minilm", "method": "lt-sft"}
    language = {"task": {"kind": "mask"}, "base": "minilm", "method": "lt-sft"}
    t, l1, l2 = (dataclasses.replace(d, about=about) for d, about in ((WITH, task), (BODY, language), (BODY, language)))
    for about in ((t + 0.5 * l1).about, (0.5 * l1 + t).about):
        assert about["task"] == {"kind": "tag"}
        assert about["base"] == "minilm"
        assert sorted(c for c, _ in about["parts"]) == [0.5, 1.0]
    assert (l1 - l2).about["task"] == {"kind": "mask"}
    assert [c for c, _ in (2 * (l1 - 3 * l2)).about["parts"]] == [2.0, -6.0]
    assert "task" not in (l1 + dataclasses.replace(l2, about=task)).about  # neither has a head, so neither decides
    assert (1.0 * t).about == task


@pytest.mark.parametrize("indices", [[3, 1], [1, 1], [-1, 2], [0, 11]])
def test_a_sparse_patch_refuses_bad_indices(indices):
    with pytest.raises(BadPlan, match="sorted, unique"):
        Sparse((11,), torch.tensor(indices), torch.zeros(2))


def test_patches_refuse_what_they_cannot_hold():
    for bad in (lambda: Dense(torch.zeros(3, dtype=torch.int64)), lambda: LowRank(torch.zeros(3, 2), torch.zeros(3, 2)),
                lambda: Sparse((3,), torch.tensor([0]), torch.zeros(2)),
                lambda: Sparse((3,), torch.tensor([0.0]), torch.zeros(1))):  # fmt: skip
        with pytest.raises(BadPlan):
            bad()


def test_support_is_that_of_the_sparse_patches():
    a, b = (Delta.of({"a": patch_of("sparse", (5, 7), torch.float32, seed)}) for seed in (3, 9))
    assert (a + b).support == a.support | b.support
    assert ((a + b).support - a.support) == b.support - a.support
    assert a.support.jaccard(a.support) == 1.0
    assert (a.support & b.support).k + (a.support | b.support).k == 12
    with pytest.raises(NotLinear, match="dense or low-rank"):
        _ = Delta.of({"a": patch_of("dense", (5, 7), torch.float32, 3)}).support
