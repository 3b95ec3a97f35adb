"""Files that gossamer did not write, or that were changed since: always BadFile, never a wrong Delta, never a crash."""

import errno
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gossamer.delta import codec, disk, store
from gossamer.delta.delta import Delta
from gossamer.delta.graft import Graft, shapes
from gossamer.delta.patch import Dense, LowRank, Replaced
from gossamer.delta.store import load
from gossamer.errors import BadFile, BadPlan, Clash, GossamerError

Tensors, Description = dict[str, Tensor], dict[str, Any]


@pytest.fixture
def file(tmp_path: Path, every_kind: Delta) -> Path:
    path = tmp_path / "delta.safetensors"
    every_kind.save(path)
    return path


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()


def signed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest() + " " + text


def forge(path: Path, edit: Callable[[Tensors, Description], Any]) -> None:
    """Changes a file and makes every checksum right again, as someone would who knows the format."""
    with safe_open(str(path), "pt") as opened:
        description = json.loads(opened.metadata()["gossamer"].split(" ", 1)[1])
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    before = description["tensors"]
    edit(tensors, description)
    if description["tensors"] is before:
        description["tensors"] = {
            n: [str(t.dtype).removeprefix("torch."), list(t.shape), digest(t)] for n, t in tensors.items()
        }
    save_file(tensors, path, metadata={"gossamer": signed(json.dumps(description))})


def refuses(path: Path, match: str | None = None) -> None:
    with pytest.raises(BadFile, match=match) as caught:
        load(path)
    assert str(caught.value)


# accidents ------------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_is_noticed(file):
    whole = bytearray(file.read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    bits = [(byte, 5 * byte % 8) for byte in range(len(whole))]  # one bit of every byte
    bits += [(byte, bit) for byte in (*range(8), *range(8, header, 97), header - 1) for bit in range(8)]
    for byte, bit in bits:
        whole[byte] ^= 1 << bit
        file.write_bytes(whole)
        whole[byte] ^= 1 << bit
        refuses(file)


def test_a_truncated_or_longer_file(file):
    whole = file.read_bytes()
    for length in (*range(0, len(whole), 37), len(whole) - 1):
        file.write_bytes(whole[:length])
        refuses(file)
    file.write_bytes(whole + b"\0")
    refuses(file)


@given(st.binary(max_size=100), st.integers(0, 4000))
def test_overwritten_stretches(tmp_path_factory, raw, at):
    path = tmp_path_factory.mktemp("attack") / "d.safetensors"
    Delta.of({"w": Dense(torch.ones(40))}).save(path)
    whole = path.read_bytes()
    at %= len(whole)
    changed = whole[:at] + raw + whole[at + len(raw) :]
    path.write_bytes(changed)
    if changed != whole:
        refuses(path)


def test_other_kinds_of_file(tmp_path):
    path = tmp_path / "x.safetensors"
    refuses(path, "not a file")
    refuses(tmp_path, "not a file")
    path.write_bytes(b"")
    refuses(path)
    save_file({"a": torch.ones(2)}, path)
    refuses(path, "no gossamer delta")
    save_file({"a": torch.ones(2)}, path, metadata={"format": "pt"})
    refuses(path, "no gossamer delta")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps({"diffs": {}}, protocol))
        refuses(path)
    torch.save({"a": torch.ones(2)}, path)
    refuses(path)
    path.write_bytes((2**63).to_bytes(8, "little") + b"{}")
    refuses(path)


def test_nothing_unpickles(tmp_path):
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    path = tmp_path / "x.safetensors"
    for write in (lambda: path.write_bytes(pickle.dumps(Bomb())), lambda: torch.save(Bomb(), path)):
        write()
        refuses(path)
    assert not (tmp_path / "exploded").exists()


