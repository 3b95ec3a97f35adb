"""The floors of the house: imports go strictly downward, to leaf modules."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
FLOORS = [
    {"errors"},
    {"delta"},
    {"select", "tunable", "compose", "analyze", "tasks"},
    {"train", "serve", "interop"},
    {"prime"},
    {"study"},
    {"cli"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
LEAN = {"delta", "select", "tunable"}  # rooms that need nothing but these
LEAN_IMPORTS = {"torch", "numpy", "safetensors", "gossamer", "__future__", *sys.stdlib_module_names}
LAZY = {
    "tunable/lora.py": {"peft"},
    "tunable/sampled_triton.py": {"triton"},
}  # files imported when asked for, that import these
FACE = SRC / "gossamer" / "__init__.py"  # the public names; above everything, imported by nothing inside
FILES = sorted(set((SRC / "gossamer").rglob("*.py")) - {FACE})


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import in a file, those inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import by the full name"
            assert node.module is not None
            # `from gossamer.delta import codec` names the module gossamer.delta.codec
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, part if exists(part) else node.module) for part in parts)


def exists(module: str) -> bool:
    place = SRC.joinpath(*module.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def room(path: Path) -> str:
    return path.relative_to(SRC / "gossamer").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SRC)))
def test_imports_go_strictly_downward(path):
    here = room(path)
    assert here in FLOOR, f"{here} is on no floor; add it to FLOORS"
    for line, module in imported(path):
        top, *below = module.split(".")
        if here in LEAN:
            more = LAZY.get(path.relative_to(SRC / "gossamer").as_posix(), set())
            assert top in LEAN_IMPORTS | more, (
                f"{path}:{line}: {here} needs torch, numpy and safetensors only, not {top}"
            )
        if top != "gossamer":
            continue
        leaf = SRC.joinpath(*module.split(".")).with_suffix(".py")
        assert leaf.is_file(), f"{path}:{line}: import a leaf module, not the package {module}"
        assert below[0] == here or FLOOR[below[0]] < FLOOR[here], f"{path}:{line}: {here} must not import {module}"


@pytest.mark.parametrize("path", LAZY)
def test_lazy_imports_are_within_functions(path):
    top_level = ast.parse((SRC / "gossamer" / path).read_text(encoding="utf-8")).body
    for node in top_level:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        assert not {name.split(".")[0] for name in names} & LAZY[path]


def test_the_rooms_are_there():
    rooms = {room(path) for path in FILES}
    assert {"errors", "delta", "select", "tunable", "train", "cli"} <= rooms <= FLOOR.keys()
    assert len(FILES) > 20
