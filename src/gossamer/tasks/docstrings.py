"""Real text that every machine has: paragraphs of the docstrings of Python's own standard library, by area.

Found with `ast` in the running interpreter, nothing is imported. The task is to tell the area from the passage; the
names of modules and areas themselves are a fair cue, as topic words are in any topic classification.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from gossamer.tasks.readers import Table

AREAS = {
    "networking": "socket socketserver ssl http urllib ftplib telnetlib xmlrpc wsgiref ipaddress select selectors nntplib "
    "cgi cgitb cgi webbrowser",
    "concurrency": "asyncio threading multiprocessing concurrent queue subprocess sched contextvars _threading_local",
    "gui": "tkinter idlelib turtle turtledemo",
    "email": "email mailbox smtplib imaplib poplib smtpd mailcap mimetypes",
    "files": "os posixpath ntpath genericpath pathlib shutil tempfile zipfile tarfile glob fnmatch gzip bz2 lzma filecmp "
    "fileinput io _pyio zipimport zipapp stat",
    "testing": "unittest doctest pdb bdb trace cProfile profile pstats timeit tracemalloc faulthandler",
    "numbers": "decimal _pydecimal fractions statistics numbers random datetime _pydatetime calendar _strptime colorsys "
    "zoneinfo",
    "language": "ast importlib inspect dis tokenize lib2to3 distutils ensurepip venv pkgutil typing types dataclasses abc "
    "_collections_abc symtable pydoc compileall py_compile pyclbr modulefinder runpy code codeop opcode functools enum",
}  # fmt: skip


def passages(limit: int = 5000, *, fewest: int = 100, seed: int = 0) -> Table:
    """Columns `text` and `label`: at most `limit` distinct passages, shuffled; areas with fewer than `fewest` left out."""
    found: dict[str, list[str]] = {}
    for area, modules in AREAS.items():
        texts = dict.fromkeys(text for module in modules.split() for text in _module(module))
        if len(texts) >= fewest:
            found[area] = list(texts)
    rows = [(text, area) for area, texts in found.items() for text in texts]
    random.Random(seed).shuffle(rows)
    rows = rows[:limit]
    return {"text": [text for text, _ in rows], "label": [area for _, area in rows]}


def split(table: Table, share: float = 0.2) -> tuple[Table, Table]:
    """Training and held-out rows of a shuffled table."""
    cut = round(len(table["text"]) * (1 - share))
    return {n: v[:cut] for n, v in table.items()}, {n: v[cut:] for n, v in table.items()}


def _module(name: str) -> Iterator[str]:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted((root / name).rglob("*.py")) if (root / name).is_dir() else [root / f"{name}.py"]
    for file in files:
        if file.is_file() and not {"test", "tests", "idle_test"} & set(file.relative_to(root).parts):
            yield from _file(file)


def _file(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old sources hold escapes that newer parsers warn of
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                text = " ".join(paragraph.split())
                if len(text) >= 40 and sum(c.isalpha() for c in text) > 0.6 * len(text):
                    yield text