def test_metadata_of_others_is_refused(file):
    with safe_open(str(file), "pt") as opened:
        metadata, tensors = opened.metadata(), {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    save_file(tensors, file, metadata=metadata)
    load(file)
    save_file(tensors, file, metadata={**metadata, "more": "data"})
    refuses(file)


def test_a_newer_format_says_to_upgrade(file):
    forge(file, lambda tensors, about: about.update(format=store.FORMAT + 1, surprise=[1, 2]))
    refuses(file, "upgrade gossamer")


# forgeries, every checksum right --------------------------------------------------------------------------------------


def test_forging_nothing_changes_nothing(file, every_kind):
    forge(file, lambda tensors, about: None)
    assert load(file) == every_kind


def positions(code: np.ndarray) -> Callable[[Tensors, Description], None]:
    """Puts other codes in the place of those of the 8 bf16 positions, which lie in 12 + 35 places."""
    return lambda tensors, about: tensors.update({"sparse.bfloat16.positions": torch.from_numpy(code)})


@pytest.mark.parametrize("last", [47, 48, 1000, 2**31, 2**40])
def test_positions_out_of_range(file, last):
    for end, fits in ((46, True), (last, False)):
        forge(file, positions(codec.encode(np.array([0, 1, 2, 17, 34, 36, 40, end]), end + 1)))
        if fits:
            ((_, patch),) = load(file).terms["embed.weight"]
            assert patch.indices.tolist() == [5, 22, 24, 28, 34]
        else:
            refuses(file, r"sparse\.bfloat16\.positions")


@pytest.mark.parametrize("count", [0, 1, 7, 9, 47])
def test_positions_of_another_number(file, count):
    forge(file, positions(codec.encode(np.arange(count), 47)))
    refuses(file, r"sparse\.bfloat16\.positions")


@given(st.one_of(st.binary(max_size=40), st.lists(st.integers(-3, 60), min_size=8, max_size=8)))
def test_positions_that_no_encoder_writes(tmp_path_factory, every_kind, source):
    """Any bytes, or the code of positions that are unsorted, repeated or negative: BadFile, or a valid support."""
    path = tmp_path_factory.mktemp("attack") / "d.safetensors"
    every_kind.save(path)
    if isinstance(source, bytes):
        code = np.frombuffer(source, np.uint8).copy()
    else:
        try:
            code = codec.encode(np.array(source), 47)
        except (ValueError, IndexError, ZeroDivisionError):
            return
    forge(path, positions(code))
    try:
        found = load(path)
    except BadFile:
        return
    for name, size in (("down.weight", 12), ("embed.weight", 35)):
        for _, patch in found.terms.get(name, ()):
            if not isinstance(patch, LowRank):
                assert (patch.indices.diff() > 0).all()
                assert patch.indices.numel() == 0 or (patch.indices[0] >= 0 and patch.indices[-1] < size)


def to(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors, Description], None]:
    return lambda tensors, about: tensors.update({name: change(tensors[name]).contiguous()})


