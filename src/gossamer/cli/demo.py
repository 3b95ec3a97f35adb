"""gossamer demo: the main job, start to end, on text that every machine has."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from gossamer.analyze.where import plot
from gossamer.cli.output import Flag, console, notes, progress, quiet, size, table
from gossamer.delta.delta import Delta
from gossamer.delta.store import load
from gossamer.errors import GossamerError

SENTENCES = (
    "Close the socket and wait until the remote host has acknowledged the request.",
    "Redraw the widget whenever the user resizes the window.",
    "Acquire the lock before the worker thread takes an item from the queue.",
)


def demo(
    *,
    out: Path = Path("gossamer-demo"),
    quick: Flag = False,
) -> None:
    """Fine-tune MiniLM to tell the area of Python's standard library from a passage of its documentation.

    Parameters
    ----------
    out
        A directory for the delta and the picture.
    quick
        Under a minute: fewer passages, one short epoch a phase.
    """
    quiet()
    from gossamer.tasks.classify import Classify
    from gossamer.tasks.docstrings import passages, split
    from gossamer.train.bench import Bench
    from gossamer.train.config import FitConfig
    from gossamer.train.job import train_delta
    from gossamer.train.plan import Fit

    began = time.monotonic()
    data = passages(600 if quick else 5000, fewest=20 if quick else 100)
    train, test = split(data)
    task = Classify.plan(train, max_length=64)
    assert task.labels is not None
    console.print(f"{len(train['text']):,} passages to train on, {len(test['text']):,} to test, "
                  f"{len(task.labels)} areas: {', '.join(task.labels)}", highlight=False)  # fmt: skip
    bench = Bench.set_up(task, "minilm")
    training, testing = (task.encode(bench.tokenizer, part) for part in (train, test))
    before = _bits(bench.model)
    rows: list[list[str]] = []
    lap = time.monotonic()

    def watch(phase: Fit, found: Delta) -> None:
        nonlocal lap
        seconds = time.monotonic() - lap
        if phase.tunable == "dense":
            # the first phase is a full fine-tuning (of all but the layer norms): compare with it
            score = bench.score(found, testing)[task.metric]
            rows.append(
                ["full fine-tuning (phase one)", f"{score:.3f}", f"{found.k:,}", size(4 * found.m), f"{seconds:.0f} s"]
            )
        else:
            rows.append(["lt-sft (both phases)", "", f"{found.k:,}", "", ""])
        lap = time.monotonic()

    out.mkdir(parents=True, exist_ok=True)
    path = out / "docstrings.safetensors"
    with tempfile.TemporaryDirectory() as scratch:
        config = FitConfig(base="minilm", train="docstrings", out=Path(scratch) / "demo.safetensors", method="lt-sft",
                           density=0.005, epochs=1, max_length=64)  # fmt: skip
        started = time.monotonic()
        with progress() as bar:
            delta = train_delta(config, bench, training, [], watch=watch, progress=bar,
                                say=lambda text: notes.print(f"[dim]{text}[/]"))  # fmt: skip
        both = time.monotonic() - started
    scores, baseline = bench.score(delta, testing), task.baseline(testing)
    delta = replace(delta, about={**delta.about, "base": "minilm", "task": task.describe(), "scores": dict(scores),
                                  "baseline": dict(baseline)})  # fmt: skip
    nbytes = delta.save(path, force=True)
    rows[-1][1], rows[-1][3], rows[-1][4] = f"{scores[task.metric]:.3f}", size(nbytes), f"{both:.0f} s"
    rows.insert(0, ["majority baseline", f"{baseline[task.metric]:.3f}", "0", "", ""])
    console.print(table(f"{task.metric} on {len(testing):,} held-out passages",
                        ["", task.metric, "trained weights (without head)", "file", "time"], rows))  # fmt: skip

    again = load(path)
    asked = task.encode(bench.tokenizer, {"text": list(SENTENCES)}, labelled=False)
    answers = task.answers(bench.run(again, asked), asked)
    for sentence, answer in zip(SENTENCES, answers, strict=True):
        console.print(f"  [bold]{answer['label']}[/] ({answer['probability']:.2f})  {sentence}", highlight=False)
    same = all(torch.equal(a, b) for a, b in zip(before, _bits(bench.model), strict=True))
    if again != delta.coalesce() or not same:
        raise GossamerError("the file does not hold what was trained, or the base has changed: please report this")
    plot(again, out / "where.png")
    console.print(f"the base is bit-identical to what it was: {same}")
    console.print(f"{path} ({size(nbytes)}), {out / 'where.png'}; {time.monotonic() - began:.0f} s in all")


def _bits(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]
