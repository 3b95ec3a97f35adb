"""A base as it lies on disk: safetensors, one file or shards by index, read a tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from gossamer.errors import BadFile, BaseMismatch

INDEX = "model.safetensors.index.json"


class Shards:
    """The tensors of a model directory: name → tensor, read when asked for and not kept."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.files = _files(self.folder)

    def __getitem__(self, name: str) -> Tensor:
        path = self.folder / self.files[name]
        try:
            with safe_open(str(path), "pt") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise BadFile(f"{path}: tensor {name!r} cannot be read: {error}; download the base again") from None

    def shape(self, name: str) -> tuple[int, ...]:
        with safe_open(str(self.folder / self.files[name]), "pt") as file:
            return tuple(file.get_slice(name).get_shape())


def prefix_of(touched: Iterable[str], known: Iterable[str], there: Mapping[str, str]) -> str:
    """The one prefix under which a checkpoint holds all touched parameters, whose names are relative to the backbone.

    Args:
        touched: names that must be there.
        known: further names of the base, asked only where several prefixes would do.
        there: the checkpoint's names.

    Raises:
        BaseMismatch: no prefix does, or several do.
    """
    wanted = sorted(touched)
    if not wanted:
        return ""
    ends = {name for name in there if name == wanted[0] or name.endswith("." + wanted[0])}
    found = sorted(end.removesuffix(wanted[0]) for end in ends)
    found = [prefix for prefix in found if all(prefix + name in there for name in wanted)]
    if len(found) > 1:
        base = list(known)
        scores = [sum(prefix + name in there for name in base) for prefix in found]
        best = [prefix for prefix, score in zip(found, scores, strict=True) if score == max(scores)]
        found = best if len(best) == 1 else found
    if not found:
        raise BaseMismatch(
            f"the checkpoint has no tensor {wanted[0]!r}, under no prefix that all {len(wanted)} touched parameters share "
            f"(it holds {', '.join(sorted(there)[:3])}, …); give the base that the delta was trained on"
        )
    if len(found) > 1:
        raise BaseMismatch(
            f"the checkpoint holds {wanted[0]!r} under several prefixes ({', '.join(map(repr, found))}), so the delta's names "
            "do not say which is meant; pass prefix="
        )
    return found[0]


def _files(folder: Path) -> dict[str, str]:
    index = folder / INDEX
    if index.is_file():
        try:
            files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            assert all(isinstance(n, str) and Path(f).name == f for n, f in files.items())
        except (ValueError, LookupError, TypeError, AttributeError, AssertionError):
            raise BadFile(f"{index} is no index of safetensors shards; download the base again") from None
        return files
    single = folder / "model.safetensors"
    if not single.is_file():
        raise BadFile(
            f"{folder} holds neither {INDEX} nor model.safetensors; give the directory of a base in safetensors"
        )
    try:
        with safe_open(str(single), "pt") as file:
            return dict.fromkeys(file.keys(), single.name)
    except SafetensorError as error:
        raise BadFile(f"{single} cannot be read: {error}; download the base again") from None
