"""gossamer diff: two checkpoints in, the delta between them out."""

from __future__ import annotations

from pathlib import Path

from gossamer.cli.output import Flag, console, emit, listed, notes, progress, quiet, size
from gossamer.errors import BadPlan, Clash


def diff(
    base: str,
    tuned: str,
    *,
    out: Path,
    density: float | None = None,
    k: int | None = None,
    lossless: Flag = False,
    values: str = "fp32",
    fields: str | None = None,
    label: str = "label",
    data: str | None = None,
    force: Flag = False,
    json: Flag = False,
) -> None:
    """Write what a full fine-tuning changed as a delta: its largest changes, or all of them to the bit.

    Parameters
    ----------
    base
        What was fine-tuned: a model directory, a .safetensors file, an index of shards, or `minilm`.
    tuned
        What came of it.
    out
        The delta's file, ending in .safetensors.
    density
        Keep this share of the weights, those that changed most.
    k
        Keep this many of the weights.
    lossless
        Keep every changed value: base and delta give the tuned weights bit for bit.
    values
        What kept changes are rounded to: bf16 or fp32.
    fields
        The text columns that a classifier reads, separated by commas. Default: text.
    label
        The label column of its data.
    data
        Labelled data: the score of the delta, with that of the tuned model beside it.
    force
        Overwrite an existing output.
    json
        Print the facts as JSON.
    """
    if out.suffix != ".safetensors":
        raise BadPlan(f"--out {out}: a delta's file ends in .safetensors")
    if out.exists() and not force:
        raise Clash(f"{out} exists; choose another --out, or overwrite it with --force")
    quiet()
    from gossamer.interop.checkpoint import diff as make

    with progress() as bar:
        current = bar.bar.add_task("tensors", total=None, loss="")
        delta = make(base, tuned, density=density, k=k, lossless=lossless, values=values, fields=listed(fields) or ("text",),
                     label=label, seen=lambda name: bar.bar.update(current, advance=1))  # fmt: skip
        bar.bar.update(current, total=len(delta.base))
    if data and "task" not in delta.about:
        raise BadPlan(f"{tuned} is no classifier, so --data cannot be scored; leave it out, and score in Python")
    nbytes = delta.save(out, force=force)
    scores = _scores(out, base, tuned, data) if data else {}
    about = delta.about
    if json:
        facts = {name: about[name] for name in ("k", "m", "residual", "lossless")}
        emit(
            {"out": str(out), "bytes": nbytes, **facts, "head": sorted(delta.head), "task": about.get("task"), **scores}
        )
        return
    kept = "to the bit" if lossless else f"{about['residual']:.1%} of the change's norm left out"
    head = sum(tensor.numel() for tensor in delta.head.values())
    console.print(f"{out}: {about['k']:,} of {about['m']:,} weights, a head of {head:,}, {size(nbytes)}; {kept}")
    for name, found in scores.items():
        console.print(f"{name}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in found.items()))
    if "task" not in about:
        notes.print(
            f"{tuned} is no classifier that its config describes: the delta names no task, so apply it in Python"
        )


def _scores(out: Path, base: str, tuned: str, data: str) -> dict[str, dict[str, float]]:
    from gossamer.delta.delta import Delta
    from gossamer.train.bench import Bench, open_delta

    delta, bench = open_delta(out, base)
    examples = bench.task.encode(bench.tokenizer, bench.read(data))
    ours = dict(bench.score(delta, examples))
    whole = Bench.set_up(bench.task, tuned)
    return {"scores": ours, "tuned_scores": dict(whole.score(Delta({}), examples))}
