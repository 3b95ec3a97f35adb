"""composable-sft's files: after import the model's weights are those that the format means."""

import numpy as np
import pytest
import torch
from transformers import BertModel

from gossamer.delta.apply import applied
from gossamer.delta.delta import Delta
from gossamer.errors import BaseMismatch
from gossamer.interop.composable_sft import load
from tests.tiny import bert_config, bits, classifier


def coded(change, numbers=np.int64):
    """The format by its description: flat positions with the first dimension fastest, as steps; the first a numpy number."""
    flat = change.permute(*reversed(range(change.dim()))).reshape(-1)
    where = flat.nonzero().reshape(-1).numpy()
    steps = np.diff(where, prepend=0).tolist()
    if steps:
        steps[0] = numbers(steps[0])
    return {"size": change.size(), "index_steps": steps, "values": flat[where]}


def changes(model, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(p.shape, generator=rng) * (torch.rand(p.shape, generator=rng) < 0.1)
        for name, p in model.named_parameters()
        if "classifier" not in name and "pooler" not in name
    }


@pytest.mark.parametrize("numbers", [np.int64, np.int32, int])
@pytest.mark.parametrize("zipped", [True, False])
def test_the_weights_are_those_that_the_file_means(tmp_path, numbers, zipped):
    model = classifier()
    diffs = changes(model)
    absolute = {
        "classifier.weight": torch.randn(2, 16),
        "classifier.bias": torch.randn(2),
        "bert.pooler.dense.weight": torch.randn(16, 16),
    }
    file = {"diffs": {n: coded(d, numbers) for n, d in diffs.items()}, "abs": absolute}
    torch.save(file, tmp_path / "pytorch_diff.bin", _use_new_zipfile_serialization=zipped)
    delta = load(tmp_path, model)
    wanted = bits(model)
    for name, change in diffs.items():
        wanted[name] = wanted[name] + change
    wanted |= absolute
    with applied(model, delta):
        now = model.state_dict()
        assert all(torch.equal(now[name], wanted[name]) for name in wanted)
    delta.save(tmp_path / "d.safetensors")
    bare = BertModel(bert_config())
    bare.load_state_dict(model.bert.state_dict())
    assert load(tmp_path, bare) == delta, "the class around the backbone does not matter"
    assert load(tmp_path, bare, head=False) == delta.without_head()


def test_a_diff_of_the_head_and_empty_ones(tmp_path):
    model = classifier()
    change = torch.zeros(2, 16)
    change[1, 3] = 0.5
    file = {"diffs": {"classifier.weight": coded(change), "bert.embeddings.LayerNorm.bias": coded(torch.zeros(16))}}
    torch.save(file, tmp_path / "x.bin")
    delta = load(tmp_path / "x.bin", model)
    assert torch.equal(delta.head["classifier.weight"], model.classifier.weight.detach() + change)
    assert isinstance(delta, Delta)


def test_another_model(tmp_path):
    torch.save({"diffs": {"roberta.w": coded(torch.ones(3, 2))}}, tmp_path / "x.bin")
    with pytest.raises(BaseMismatch, match="absent"):
        load(tmp_path / "x.bin", classifier())
    torch.save({"diffs": {"bert.embeddings.LayerNorm.bias": coded(torch.ones(3, 2))}}, tmp_path / "x.bin")
    with pytest.raises(BaseMismatch, match=r"\[16\]"):
        load(tmp_path / "x.bin", classifier())
