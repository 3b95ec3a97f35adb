"""gossamer study status: how far a study is."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from gossamer.cli.output import Flag, console, emit


def status(file: Path, *, out: Path, profile: str | None = None, json: Flag = False) -> None:
    """Say which cells of a study are done, which failed and why, and what is left. Also while it runs.

    Parameters
    ----------
    file
        The study, a YAML file.
    out
        The folder of its results.
    profile
        Which of the file's profiles. Default: quick, if there is one.
    json
        Print the facts as JSON.
    """
    from gossamer.study.tabulate import looked
    from gossamer.study.tabulate import status as look
    from gossamer.study.wanted import title

    study, plan, remarks = looked(file, profile, out)
    facts = look(study, plan, remarks)
    if json:
        emit(facts)
        return
    name = f"{file}, profile {study.profile}" if study.profile else f"{file}"
    left = "" if not facts["missing"] or facts["left"] is None else f", about {facts['left']:.0f} s of one process"
    console.print(
        f"{name}: {facts['done']} of {facts['cells']} cells are done ({facts['seconds']:.0f} s), {len(facts['failed'])} failed, "
        f"{facts['missing']} are left{left}",
        highlight=False,
    )
    for one in facts["failed"]:
        console.print(f"  failed: {escape(title(one['axes']))}: {escape(one['error'])}", highlight=False)
    for remark in facts["notes"]:
        console.print(f"· {escape(remark)}", highlight=False)
