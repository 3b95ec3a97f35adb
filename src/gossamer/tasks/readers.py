"""From a file, or a data set of the Hub, to columns: name → list of values. Text stays text ("NA" is a word)."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gossamer.errors import BadData

Table = dict[str, list[Any]]  # all lists of one length
_SEPARATED = {".csv": ",", ".tsv": "\t"}


def read(source: str) -> Table:
    """Reads .csv, .tsv, .jsonl, .json, .parquet, or ``name[:config]:split`` from the Hub through `datasets`.

    Raises:
        BadData: no such file, not in its format (with the line), no rows.
    """
    path = Path(source)
    if path.is_file():
        table = _read_file(path)
    elif path.suffix in {*_SEPARATED, ".jsonl", ".json", ".parquet"} or path.exists():
        raise BadData(f"{source} is not a file; expected .csv, .tsv, .jsonl, .json, .parquet, or name:split of the Hub")
    else:
        table = _read_hub(source)
    if not size(table):
        raise BadData(f"{source} has no rows; at least one example is needed")
    return table


def size(table: Table) -> int:
    """Number of rows."""
    return len(next(iter(table.values()), []))


def subset(table: Table, limit: int | None) -> Table:
    """The first `limit` rows of one fixed shuffle, so that smaller subsets lie in larger ones; None: the table itself.

    >>> few, more = subset({"text": list("abcde")}, 2), subset({"text": list("abcde")}, 4)
    >>> few["text"] == more["text"][:2]
    True
    """
    if limit is None:
        return table
    order = list(range(size(table)))
    random.Random(0).shuffle(order)
    return {name: [values[i] for i in order[:limit]] for name, values in table.items()}


def _read_file(path: Path) -> Table:
    try:
        if path.suffix in _SEPARATED:
            return _separated(path)
        if path.suffix == ".jsonl":
            return _columns(_json_lines(path), path)
        if path.suffix == ".json":
            rows = json.loads(path.read_text("utf-8"))
            return _columns(rows if isinstance(rows, list) else [rows], path)
        if path.suffix == ".parquet":
            from pyarrow import ArrowException, parquet

            try:
                return parquet.read_table(path).to_pydict()
            except ArrowException as error:
                raise BadData(f"{path} is not a Parquet file: {error}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadData(
            f"{path} cannot be read as {path.suffix[1:]}: {error}; save it as UTF-8 {path.suffix[1:]}"
        ) from None
    raise BadData(f"{path}: unknown kind {path.suffix!r}; expected .csv, .tsv, .jsonl, .json or .parquet")


def _separated(path: Path) -> Table:
    tab = path.suffix == ".tsv"  # TSV files of this field are not quoted: a quotation mark is a character
    with path.open(encoding="utf-8-sig", newline="") as lines:
        quoting = csv.QUOTE_NONE if tab else csv.QUOTE_MINIMAL
        reader = csv.reader(lines, delimiter=_SEPARATED[path.suffix], quoting=quoting)
        try:
            names = next(reader, [])
            table: Table = {name: [] for name in names}
            if len(table) < len(names):
                raise BadData(f"{path}: two columns have one name in the header {names}; rename one")
            for row in reader:
                if not row:
                    continue
                if len(row) != len(names):
                    raise BadData(
                        f"{path}, line {reader.line_num}: {len(row)} fields where the header has {len(names)}"
                    )
                for name, value in zip(names, row, strict=True):
                    table[name].append(value)
        except csv.Error as error:
            raise BadData(f"{path}, line {reader.line_num}: {error}") from None
    return table


def _json_lines(path: Path) -> Iterable[Any]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise BadData(
                        f"{path}, line {number}: not JSON ({error.msg}); expected one object a line"
                    ) from None


def _columns(rows: Iterable[Any], path: Path) -> Table:
    table: Table = {}
    for count, row in enumerate(rows):
        if not isinstance(row, dict):
            raise BadData(f"{path}: row {count + 1} is a {type(row).__name__}; expected an object with named fields")
        for name in row:  # in the order of the file, which decides what is the first text
            if name not in table:
                table[name] = [None] * count
        for name, values in table.items():
            values.append(row.get(name))
    return table


def _read_hub(source: str) -> Table:
    from datasets import load_dataset

    name, *rest = source.split(":")
    if len(rest) not in (1, 2):
        raise BadData(f"{source!r} is no file; of the Hub, name the split: name:split or name:config:split")
    try:
        loaded = load_dataset(name, *rest[:-1], split=rest[-1])
    except Exception as error:  # datasets raises many kinds: no network, unknown name, unknown split
        raise BadData(f"{source!r} is no file here and could not be loaded from the Hub: {error}") from error
    table: Table = {column: list(loaded[column]) for column in loaded.column_names}  # type: ignore[index, union-attr]
    for column, feature in loaded.features.items():  # type: ignore[union-attr]
        if hasattr(feature, "int2str"):  # a class label: its name says more than its number
            table[column] = [None if value is None or value < 0 else feature.int2str(value) for value in table[column]]
    return table
