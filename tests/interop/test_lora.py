"""PEFT directories: what peft makes of them is what gossamer makes of them, both ways."""

import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, ShiraConfig, get_peft_model
from transformers import GPT2Config, GPT2ForSequenceClassification

from gossamer.delta.apply import applied
from gossamer.delta.delta import Delta
from gossamer.delta.patch import Dense, LowRank, Sparse
from gossamer.errors import BadFile, BadPlan, GossamerError, NotLinear
from gossamer.interop.lora import load, save
from tests.tiny import batches, classifier

IDS = {"input_ids": batches(1)[0]["input_ids"]}


def conv1d():
    torch.manual_seed(0)
    return GPT2ForSequenceClassification(
        GPT2Config(vocab_size=95, n_embd=16, n_layer=2, n_head=2, n_positions=40, num_labels=2, pad_token_id=0)
    )


def logits(model):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse invariant checks")  # peft's SHiRA
        return model.eval()(**IDS).logits


def trained(model, config, folder):
    """An adapter with random values, saved by peft; what it gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, config)
        torch.manual_seed(1)
        with torch.no_grad():
            for p in adapted.parameters():
                if p.requires_grad:
                    p.normal_(0, 0.2)
        adapted.save_pretrained(folder)
    return logits(adapted)


CONFIGS = {
    "plain": (classifier, LoraConfig(r=4, lora_alpha=12, target_modules=["query", "dense"], modules_to_save=["classifier"])),
    "patterns": (
        classifier,
        LoraConfig(target_modules=["query", "value", "word_embeddings"], rank_pattern={"layer.0.*query": 3, "value": 5},
                   alpha_pattern={"value": 7}, use_rslora=True, modules_to_save=["classifier", "pooler.dense"]),
    ),
    "conv1d": (conv1d, LoraConfig(r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, modules_to_save=["score"])),
    "shira": (classifier, ShiraConfig(r=2, target_modules=["query", "value"], random_seed=3, modules_to_save=["classifier"])),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_import(tmp_path, name):
    make, config = CONFIGS[name]
    wanted = trained(make(), config, tmp_path / "a")
    model = make()
    delta = load(tmp_path / "a", model)
    assert delta.head
    with applied(model, delta):
        torch.testing.assert_close(logits(model), wanted, atol=2e-6, rtol=1e-5)
    delta.save(tmp_path / "d.safetensors")


def delta_of(kind):
    rng = torch.Generator().manual_seed(0)
    names = [f"encoder.layer.{i}.attention.self.{part}.weight" for i in (0, 1) for part in ("query", "value")]
    found = {}
    for i, name in enumerate(names):
        if kind == "LORA":
            found[name] = LowRank(torch.randn(16, i + 1, generator=rng), torch.randn(i + 1, 16, generator=rng))
        else:
            where = torch.randperm(256, generator=rng)[: 10 + 20 * i].sort().values
            found[name] = Sparse((16, 16), where, torch.randn(len(where), generator=rng))
    head = {"classifier.weight": torch.randn(2, 16, generator=rng), "classifier.bias": torch.randn(2, generator=rng)}
    return Delta.of(found, head=head)


@pytest.mark.parametrize("kind", ["LORA", "SHIRA"])
def test_export(tmp_path, kind):
    model, delta = classifier(), delta_of(kind)
    with applied(model, delta):
        wanted = logits(model)
    assert save(delta, tmp_path / "a", model) == kind
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(classifier(), tmp_path / "a")
    torch.testing.assert_close(logits(theirs), wanted, atol=2e-6, rtol=1e-5)
    again = load(tmp_path / "a", model)
    assert (again - delta).norm() == 0
    assert all(torch.equal(again.head[name], delta.head[name]) for name in delta.head)


def test_what_peft_cannot_hold(tmp_path, with_grafts):
    model = classifier()
    name = "encoder.layer.0.attention.self.query.weight"
    with pytest.raises(NotLinear):
        save(Delta.of({name: Dense(torch.ones(16, 16))}), tmp_path / "a", model)
    with pytest.raises(GossamerError):
        save(with_grafts, tmp_path / "a", model)
    full = Sparse((16, 16), torch.arange(256), torch.ones(256))
    save(Delta.of({name: full}), tmp_path / "full", model)
    words = Sparse((95, 16), torch.arange(3), torch.ones(3))
    with pytest.raises(BadPlan, match="linear"):
        save(Delta.of({"embeddings.word_embeddings.weight": words}), tmp_path / "a", model)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("setting", [{"use_dora": True}, {"bias": "all"}, {"init_lora_weights": "pissa"}, {"r": 9}])
def test_refused(tmp_path, setting):
    save(delta_of("LORA"), tmp_path / "a", classifier())
    path = tmp_path / "a" / "adapter_config.json"
    config = json.loads(path.read_text()) | {"rank_pattern": {}} | setting
    path.write_text(json.dumps(config))
    with pytest.raises((BadPlan, BadFile), match="rank" if "r" in setting else next(iter(setting))):
        load(tmp_path / "a", classifier())
    with pytest.raises(BadFile, match="adapter_config"):
        load(tmp_path, classifier())
