"""gossamer analyze forgetting: on files, with and without the head of a pretrained task."""

import shlex

from gossamer.cli.main import run
from tests.tiny import WORDS, task_directory
from tests.verb import told


def test_a_head_of_the_pretrained_task(tmp_path, monkeypatch, capsys):
    folder = task_directory(tmp_path / "place")
    monkeypatch.chdir(folder)
    (folder / "text.txt").write_text("\n".join(" ".join(WORDS[i : i + 9]) for i in range(60)) + "\n")
    fit = "fit --base base --steps 3 --batch-size 8"
    told(f"{fit} --train train.jsonl --method full --lr 0.02 --out far.safetensors", capsys)
    told(f"{fit} --train train.jsonl --method random --density 0.01 --out near.safetensors", capsys)
    told(f"{fit} --task mask --max-length 16 --train text.txt --method random --k 1 --out head.safetensors", capsys)
    found = told(
        "analyze forgetting far.safetensors near=near.safetensors --data text.txt --head head.safetensors --tokens 300",
        capsys,
    )
    far, near = found["far"], found["near"]
    assert near["rsa"][-1] > far["rsa"][-1] and near["cka"][-1] > far["cka"][-1]
    assert near["tokens"] == 300
    assert near["before"] == far["before"] and far["after"]["loss"] != far["before"]["loss"]
    status = run(shlex.split("analyze forgetting far.safetensors --data text.txt --head near.safetensors"))
    assert status == 2 and "--head needs one of mask or generate" in capsys.readouterr().err
    status = run(shlex.split("analyze forgetting --data text.txt"))
    assert status == 2 and "name one or more files" in capsys.readouterr().err
