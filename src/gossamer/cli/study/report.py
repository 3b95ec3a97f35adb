"""gossamer study report: a study as one page."""

from __future__ import annotations

from pathlib import Path

from gossamer.cli.output import Flag, console, emit


def report(file: Path, *, out: Path, profile: str | None = None, html: Path | None = None, json: Flag = False) -> None:
    """Write a study as one HTML page that needs no other file, and as Markdown: claim, rule, verdict, tables, pictures.

    Parameters
    ----------
    file
        The study, a YAML file.
    out
        The folder of its results.
    profile
        Which of the file's profiles. Default: quick, if there is one.
    html
        The page. Default: report.html in the folder of the results. The Markdown lies beside it and ends in .md.
    json
        Print where they are, and the verdict, as JSON.
    """
    from gossamer.delta.disk import atomic
    from gossamer.study import page
    from gossamer.study.tabulate import looked, tabulated

    study, plan, remarks = looked(file, profile, out)
    facts = tabulated(study, plan, remarks)
    where = html or out / "report.html"
    command = page.commands(study, out.name)
    for path, text in (
        (where, page.html(study, facts, plan, command)),
        (where.with_suffix(".md"), page.markdown(study, facts, plan, command)),
    ):
        atomic(path, lambda temporary, text=text: Path(temporary).write_text(text, "utf-8"))
    word = facts["verdict"]["word"] if facts["verdict"] else None
    if json:
        emit({"html": str(where), "markdown": str(where.with_suffix(".md")), "verdict": word, "done": facts["done"],
              "cells": facts["cells"]})  # fmt: skip
        return
    done = f"{facts['done']} of {facts['cells']} cells; verdict: {word or 'none asked for'}"
    console.print(f"{where}, {where.with_suffix('.md').name}: {done}", highlight=False)
