"""k as another method's number of trained weights, against that method's own count."""

from __future__ import annotations

import re

import pytest
from peft import LoraConfig, get_peft_model
from torch import nn

import gossamer as gs
from gossamer.errors import BadPlan
from gossamer.train.match import matched
from tests.contracts.test_methods import CONFIGS, Loop, build, data

BLOCKS = {"bert": r".*\.layer\.\d+\..*(query|key|value|dense)", "gpt2": r".*\.h\.\d+\..*(c_attn|c_proj|c_fc)"}


@pytest.mark.parametrize("architecture", BLOCKS)
@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # between peft and transformers
def test_lora_counts_what_peft_trains(architecture: str, rank: int) -> None:
    found = matched(build(architecture), f"lora:{rank}")
    tuned = get_peft_model(build(architecture), LoraConfig(r=rank, target_modules=BLOCKS[architecture]))  # type: ignore[arg-type]
    assert found == sum(p.numel() for n, p in tuned.named_parameters() if "lora_" in n)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_architecture_has_layers_to_count(architecture: str) -> None:
    model = build(architecture)
    assert matched(model, "lora:2") == 2 * matched(model, "lora:1") > 0


def test_bitfit_and_lora_set_k() -> None:
    model, train = build("bert"), data("bert")
    with gs.tune(model, "bitfit") as tuned:
        biases = tuned.k
    with gs.tune(model, "random", match="bitfit") as tuned:
        assert tuned.k == biases
    delta = gs.fit(model, "magnitude", trainer=lambda m: Loop(m, train), match="lora:2")
    assert delta.k == matched(model, "lora:2")


def test_the_head_is_not_counted() -> None:
    model = build("bert")
    whole = matched(model, "lora:1")
    last = model.bert.encoder.layer[1].output.dense
    assert matched(model, "lora:1", head=["bert.encoder.layer.1.output.dense"]) == whole - sum(last.weight.shape)


@pytest.mark.parametrize("kind", ["pfeiffer", "houlsby"])
def test_adapters_count_their_places(kind: str) -> None:
    places = {"pfeiffer": 2, "houlsby": 4}[kind]  # two layers of width 16
    assert matched(build("bert"), f"{kind}:3") == places * (2 * 16 * 3 + 3 + 16)


@pytest.mark.parametrize(
    "text", ["lora", "lora:", "lora:0", "lora:-1", "lora:x", "lora:1.5", "bitfit:3", "random:3", "", "8"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(BadPlan, match=re.escape(f"match={text!r}; expected lora:RANK")):
        matched(build("bert"), text)


def test_models_that_the_other_method_cannot_work_on() -> None:
    with pytest.raises(BadPlan, match=r"match='bitfit': .*none"):
        matched(build("llama"), "bitfit")
    with pytest.raises(BadPlan, match=r"match='lora:1': .*no linear layers"):
        matched(nn.Linear(3, 3), "lora:1")
    with (
        pytest.raises(BadPlan, match=r"match='lora:4000' is .* has only"),
        gs.tune(build("bert"), "random", match="lora:4000"),
    ):
        pass


@pytest.mark.parametrize(
    "given", [{"density": 0.1, "k": 3}, {"density": 0.1, "match": "lora:1"}, {"k": 3, "match": "lora:1"}]
)
def test_one_way_of_saying_how_many(given: dict[str, object]) -> None:
    wanted = " and ".join(f"{name}={value}" for name, value in given.items()) + " were given together"
    with pytest.raises(BadPlan, match=wanted), gs.tune(build("bert"), "random", **given):  # type: ignore[arg-type]
        pass
    with pytest.raises(BadPlan, match="neither density nor k nor match"), gs.tune(build("bert"), "full", **given):  # type: ignore[arg-type]
        pass
