"""Heads per task: label sets that differ, one backbone."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from transformers import BertForSequenceClassification

from gossamer.errors import BadPlan
from gossamer.prime.episodes import Episode
from gossamer.prime.maml import prime
from tests.tiny import batches, bert_config, bits, same_bits


class Drawn:
    """Task "two" with two labels and "three" with three."""

    inner_steps = 2
    facts: ClassVar[dict[str, Any]] = {}
    sources: ClassVar[dict[str, Any]] = {"two": [], "three": []}

    def at(self, step: int) -> list[Episode]:
        made = []
        for name, count in (("two", 2), ("three", 3)):
            each = batches(3, 4, step)
            for batch in each:
                batch["labels"] = torch.arange(4) % count
            made.append(Episode(name, each[:2], each[2]))
        return made


def models() -> dict[str, Any]:
    torch.manual_seed(0)
    two, three = (BertForSequenceClassification(bert_config(num_labels=n)).eval() for n in (2, 3))
    three.bert = two.bert
    return {"two": two, "three": three}


def test_the_gradient_is_that_of_all_tasks_each_through_its_own_head() -> None:
    own = models()
    before = bits(own["three"])
    made = prime(own["two"], "pfeiffer", episodes=Drawn(), steps=1, models=own, control="ft", clip=0,  # type: ignore[arg-type]
                 optimizer=lambda tensors: torch.optim.SGD(tensors, 0.1))  # fmt: skip
    assert same_bits(own["three"], before)
    for episode in Drawn().at(0):
        for batch in (*episode.support, episode.query):
            (own[episode.task](**batch).loss / 6).backward()
    weight = own["two"].bert.encoder.layer[0].output.dense.weight
    ((_, patch),) = made.delta.terms["encoder.layer.0.output.dense.weight"]
    assert torch.allclose(patch.values, -0.1 * weight.grad, atol=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("how", [{}, {"order": "second", "recompute": True}, {"control": "maml-all"},
                                 {"head_start": "fresh", "head_warmup": 1}, {"head_start": "kept"}])  # fmt: skip
def test_every_setting_and_going_on(how: dict[str, Any], tmp_path: Any) -> None:
    def run(steps: int = 2, **more: Any) -> Any:
        own = models()
        return prime(own["two"], "pfeiffer", episodes=Drawn(), steps=steps, models=own, **how, **more)  # type: ignore[arg-type]

    class Stop(Exception): ...

    def stop(seen: Any) -> None:
        if seen["step"] == 1:
            raise Stop

    whole = run()
    assert (
        whole.delta.norm() > 0
        and not whole.start.head
        and [row["task"] for row in whole.history][:2] == ["two", "three"]
    )
    with pytest.raises(Stop):
        run(checkpoint=tmp_path, save_every=1, watch=stop)
    assert run(checkpoint=tmp_path, resume=True).delta == whole.delta


def test_models_that_do_not_fit() -> None:
    own, apart = models(), models()
    with pytest.raises(BadPlan, match=r"models\['three'\] has a backbone of its own"):
        prime(own["two"], "pfeiffer", episodes=Drawn(), models={"two": own["two"], "three": apart["three"]})  # type: ignore[arg-type]
    with pytest.raises(BadPlan, match="'three' has no model"):
        prime(own["two"], "pfeiffer", episodes=Drawn(), models={"two": own["two"]})  # type: ignore[arg-type]
