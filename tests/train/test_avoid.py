"""avoid: exactly k weights, none of them another delta's; tasks in a stream leave earlier answers as they were (claim C16)."""

from __future__ import annotations

from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer.delta.base import base_parameters
from gossamer.delta.patch import LowRank
from gossamer.delta.support import Support
from gossamer.errors import BadPlan, BaseMismatch
from gossamer.train.config import gather
from tests.tiny import batches, bits, classifier, same_bits

ABLE = [row.name for row in gs.methods().values() if row.avoids]
UNABLE = [row.name for row in gs.methods().values() if not row.avoids]


class Loop:
    def __init__(self, model: nn.Module, seed: int = 0) -> None:
        self.model, self.seed = model, seed

    def train(self) -> None:
        optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-2)
        for batch in batches(22, seed=self.seed):
            self.model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def fitted(model: nn.Module, method: str, seed: int = 0, **more: Any) -> gs.Delta:
    torch.manual_seed(seed)
    return gs.fit(model, method, trainer=lambda m: Loop(m, seed), data=batches(3, seed=seed), seed=seed, **more)


@pytest.mark.parametrize("method", ABLE)
def test_every_method_that_chooses_leaves_earlier_weights_alone(method: str) -> None:
    model = classifier().eval()
    options = {"per_tensor": True} if method in ("fisher", "child-pruning") else {}
    first = fitted(model, method, k=400, **options)
    again = fitted(model, method, k=400, **options)
    assert again.support == first.support, "without avoid the same weights are chosen"
    second = fitted(model, method, k=400, avoid=[first], **options)
    assert second.support.k == 400
    assert (second.support & first.support).k == 0
    assert second.about["avoid"] == [first.digest]
    assert "avoid" not in first.about
    assert gs.interference(first, second).pairs["a", "b"].shared == 0


@pytest.mark.parametrize("method", UNABLE)
def test_the_others_say_who_can(method: str) -> None:
    taken = Support({next(iter(base_parameters(classifier()))): torch.arange(3)})
    with pytest.raises(BadPlan, match="these do: random, magnitude"):
        gs.fit(classifier(), method, trainer=lambda m: pytest.fail("training began"), avoid=[taken])
    assert {"full", "lora", "bitfit", "mixout", "child-f", "houlsby", "pfeiffer", "spiel-ag", "spiel-ma"} == set(UNABLE)


def test_rounds_grow_outside() -> None:
    model = classifier().eval()
    first = fitted(model, "random", k=3000)
    second = fitted(model, "lt-sft", seed=1, k=301, rounds=3, avoid=first)
    assert second.support.k == 301
    assert (second.support & first.support).k == 0


def test_tasks_in_a_stream_leave_earlier_answers_as_they_were() -> None:
    model, tests = classifier().eval(), batches(2, seed=9)
    before = bits(model)

    def answers(delta: gs.Delta) -> list[torch.Tensor]:
        with gs.applied(model, delta), torch.no_grad():
            return [model(**batch).logits.clone() for batch in tests]

    kept: list[gs.Delta] = []
    told: list[list[torch.Tensor]] = []
    for task in range(3):
        kept.append(fitted(model, "lt-sft", seed=task, k=300, avoid=list(kept)))
        told.append(answers(kept[-1]))
        for delta, first in zip(kept, told, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(first, answers(delta), strict=True))
        assert same_bits(model, before)
    total = reduce(add, (delta.without_head() for delta in kept))
    parameters = base_parameters(model)
    original = {name: p.detach().clone().view(-1) for name, p in parameters.items()}
    with gs.applied(model, total):
        for delta in kept:
            alone = delta.terms
            for name, ((_, patch),) in alone.items():
                own = (original[name][patch.indices].double() + patch.values.double()).float()
                assert torch.equal(parameters[name].detach().view(-1)[patch.indices], own)


def test_a_single_phase_avoids_too() -> None:
    model = classifier().eval()
    with gs.tune(model, "magnitude", k=200) as tuned:
        first = tuned.leaves.support
    with gs.tune(model, "magnitude", k=200, avoid=first) as tuned:
        assert (tuned.leaves.support & first).k == 0
        about = tuned.about
    with gs.tune(model, "magnitude", k=400) as tuned:
        assert tuned.leaves.support == first | tuned.leaves.support
    assert len(about["avoid"]) == 1
    everything = Support({n: torch.arange(p.numel()) for n, p in base_parameters(model).items()})
    with pytest.raises(BadPlan, match="left"), gs.tune(model, "random", k=1, avoid=everything):
        pass
    rest = Support({n: i[1:] if n.endswith("word_embeddings.weight") else i for n, i in everything.items()})
    with gs.tune(model, "random", k=1, avoid=rest) as tuned:
        assert [i.tolist() for i in tuned.leaves.support.values()] == [[0]]


def test_what_cannot_be_avoided_is_said() -> None:
    model = classifier()
    name, weight = next((n, p) for n, p in base_parameters(model).items() if p.dim() == 2)
    low = gs.Delta.of({name: LowRank(torch.ones(weight.shape[0], 1), torch.ones(1, weight.shape[1]))})
    for wrong, said in (
        (low, "whole weights"),
        (Support({"nowhere": torch.tensor([0])}), "nowhere"),
        (Support({name: torch.tensor([weight.numel()])}), "of this base"),
        ([name], "expected a Delta"),
    ):
        with pytest.raises(BadPlan, match=said), gs.tune(model, "random", k=5, avoid=wrong):  # type: ignore[arg-type]
            pass
    other = fitted(classifier(7), "random", k=5)
    with pytest.raises(BaseMismatch), gs.tune(model, "random", k=5, avoid=other):
        pass


def test_only_the_same_deltas_resume(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stops(model: nn.Module, phase: Any) -> Any:
        if phase.index == 1:
            raise Stop
        return Loop(model)

    model = classifier().eval()
    first, other = (fitted(model, "random", seed=seed, k=100) for seed in (1, 2))
    torch.manual_seed(0)
    whole = gs.fit(model, "lt-sft", trainer=Loop, k=50, avoid=first)
    torch.manual_seed(0)
    with pytest.raises(Stop):
        gs.fit(model, "lt-sft", trainer=stops, k=50, avoid=first, checkpoint=tmp_path)
    with pytest.raises(BadPlan, match="another run"):
        gs.fit(model, "lt-sft", trainer=Loop, k=50, avoid=other, checkpoint=tmp_path, resume=True)
    assert gs.fit(model, "lt-sft", trainer=Loop, k=50, avoid=first, checkpoint=tmp_path, resume=True) == whole


def test_a_configuration_refuses_before_it_runs() -> None:
    with pytest.raises(BadPlan, match="these do"):
        gather(None, {"base": "b", "train": "t", "out": "d.safetensors", "method": "lora", "avoid": ["a.safetensors"]})
