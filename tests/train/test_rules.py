"""Rows that choose weights by data, at the public door: options, twins, and what their deltas say of them."""

from __future__ import annotations

import pytest

import gossamer as gs
from gossamer.train.plan import described, row_of
from tests.contracts.test_methods import CONFIGS, Loop, build, data
from tests.tiny import bits, same_bits


@pytest.mark.parametrize("architecture", CONFIGS)
def test_curvature_by_hutchinson_on_every_architecture(architecture: str) -> None:
    model, train = build(architecture), data(architecture)
    before, kind = bits(model), model.config._attn_implementation
    delta = gs.fit(
        model, "sam", trainer=lambda m: Loop(m, train), k=101, data=train, curvature="hutchinson", probes=2, warmup=2
    )
    assert delta.k == 101
    assert delta.about["options"] | {"curvature": "hutchinson", "probes": 2} == delta.about["options"]
    assert same_bits(model, before)
    assert model.config._attn_implementation == kind


def test_curvature_by_hutchinson_in_bf16_and_its_seed() -> None:
    def support(model, **options):  # type: ignore[no-untyped-def]
        with gs.tune(model, "sam", k=300, data=data("bert"), curvature="hutchinson", **options) as tuned:
            return tuned.delta().support

    assert support(build("bert").bfloat16()).k == 300
    model = build("bert")
    assert support(model, seed=1) == support(model, seed=1) != support(model, seed=2)


@pytest.mark.parametrize("row", [row for row in gs.methods().values() if row.twin], ids=lambda row: row.name)
def test_twins_choose_the_same_weights(row) -> None:  # type: ignore[no-untyped-def]
    model, found = build("bert"), []
    for name in (row.name, row.twin):
        with gs.tune(model, name, k=300, data=data("bert"), warmup=2) as tuned:
            found.append(tuned.delta().support)
    assert found[0] == found[1]
    assert not row_of(row.twin).twin, "a twin is of the row that stands for both"


def test_fisher_says_what_it_squares() -> None:
    model, found = build("bert"), {}
    for per in ("example", "batch"):
        with gs.tune(model, "fisher", k=300, data=data("bert"), per=per) as tuned:
            found[per] = tuned.delta()
            assert found[per].about["options"]["per"] == per
    assert found["example"].support != found["batch"].support


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("fisher", {"per": "token"}, "fisher: per='token'; expected one of example, batch"),
        ("fisher", {"per": ["batch"]}, "expected one of example, batch"),
        ("sam", {"curvature": True}, "curvature=True; expected one of identity, hutchinson"),
        ("sam", {"probes": 0}, "probes=0; expected a whole number, 1 or more"),
        (
            "sam",
            {"order": 2},
            "sam has no option 'order'; it takes per_tensor=false, examples=1024, .*curvature=identity.hutch",
        ),
        ("full", {"order": 2}, "it takes no options"),
    ],
)
def test_options_are_told_with_their_values(method: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(gs.GossamerError, match=says), gs.tune(build("bert"), method, data=data("bert"), **options):  # type: ignore[arg-type]
        pass


def test_defaults_are_the_first_values() -> None:
    row = row_of("sam")
    assert row.defaults == {"per_tensor": False, "examples": 1024, "warmup": 50, "curvature": "identity", "probes": 1}
    assert described(row_of("lt-sft")) == ["per_tensor=false", "rounds=1", "l1=0"]
