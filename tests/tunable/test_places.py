"""Places for added modules are found from structure, on every family, and named by patterns where they cannot be."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BartConfig,
    BartModel,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralModel,
    SwinConfig,
    SwinModel,
)

from gossamer.errors import BadPlan
from gossamer.tunable.places import find_embeddings, find_places
from tests.contracts.test_methods import CONFIGS, SMALL, build

PLACES = {
    "bert": (["encoder.layer.{}.attention.output.dense"], ["encoder.layer.{}.output.dense"], "embeddings"),
    "roberta": (["encoder.layer.{}.attention.output.dense"], ["encoder.layer.{}.output.dense"], "embeddings"),
    "gpt2": (["h.{}.attn.c_proj"], ["h.{}.mlp.c_proj"], "wte"),
    "llama": (["layers.{}.self_attn.o_proj"], ["layers.{}.mlp.down_proj"], "embed_tokens"),
    "t5": (["encoder.block.{}.layer.0.SelfAttention.o", "decoder.block.{}.layer.0.SelfAttention.o",
            "decoder.block.{}.layer.1.EncDecAttention.o"],
           ["encoder.block.{}.layer.1.DenseReluDense.wo", "decoder.block.{}.layer.2.DenseReluDense.wo"], "shared"),
    "vit": (["layers.{}.attention.o_proj"], ["layers.{}.mlp.fc2"], "embeddings"),
    "bart": (["encoder.layers.{}.self_attn.out_proj", "decoder.layers.{}.self_attn.out_proj",
              "decoder.layers.{}.encoder_attn.out_proj"],
             ["encoder.layers.{}.fc2", "decoder.layers.{}.fc2"], "shared"),
}  # fmt: skip


def bart() -> nn.Module:
    return BartModel(
        BartConfig(vocab_size=95, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
                   decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=40)
    )  # fmt: skip


@pytest.mark.parametrize("architecture", PLACES)
def test_every_family(architecture: str) -> None:
    model = bart() if architecture == "bart" else build(architecture)
    attention, feedforward, embeddings = PLACES[architecture]
    for kind, expected in (("attention", attention), ("feedforward", feedforward), ("both", attention + feedforward)):
        found = find_places(model, kind)
        assert {place.name for place in found} == {name.format(i) for name in expected for i in (0, 1)}
        assert {place.width for place in found} == {16}
        assert all(place.module is model.base_model.get_submodule(place.name) for place in found)
    place = find_embeddings(model)
    assert (place.name, place.width) == (embeddings, 16)
    assert set(CONFIGS) | {"bart"} == set(PLACES)


def test_nested_shared_and_fused() -> None:
    albert = AlbertModel(AlbertConfig(**SMALL, embedding_size=8))
    assert [p.name.split(".")[-1] for p in find_places(albert, "both")] == ["dense", "ffn_output"]
    assert (find_embeddings(albert).name, find_embeddings(albert).width) == ("embeddings", 8)
    swin = SwinModel(
        SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 2], num_heads=[2, 2], window_size=4)
    )
    assert [place.width for place in find_places(swin, "feedforward")] == [16, 32, 32]
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 2, enable_nested_tensor=False)
    assert [p.name for p in find_places(encoder, "both")] == [
        f"layers.{i}.{name}" for i in (0, 1) for name in ("self_attn", "linear2")
    ]
    alone = nn.Sequential(*encoder.layers)
    assert [p.name for p in find_places(alone, "both")] == ["0.self_attn", "0.linear2", "1.self_attn", "1.linear2"]


def test_patterns() -> None:
    model = build("bert")
    names = [f"encoder.layer.{i}.intermediate.dense" for i in (0, 1)]
    for patterns in (["*.intermediate.dense"], ["intermediate.dense"], names):
        assert [place.name for place in find_places(model, "feedforward", patterns)] == names
    assert {place.width for place in find_places(model, "both", ["intermediate.dense"])} == {32}
    with pytest.raises(BadPlan, match="names no linear layer"):
        find_places(model, "both", ["intermediate.dense", "nothing"])


def test_nothing_found_names_the_option() -> None:
    moe = MixtralModel(MixtralConfig(**SMALL, num_key_value_heads=2, num_local_experts=2))
    assert find_places(moe, "attention")
    for model, kind in ((moe, "both"), (moe, "feedforward"), (nn.Sequential(nn.Linear(4, 4)), "attention")):
        with pytest.raises(BadPlan, match="places="):
            find_places(model, kind)
    with pytest.raises(BadPlan, match="no input embedding"):
        find_embeddings(nn.Sequential(nn.Linear(4, 4)))


def test_the_language_model_of_a_backbone_has_the_same_places() -> None:
    torch.manual_seed(0)
    plain, lm = build("gpt2"), GPT2LMHeadModel(CONFIGS["gpt2"])
    assert [p.name for p in find_places(lm, "both")] == [p.name for p in find_places(plain, "both")]
