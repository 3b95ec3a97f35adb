"""gossamer prime: a base directory and a delta that fit takes, in one job with real files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertForMaskedLM, LlamaConfig, LlamaForCausalLM

import gossamer as gs
from tests.tiny import base_directory, bert_config, rows, tokenizer
from tests.verb import call, told

TAGS = ["B-PER O O", "O B-LOC I-LOC", "B-ORG O B-PER"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base_directory(tmp_path / "base")
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(40, seed)))
        lines = [f"w{i + j + seed} {tag}" + ("\n" if j == 2 else "") for i in range(24) for j, tag in
                 enumerate(TAGS[i % 3].split())]  # fmt: skip
        (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


SMALL = "--inner-steps 2 --support 4 --query 4 --tasks 2 --steps 3 --lr 0.001"
PRIME = f"prime --base base --source a=a.jsonl --source b=b.jsonl {SMALL}"


@pytest.mark.parametrize("method", ["pfeiffer", "lora", "random", "bitfit"])
def test_primed_base_and_delta_are_taken_by_fit(here: Path, method: str, capsys: pytest.CaptureFixture[str]) -> None:
    count = "--k 50" if method == "random" else ""
    made = told(f"{PRIME} --method {method} {count} --out primed --as-delta primed.safetensors", capsys)
    assert made["norm"] > 0 and len(made["last"]) == 1
    assert {"config.json", "model.safetensors", "tokenizer.json", "start.safetensors", "plot.png"} <= {
        file.name for file in (here / "primed").iterdir()
    }
    start = gs.load("primed/start.safetensors")
    assert start.about["method"] == method and start.head
    status, _, err = call(f"fit --base primed --train c.jsonl --method {method} {count} --steps 1 --lr 1e-12 --values fp32 "
                          "--out after.safetensors", capsys)  # fmt: skip
    assert status == 0 and "starting from the primed values and head" in err, err
    after = gs.load("after.safetensors")
    assert after.k == start.k and after.terms.keys() == start.terms.keys()
    for name, ((_, patch),) in after.terms.items():
        ((_, was),) = start.terms[name]
        if method == "lora":
            assert torch.allclose(patch.left, was.left, atol=1e-7) and torch.allclose(patch.right, was.right, atol=1e-7)
        else:
            assert torch.equal(patch.indices, was.indices) and torch.allclose(patch.values, was.values, atol=1e-7)
    for graft, was in zip(after.grafts, start.grafts, strict=True):
        assert all(torch.allclose(graft.tensors[part], was.tensors[part], atol=1e-7) for part in graft.tensors)
    assert all(torch.allclose(after.head[n], start.head[n], atol=1e-7) for n in start.head)
    status, _, err = call(f"fit --base base --on primed.safetensors --train c.jsonl --method {method} {count} --steps 1 "
                          "--out on.safetensors", capsys)  # fmt: skip
    assert status == 0, err


def test_another_method_starts_from_scratch_and_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told(f"{PRIME} --method pfeiffer --out primed", capsys)
    for flags, remark in (("--method lora", "lora starts from scratch"), ("--method lt-sft", "lt-sft starts from scratch"),
                          ("--method pfeiffer options.bottleneck=3", "with other options")):  # fmt: skip
        status, _, err = call(
            f"fit --base primed --train c.jsonl {flags} --steps 3 --force --out x.safetensors", capsys
        )
        assert status == 0 and remark in " ".join(err.split()), err


def test_tagging_and_going_on(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tag = f"prime --base base --method pfeiffer --task tag --source a=a.txt --source b=b.txt {SMALL} --save-every 1"
    told(f"{tag} --out whole --order second", capsys)
    from gossamer.prime import job

    class Stop(Exception): ...

    teller = job.Teller.__call__

    def stop(self: Any, row: Any) -> None:
        if row["step"] == 2:
            raise Stop
        teller(self, row)

    with monkeypatch.context() as patched:
        patched.setattr(job.Teller, "__call__", stop)
        with pytest.raises(Stop):
            call(f"{tag} --out again --order second", capsys)
    status, _, err = call(f"{tag} --out again --order second", capsys)
    assert status == 1 and "--resume" in err
    status, _, err = call(f"{tag.replace('--lr 0.001', '--lr 1')} --out again --order second --resume", capsys)
    assert status == 2 and "lr changed" in err
    told(f"{tag} --out again --order second --resume", capsys)
    whole, again = (gs.load(f"{name}/start.safetensors") for name in ("whole", "again"))
    assert whole == again
    assert (here / "whole/model.safetensors").read_bytes() == (here / "again/model.safetensors").read_bytes()


def test_labels_that_differ_need_heads_per_task(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (here / "b.jsonl").read_text().replace('"low"', '"lower"').replace('"high"', '"higher"')
    lines = text.splitlines()
    (here / "d.jsonl").write_text(
        "\n".join([*lines[:30], *(row.replace("higher", "top") for row in lines[30:])]) + "\n"
    )
    command = f"{PRIME.replace('b=b.jsonl', 'd=d.jsonl')} --method pfeiffer --out primed"
    status, _, err = call(command, capsys)
    assert status == 1 and re.search(
        "'a' the labels high,low; 'd' the labels higher,lower,top", " ".join(err.split())
    ), err
    assert not (here / "primed").exists() and not (here / "primed.partial").exists()
    told(f"{command} --heads per-task --order second", capsys)
    assert not gs.load("primed/start.safetensors").head
    status, _, err = call(
        "fit --base primed --train d.jsonl --method pfeiffer --steps 1 --out after.safetensors", capsys
    )
    assert status == 0 and "primed values, with a fresh head" in " ".join(err.split()), err


@pytest.mark.parametrize("task", ["mask", "generate"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_pretrained_output_layer_stays(here: Path, task: str, tied: bool, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    small = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "pad_token_id": 0,
    }
    model: Any = (
        BertForMaskedLM(bert_config(tie_word_embeddings=tied))
        if task == "mask"
        else LlamaForCausalLM(LlamaConfig(vocab_size=95, tie_word_embeddings=tied, **small))
    )
    model.save_pretrained("lm")
    tokenizer().save_pretrained("lm")
    for name in "xy":
        (here / f"{name}.txt").write_text("\n".join(row["text"] for row in rows(60, ord(name))) + "\n")
    about = f"--task {task} --max-length 16 --method random --k 20"
    told(f"prime --base lm {about} --source x=x.txt --source y=y.txt {SMALL} --out primed", capsys)
    again, facts = type(model).from_pretrained("primed", output_loading_info=True)
    assert not facts["missing_keys"]
    inside = {id(p) for p in again.base_model.parameters()}
    outside = {n: p for n, p in again.named_parameters() if id(p) not in inside}
    assert all(torch.equal(p, model.get_parameter(n)) for n, p in outside.items())
    assert not all(torch.equal(p, model.get_parameter(n)) for n, p in again.named_parameters())
    if task == "mask" or not tied:  # a masked model's output is untied from its input, and stays
        assert torch.equal(again.get_output_embeddings().weight, model.get_output_embeddings().weight)
    status, _, err = call(f"fit --base primed {about} --train x.txt --steps 1 --out f.safetensors", capsys)
    assert status == 0 and "starting from the primed values" in err, err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{PRIME} --method pfeiffer", "nothing to write"),
        (f"{PRIME} --method lt-sft --out x", "cannot be differentiated through"),
        (f"{PRIME.replace('--support 4', '--support 30')} --method pfeiffer --out x", "task 'a' has 40 examples"),
        (f"{PRIME} --method pfeiffer --source a=b.jsonl --out x", "given twice"),
        (f"{PRIME} --method pfeiffer --source c --out x", "expected name=file"),
        (f"{PRIME} --method pfeiffer --schedule x --out x", "linear, constant"),
        (f"{PRIME} --method pfeiffer --heads x --out x", "shared, per-task"),
        (f"{PRIME} --method pfeiffer --out x options.order=3", "no option 'order'"),
        (f"{PRIME} --method pfeiffer --out x --resume", "nothing to resume"),
        (f"{PRIME} --method pfeiffer --out base/config.json", "exists"),
        (f"{PRIME} --method pfeiffer --inner-lr 1e38 --out x", "task '[ab]'"),
    ],
)
def test_mistakes(here: Path, command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = call(command, capsys)
    assert status in (1, 2)
    assert re.search(message, " ".join(err.split())), err
    assert not (here / "x").exists() and not (here / "x.partial").exists()
