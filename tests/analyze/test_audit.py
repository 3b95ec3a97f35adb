"""The audit counts on the weights themselves: not what is stored, but what differs."""

from __future__ import annotations

import pytest
import torch

import gossamer as gs
from gossamer.analyze.audit import audit
from gossamer.delta.base import identity
from gossamer.delta.delta import Delta
from gossamer.delta.patch import Dense, LowRank, Sparse
from tests.contracts.test_methods import Loop, build, data
from tests.tiny import bits, same_bits

FIRST, SECOND = "encoder.layer.0.output.dense.weight", "encoder.layer.1.output.dense.weight"  # [16, 32]


def test_what_is_stored_but_changes_nothing_does_not_count() -> None:
    model = build("bert")
    model.bert.get_parameter(FIRST).data.view(-1)[:4] = torch.tensor([1.0, 1.0, 1.0, 0.0])
    before = bits(model)
    patch = Sparse((16, 32), torch.tensor([0, 1, 2, 3, 9]), torch.tensor([0.5, 1e-12, 0.0, -1e-30, 0.25]))
    low = LowRank(torch.ones(16, 2), torch.ones(2, 32))
    delta = Delta.of(
        {FIRST: patch, SECOND: low, "embeddings.LayerNorm.bias": Dense(torch.ones(16))}, base=identity(model)
    )
    rows = {row.name: row for row in audit(model, delta)}
    assert same_bits(model, before)
    assert (rows[FIRST].size, rows[FIRST].stored, rows[FIRST].differ, rows[FIRST].padded) == (512, 5, 3, 0)
    assert (rows[SECOND].stored, rows[SECOND].differ, rows[SECOND].padded) == (96, 512, 96)
    assert rows["embeddings.LayerNorm.bias"].differ == 16
    assert sum(row.differ for row in rows.values()) == 3 + 512 + 16
    assert sum(row.size for row in rows.values()) == sum(p.numel() for p in model.bert.parameters())


@pytest.mark.parametrize("method", ["random", "bitfit", "lt-sft", "full"])
def test_a_trained_delta_changes_no_more_than_it_stores(method: str) -> None:
    model, train = build("bert"), data("bert")
    counted = gs.methods()[method].counted
    delta = gs.fit(model, method, trainer=lambda m: Loop(m, train), k=200 if counted else None)
    rows = audit(model, delta)
    assert all(row.differ <= row.stored for row in rows)
    assert 0 < sum(row.differ for row in rows) <= sum(row.stored for row in rows) == delta.k


def test_added_modules_pad_the_base() -> None:
    model, train = build("bert"), data("bert")
    for method in ("pfeiffer", "lora"):
        delta = gs.fit(model, method, trainer=lambda m: Loop(m, train))
        rows = audit(model, delta)
        assert sum(row.padded for row in rows) == sum(row.stored for row in rows) == delta.k
        assert (sum(row.differ for row in rows) > 0) == (method == "lora")


def test_another_base_is_refused() -> None:
    delta = Delta.of({FIRST: Dense(torch.ones(16, 32))}, base=identity(build("bert")))
    other = build("bert")
    other.bert.get_parameter(FIRST).data.add_(1.0)
    with pytest.raises(gs.GossamerError, match="wrong base"):
        audit(other, delta)
