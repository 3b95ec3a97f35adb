"""gossamer predict: a delta's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.markup import escape

from gossamer.cli.output import Flag, console, emit, quiet
from gossamer.errors import BadPlan


def predict(
    delta: Path,
    *,
    text: Annotated[list[str] | None, Parameter(negative=())] = None,
    pair: Annotated[list[str] | None, Parameter(negative=())] = None,
    data: str | None = None,
    base: str | None = None,
    json: Flag = False,
) -> None:
    """Answer for texts given here or in a file.

    Parameters
    ----------
    delta
        A delta's file.
    text
        A text; give the flag again for more.
    pair
        The second text of each pair, where the task has two.
    data
        A file with the task's text columns; labels are not needed.
    base
        The base, where it is no longer where the delta was trained.
    json
        Print the answers as JSON.
    """
    if (text is None) == (data is None):
        raise BadPlan("give --text (again for more) or --data, one of the two")
    quiet()
    from gossamer.tasks.readers import read
    from gossamer.train.job import open_delta

    loaded, bench = open_delta(delta, base)
    fields = bench.task.describe()["fields"]
    if text is not None:
        columns = [text, *([pair] if pair else [])]
        if len(columns) != len(fields) or len({len(column) for column in columns}) != 1:
            raise BadPlan(
                f"this task reads {' and '.join(fields)}: give --text{' and as many --pair' if len(fields) > 1 else ' alone'}"
            )
        table: dict[str, list[Any]] = dict(zip(fields, columns, strict=True))
    else:
        table = read(str(data))
    answers = bench.task.answers(bench.run(loaded, bench.task.encode(bench.tokenizer, table, labelled=False)))
    rows = [dict(zip(fields, given, strict=True)) for given in zip(*(table[name] for name in fields), strict=True)]
    if json:
        emit([{**given, **answer} for given, answer in zip(rows, answers, strict=True)])
        return
    for given, answer in zip(rows, answers, strict=True):
        said = f"{answer['value']:.3f}" if "value" in answer else f"{answer['label']} ({answer['probability']:.2f})"
        console.print(f"[bold]{escape(said)}[/]  {escape(' · '.join(given.values()))}", highlight=False)
