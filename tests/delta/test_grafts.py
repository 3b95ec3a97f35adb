"""Grafts on models: on and off without a trace, in order of level, refused before anything is changed."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch import nn
from transformers import GPT2LMHeadModel, T5ForConditionalGeneration

import gossamer as gs
from gossamer.delta.delta import Delta
from gossamer.delta.graft import Graft, shapes
from gossamer.delta.patch import Sparse
from gossamer.errors import BadPlan, BaseMismatch, Clash, NotLinear
from tests.contracts.test_methods import CONFIGS, build, data, logits
from tests.tiny import bits, classifier, same_bits

PLACE = "encoder.layer.1.output.dense"


def graft(place: str = PLACE, level: int = 0, seed: int = 0, kind: str = "bottleneck", width: int = 16) -> Graft:
    rng = torch.Generator().manual_seed(seed)
    tensors = {part: torch.randn(s, generator=rng) / 4 for part, s in shapes(kind, width, 3).items()}
    return Graft(place, tensors, kind, level=level)


def one(*grafts: Graft) -> Delta:
    return Delta({}, grafts=grafts)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_on_and_off_in_any_order_and_by_level() -> None:
    model, batch = classifier(), data("bert")[0]
    before, plain, parts = bits(model), logits(model, batch), [one(graft(level=i, seed=i)) for i in range(3)]
    with gs.applied(model, parts[0] + parts[1] + parts[2]):
        whole = logits(model, batch)
    with gs.applied(model, one(*(replace(p.grafts[0], level=2 - i) for i, p in enumerate(parts)))):
        assert not torch.equal(logits(model, batch), whole), "the order matters"
    for order in permutations(parts):
        handles = [gs.apply(model, part) for part in order]
        assert torch.equal(logits(model, batch), whole)
        for handle in handles:
            handle.restore()
            handle.restore()
        assert torch.equal(logits(model, batch), plain)
    assert same_bits(model, before)
    assert hooks(model) == 0


def test_a_graft_changes_states_as_its_equation_says() -> None:
    model, seen, made = classifier().eval(), [], graft()
    dense = model.bert.get_submodule(PLACE)
    handle = dense.register_forward_hook(lambda m, a, out: seen.append(out.detach()))
    with gs.applied(model, one(made)):
        dense.register_forward_hook(lambda m, a, out: seen.append(out.detach()))
        logits(model, data("bert")[0])
    torch.testing.assert_close(seen[1], made.forward(seen[0], made.tensors))
    handle.remove()


@pytest.mark.parametrize("bad", [graft("encoder.layer.9.output.dense"), graft(width=8)], ids=["place", "width"])
def test_a_base_that_does_not_fit_is_refused_untouched(bad: Graft) -> None:
    model = classifier()
    before = bits(model)
    change = Delta.of({"pooler.dense.bias": Sparse((16,), torch.tensor([1]), torch.ones(1))})
    with pytest.raises(BaseMismatch, match="encoder"):
        gs.apply(model, change + one(bad, graft("encoder.layer.0.output.dense")))
    with pytest.raises(BaseMismatch), gs.tune(model, "pfeiffer", on=one(bad)):
        pass
    assert same_bits(model, before)
    assert hooks(model) == 0


def test_states_of_another_width_are_found_in_the_forward_where_no_layer_says_it() -> None:
    model = classifier()
    with gs.applied(model, one(graft("embeddings", width=8))), pytest.raises(BaseMismatch, match="width 8"):
        logits(model, data("bert")[0])
    assert hooks(model) == 0


def test_one_place_and_level_for_one_module() -> None:
    model = classifier()
    with gs.applied(model, one(graft())):
        with pytest.raises(Clash, match="level=1"):
            gs.apply(model, one(graft(seed=1)))
        with gs.applied(model, one(graft(seed=1, level=1))):
            pass
    with pytest.raises(Clash, match="level=1"), gs.tune(model, "pfeiffer", on=one(graft())):
        pass
    with gs.tune(model, "pfeiffer", on=one(graft()), level=1):
        assert hooks(model) > 0
    assert hooks(model) == 0


def test_no_merge() -> None:
    model = classifier()
    before = bits(model)
    with pytest.raises(NotLinear, match="applied"):
        gs.merge(model, one(graft()))
    assert same_bits(model, before)


def test_a_copy_of_a_model_keeps_its_grafts() -> None:
    model, batch = classifier(), data("bert")[0]
    plain = logits(model, batch)
    with gs.applied(model, one(graft())):
        other, changed = copy.deepcopy(model), logits(model, batch)
    assert torch.equal(logits(other, batch), changed)
    assert torch.equal(logits(model, batch), plain)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_an_invertible_module_stands_at_both_ends_of_a_language_model(name: str) -> None:
    torch.manual_seed(0)
    model = (GPT2LMHeadModel if name == "gpt2" else T5ForConditionalGeneration)(CONFIGS[name]).eval()
    made, seen = graft("wte" if name == "gpt2" else "shared", kind="invertible"), {"in": [], "out": []}
    tables = [
        m for m in model.modules() if isinstance(m, nn.Embedding) and m.weight is model.get_input_embeddings().weight
    ]
    with gs.applied(model, one(made)):
        for table in tables:
            table.register_forward_hook(lambda m, a, out: seen["in"].append((a[0], out)))
        model.get_output_embeddings().register_forward_hook(lambda m, a, out: seen["out"].append(a[0]))
        ids = data("bert")[0]["input_ids"]
        model(input_ids=ids, **({"labels": ids} if name == "t5" else {}))
    assert len(seen["in"]) == (1 if name == "gpt2" else 2), "the encoder's and the decoder's embeddings"
    for given, states in seen["in"]:
        torch.testing.assert_close(states, made.forward(tables[0].weight[given], made.tensors))
    last = []
    model.get_output_embeddings().register_forward_hook(lambda m, a, out: last.append(a[0]))
    with gs.applied(model, one(replace(made, tensors={n: torch.zeros_like(t) for n, t in made.tensors.items()}))):
        model(input_ids=ids, **({"labels": ids} if name == "t5" else {}))
    assert last[-1].shape == seen["out"][-1].shape
    assert sum(len(m._forward_pre_hooks) for m in model.modules()) == 0


def test_the_inverse_undoes_the_module_where_nothing_lies_between() -> None:
    class Echo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(9, 6), nn.Linear(6, 9)

        def get_output_embeddings(self) -> nn.Module:
            return self.out

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.out(self.table(ids))

    model, ids = Echo(), torch.arange(9)
    plain = model(ids)
    language, dialect = (graft("table", level, level, "invertible", 6) for level in (0, 1))
    with gs.applied(model, one(dialect)), gs.applied(model, one(language)):
        torch.testing.assert_close(model(ids), plain)
        assert not torch.allclose(model.table(ids), model.table.weight)


def test_half_precision_bases_and_rounded_values() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        model = build("bert").to(dtype)
        plain = logits(model, data("bert")[0])
        with gs.applied(model, one(graft()).rounded("bf16")):
            changed = logits(model, data("bert")[0])
        assert changed.dtype == dtype
        assert not torch.equal(changed, plain)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"kind": "prefix"}, "prefix"), ({"activation": "swish"}, "swish"), ({"level": -1}, "level"), ({"level": True}, "level"),
     ({"place": ""}, "place"), ({"tensors": {}}, "down.bias")],
)  # fmt: skip
def test_a_graft_refuses_what_it_cannot_be(change: dict[str, object], says: str) -> None:
    with pytest.raises(BadPlan, match=says):
        replace(graft(), **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("part", graft().tensors)
def test_a_graft_names_the_tensor_that_is_wrong(part: str) -> None:
    made = graft()
    for wrong in (made.tensors[part][:-1], made.tensors[part].long(), made.tensors[part][None]):
        with pytest.raises(BadPlan, match="tensor"):
            replace(made, tensors={**made.tensors, part: wrong})
    with pytest.raises(BadPlan, match=part):
        replace(made, tensors={name: t for name, t in made.tensors.items() if name != part})
    with pytest.raises(BadPlan, match="surplus"):
        replace(made, tensors={**made.tensors, "surplus": torch.ones(1)})