def poison(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.reshape(-1).index_fill(0, torch.tensor([0]), value).reshape(tensor.shape)


FLOATS = [
    "sparse.bfloat16.values",
    "sparse.float16.values",
    "dense.up.weight",
    "lowrank.down.weight.left",
    "head.classifier.bias",
]


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(file, name, value):
    forge(file, to(name, poison(value)))
    refuses(file, name)


def drop(name: str) -> Callable[[Tensors, Description], Any]:
    return lambda tensors, about: tensors.pop(name)


def add(name: str, value: Tensor) -> Callable[[Tensors, Description], Any]:
    return lambda tensors, about: tensors.update({name: value})


def listed(dtype: str, at: int, *entry: Any) -> Callable[[Tensors, Description], Any]:
    return lambda tensors, about: about["sparse"][dtype].__setitem__(at, list(entry))


def set_to(key: str, value: Any) -> Callable[[Tensors, Description], Any]:
    return lambda tensors, about: about.update({key: value})


def based(*fields: Any) -> Callable[[Tensors, Description], Any]:
    return lambda tensors, about: about["base"].append(list(fields))


BIG = 2**61
FORGERIES = {
    "too few values": to("sparse.bfloat16.values", lambda t: t[:-1]),
    "too many values": to("sparse.bfloat16.values", lambda t: t.repeat(2)),
    "no values": to("sparse.bfloat16.values", lambda t: t[:0]),
    "values of another dtype": to("sparse.bfloat16.values", lambda t: t.float()),
    "integer values": to("sparse.bfloat16.values", lambda t: t.view(torch.int16)),
    "values in a matrix": to("sparse.bfloat16.values", lambda t: t.view(2, 4)),
    "positions in a matrix": to("sparse.bfloat16.positions", lambda t: t.view(1, -1)),
    "one position byte in a cube": to("sparse.bfloat16.positions", lambda t: t[:1].view(1, 1, 1)),
    "signed positions": to("sparse.bfloat16.positions", lambda t: t.view(torch.int8)),
    "no positions": drop("sparse.bfloat16.positions"),
    "values gone": drop("sparse.float16.values"),
    "extra tensor": add("surprise", torch.ones(2)),
    "extra sparse dtype": add("sparse.float64.values", torch.ones(2, dtype=torch.float64)),
    "half a low-rank patch": drop("lowrank.down.weight.right"),
    "the other half": drop("lowrank.down.weight.left"),
    "low rank of unlike ranks": to("lowrank.down.weight.right", lambda t: t[:1]),
    "low rank of another shape": to("lowrank.down.weight.right", lambda t: t[:, :1]),
    "low rank in three dimensions": to("lowrank.down.weight.right", lambda t: t[None]),
    "dense of another shape": to("dense.up.weight", lambda t: t.t()),
    "dense integers": to("dense.up.weight", lambda t: t.view(torch.int16)),
    "dense where the base has nothing of that shape": add("dense.norm.bias", torch.ones(7)),
    "another shape": listed("bfloat16", 1, "embed.weight", [5, 7], False),
    "a smaller shape": listed("bfloat16", 1, "embed.weight", [5, 5], False),
    "whole where it is not": listed("bfloat16", 1, "embed.weight", [7, 5], True),
    "whole by a number": listed("bfloat16", 1, "embed.weight", [7, 5], 8),
    "no mark": listed("bfloat16", 1, "embed.weight", [7, 5]),
    "named twice": listed("bfloat16", 1, "down.weight", [3, 4], False),
    "a huge shape": listed("bfloat16", 1, "embed.weight", [BIG, 4], False),
    "huge shapes": lambda t, a: a["sparse"].update(bfloat16=[[str(i), [BIG], False] for i in range(5)]),
    "a negative shape": listed("bfloat16", 1, "embed.weight", [-7, -5], False),
    "a shape of text": listed("bfloat16", 1, "embed.weight", "75", False),
    "a shape of fractions": listed("bfloat16", 1, "embed.weight", [7.0, 5.0], False),
    "a shape of truths": listed("bfloat16", 1, "embed.weight", [True, 35], False),
    "a number for a name": listed("bfloat16", 1, 5, [7, 5], False),
    "a list for a name": listed("bfloat16", 1, ["embed.weight"], [7, 5], False),
    "sparse list of numbers": set_to("sparse", {"bfloat16": [1, 2], "float16": [], "float32": []}),
    "sparse is a list": set_to("sparse", []),
    "sparse is nothing": set_to("sparse", None),
    "sparse of an unknown dtype": lambda t, a: a["sparse"].update(float8_e4m3fn=a["sparse"].pop("float16")),
    "no sparse": lambda t, a: a.pop("sparse"),
    "no base": lambda t, a: a.pop("base"),
    "no provenance": lambda t, a: a.pop("about"),
    "no tensors": set_to("tensors", None),
    "tensors in a list": set_to("tensors", []),
    "other tensors": set_to("tensors", {"a": ["float32", [2], "00"]}),
    "provenance is text": set_to("about", "lt-sft"),
    "provenance is a list": set_to("about", []),
    "parts are numbers": set_to("about", {"parts": [1, 2]}),
    "parts are texts": set_to("about", {"parts": [["1", {}]]}),
    "parts are no list": set_to("about", {"parts": 3}),
    "base is a number": set_to("base", 5),
    "base of short records": set_to("base", [["w", [2]]]),
    "base of long records": based("w", [2], "float32", {"float32": "00"}, 3),
    "base without its digest": based("w", [2], "float32", {"bfloat16": "00"}),
    "base with a number for a digest": based("w", [2], "float32", {"float32": "00", "bfloat16": 7}),
    "base with a list of digests": based("w", [2], "float32", ["00"]),
    "base with a number for a dtype": based("w", [2], 32, {"float32": "00"}),
    "base with a number for a name": based(7, [2], "float32", {"float32": "00"}),
    "base with text for a shape": based("w", "2", "float32", {"float32": "00"}),
    "version is text": set_to("format", "1"),
    "version is nothing": set_to("format", None),
    "version is zero": set_to("format", 0),
    "version is true": set_to("format", True),
}


@pytest.mark.parametrize("edit", FORGERIES.values(), ids=FORGERIES.keys())
def test_forgeries(file, edit):
    forge(file, edit)
    refuses(file)


# grafts ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def grafted(tmp_path: Path, with_grafts: Delta) -> Path:
    path = tmp_path / "grafted.safetensors"
    with_grafts.save(path)
    return path


def test_damage_to_a_file_with_grafts(grafted, with_grafts):
    whole = bytearray(grafted.read_bytes())
    for at in range(len(whole)):
        whole[at] ^= 1 << at % 8
        grafted.write_bytes(whole)
        whole[at] ^= 1 << at % 8
        refuses(grafted)
    for length in range(0, len(whole), 53):
        grafted.write_bytes(whole[:length])
        refuses(grafted)
    grafted.write_bytes(whole)
    forge(grafted, lambda tensors, about: None)
    assert load(grafted) == with_grafts


GRAFT_PARTS = ["embed.0.f.down.weight", "embed.0.g.up.bias", "layer.0.out.0.up.weight", "layer.0.out.1.down.bias"]


@pytest.mark.parametrize("part", GRAFT_PARTS)
def test_a_tensor_of_a_graft_is_named_when_it_is_wrong(grafted, with_grafts, part):
    name = f"graft.{part}"
    # a bias says the widths, so that a wrong one makes the weights look wrong: then the graft is what is named
    said = part.split(".")[0] if part.endswith("bias") else part.split(".0.")[-1]
    wrong = {"missing": drop(name), "not finite": to(name, poison(float("nan"))), "infinite": to(name, poison(float("inf"))),
             "integers": to(name, lambda t: t.to(torch.int16)), "empty": to(name, lambda t: t[:0]),
             "too short": to(name, lambda t: t[:-1]), "too long": to(name, lambda t: t.repeat_interleave(2, 0)),
             "one dimension more": to(name, lambda t: t[None])}  # fmt: skip
    for edit in wrong.values():
        with_grafts.save(grafted, force=True)
        forge(grafted, edit)
        refuses(grafted, said)


def entry(at: int, *values: Any) -> Callable[[Tensors, Description], Any]:
    return lambda tensors, about: about["grafts"].__setitem__(at, list(values))


GRAFT_FORGERIES = {
    "unknown kind": entry(0, "embed", "prefix", "relu", 0),
    "kind that is a list": entry(0, "embed", ["invertible"], "relu", 0),
    "another kind": entry(0, "embed", "bottleneck", "relu", 0),
    "unknown activation": entry(0, "embed", "invertible", "swish", 0),
    "activation that is a list": entry(0, "embed", "invertible", [], 0),
    "another level": entry(0, "embed", "invertible", "relu", 1),
    "level of text": entry(0, "embed", "invertible", "relu", "0"),
    "level of truth": entry(0, "embed", "invertible", "relu", False),
    "level of a fraction": entry(0, "embed", "invertible", "relu", 0.0),
    "negative level": lambda t, a: (entry(0, "embed", "invertible", "relu", -1)(t, a),
                                    [t.update({n.replace(".0.", ".-1.", 1): t.pop(n)}) for n in list(t)
                                     if n.startswith("graft.embed")]),
    "place of a number": lambda t, a: (entry(0, 7, "invertible", "relu", 0)(t, a),
                                       [t.update({n.replace("embed", "7"): t.pop(n)}) for n in list(t)
                                        if n.startswith("graft.embed")]),
    "another place": entry(0, "embedding", "invertible", "relu", 0),
    "short entry": entry(0, "embed", "invertible", "relu"),
    "long entry": entry(0, "embed", "invertible", "relu", 0, 1),
    "an entry of text": lambda t, a: a["grafts"].__setitem__(0, "embed"),
    "listed twice": lambda t, a: a["grafts"].append(a["grafts"][0]),
    "out of order": lambda t, a: a["grafts"].reverse(),
    "not listed": lambda t, a: a["grafts"].pop(),
    "listed without tensors": lambda t, a: a["grafts"].append(["more", "bottleneck", "relu", 0]),
    "no list": set_to("grafts", None),
    "a mapping": set_to("grafts", {"embed": 1}),
    "a number": set_to("grafts", 3),
    "an empty list": lambda t, a: (set_to("grafts", [])(t, a), [t.pop(n) for n in list(t) if n.startswith("graft.")]),
    "the first version": set_to("format", 1),
    "no list in the second version": lambda t, a: (a.pop("grafts"),
                                                   [t.pop(n) for n in list(t) if n.startswith("graft.")]),
    "extra tensor": add("graft.embed.0.norm.weight", torch.ones(5)),
    "tensors of no graft": add("graft.other.0.up.bias", torch.ones(5)),
}  # fmt: skip


@pytest.mark.parametrize("edit", GRAFT_FORGERIES.values(), ids=GRAFT_FORGERIES.keys())
def test_forged_grafts(grafted, edit):
    forge(grafted, edit)
    refuses(grafted)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "NaN", '{"format": 1}', "[" * 100_000])
def test_descriptions_that_are_none(file, text):
    for metadata in ({"gossamer": signed(text)}, {"gossamer": text}, {"gossamer": signed(text), "more": "data"}):
        save_file({"a": torch.ones(2)}, file, metadata=metadata)
        refuses(file)


# writing --------------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing_behind(tmp_path, every_kind, monkeypatch):
    def full(tensors: Tensors, filename: str, metadata: dict[str, str]) -> None:
        Path(filename).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(GossamerError, match="No space left"):
        every_kind.save(tmp_path / "d.safetensors")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    every_kind.save(tmp_path / "d.safetensors")
    before = (tmp_path / "d.safetensors").read_bytes()
    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(GossamerError):
        (2 * every_kind).save(tmp_path / "d.safetensors", force=True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_an_interruption_leaves_nothing_behind(tmp_path, every_kind, monkeypatch):
    def interrupted(path: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(disk, "sync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        every_kind.save(tmp_path / "d.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_not_overwritten_unasked(file, every_kind):
    before = file.read_bytes()
    with pytest.raises(Clash, match="--force"):
        (2 * every_kind).save(file)
    assert file.read_bytes() == before
    (2 * every_kind).save(file, force=True)
    assert load(file) == (2 * every_kind).coalesce()
    with pytest.raises(Clash):
        every_kind.save(file.parent)
    for place in (file.parent, file / "below.safetensors", file.parent / ("x" * 300)):
        with pytest.raises(GossamerError):
            every_kind.save(place, force=True)
    assert list(file.parent.iterdir()) == [file]


def test_the_same_delta_makes_the_same_file(tmp_path, every_kind):
    for name in "abcdef":
        every_kind.save(tmp_path / "deep" / name)
    assert len({path.read_bytes() for path in (tmp_path / "deep").iterdir()}) == 1


@pytest.mark.parametrize("about", [{"rate": float("nan")}, {"path": Path("x")}, {"tensor": torch.ones(1)}, {(1, 2): 3}])
def test_provenance_must_be_plain_json(tmp_path, about):
    with pytest.raises(BadPlan, match="plain JSON"):
        Delta({}, about=about).save(tmp_path / "d.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_diverged_delta_is_not_written(tmp_path, value):
    bad = Graft("p", {part: torch.full(shape, value) for part, shape in shapes("bottleneck", 2, 1).items()})
    for delta in (Delta.of({"w": Dense(torch.tensor([1.0, value]))}), Delta({}, head={"h": torch.tensor([value])}),
                  1e39 * Delta.of({"w": Dense(torch.ones(2))}), Delta({}, grafts=(bad,))):  # fmt: skip
        with pytest.raises(BadPlan, match="NaN or infinite"):
            delta.save(tmp_path / "d.safetensors")
    assert list(tmp_path.iterdir()) == []


# replacements -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def replacing(tmp_path: Path) -> Path:
    """Places of each kind: positions of a, a mask of b, all of c."""
    path = tmp_path / "replaced.safetensors"
    few, many = torch.arange(0, 4000, 101), torch.arange(0, 21, 2)
    found = {
        "a": Replaced((40, 100), few, torch.ones(few.numel())),
        "b": Replaced((21,), many, torch.ones(many.numel())),
        "c": Replaced((3, 4), None, torch.ones(12)),
    }
    Delta({}, replaced=found).save(path)
    assert load(path) == Delta({}, replaced=found)
    return path


def listed(how: Callable[[list[Any]], Any]) -> Callable[[Tensors, Description], Any]:
    return lambda tensors, description: description.update(replaced=how(description["replaced"]))


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        (listed(lambda rows: []), "not at all"),
        (listed(lambda rows: rows[:1] + rows), "twice"),
        (listed(lambda rows: rows[::-1]), "out of order"),
        (listed(lambda rows: [[3, *rows[0][1:]], *rows[1:]]), "not text"),
        (listed(lambda rows: [[None, [1], "dense"]]), "not text"),
        (listed(lambda rows: rows[:2]), "no place"),
        (listed(lambda rows: [*rows, ["d", [2], "dense"]]), "contradicts"),
        (listed(lambda rows: None), None),
        (listed(lambda rows: [["a", [40, 100]], *rows[1:]]), None),
        (listed(lambda rows: [["a", [40, 100], "values"], *rows[1:]]), "unknown kind"),
        (listed(lambda rows: [["a", [40, 100], "dense"], *rows[1:]]), None),
        (listed(lambda rows: [["a", [40, 9], "positions"], *rows[1:]]), "beyond"),
        (listed(lambda rows: [["a", [1 << 40, 1 << 40], "positions"], *rows[1:]]), "cannot be"),
        (listed(lambda rows: [["a", [-40, -100], "positions"], *rows[1:]]), "not the shape"),
        (listed(lambda rows: [rows[0], ["b", [25], "mask"], rows[2]]), "wrong length"),
        (listed(lambda rows: [rows[0], ["b", [17], "mask"], rows[2]]), "behind its end"),
        (listed(lambda rows: [*rows[:2], ["c", [3, 5], "dense"]]), "cannot replace"),
        (lambda tensors, _: tensors.update({"set.b.mask": tensors["set.b.mask"].float()}), "no bytes"),
        (lambda tensors, _: tensors.update({"set.b.mask": tensors["set.b.mask"][None]}), "no bytes"),
        (lambda tensors, _: tensors.update({"set.b.mask": tensors["set.b.mask"] * 0}), None),
        (lambda tensors, _: tensors.update({"set.a.positions": tensors["set.a.positions"][:-1].clone()}), "end early"),
        (lambda tensors, _: tensors.update({"set.a.values": tensors["set.a.values"].int()}), "int32"),
        (lambda tensors, _: tensors.update({"set.a.values": tensors["set.a.values"] * float("nan")}), "NaN"),
        (lambda tensors, _: tensors.pop("set.a.positions"), "set.a.positions"),
        (lambda tensors, _: tensors.update({"set.c.mask": torch.ones(2, dtype=torch.uint8)}), "no place"),
        (lambda _, description: description.update(format=2), "does not exist"),
        (lambda _, description: description.update(base=[["c", [4, 3], "float32", {"float32": "0" * 32}]]), "another shape"),
    ],
)  # fmt: skip
def test_forged_replacements(replacing, edit, match):
    forge(replacing, edit)
    refuses(replacing, match)


def test_format_3_without_replacements(file):
    forge(file, lambda _, description: description.update(format=3))
    refuses(file)
