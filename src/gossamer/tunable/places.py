"""Where modules can be added: found from a model's structure, without the name of any architecture.

A block is a member of a list of modules that are all of one class; of nested lists the innermost that holds attention
counts. A block's width is what its first linear layer takes. Its outputs of attention are the last linear layers of that
width within each submodule called attention; its output of the feed-forward is the last one outside of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from gossamer.delta.attach import out_width
from gossamer.delta.base import backbone, base_parameters, matches
from gossamer.errors import BadPlan

_ATTENTION = re.compile(r"attn|attention|^att$", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """A module behind which another can stand."""

    name: str  # relative to the backbone
    width: int  # of the states that it gives
    module: nn.Module


def find_places(model: nn.Module, kind: str, patterns: Iterable[str] = ()) -> list[Place]:
    """The projections that end attention and feed-forward, in the model's order.

    Args:
        kind: "attention", "feedforward" or "both".
        patterns: names of linear layers to take instead: full (relative to the backbone), their last parts, or with
            shell wildcards.

    Raises:
        BadPlan: no output of a wanted kind was found, or a pattern names no linear layer.
    """
    bottom = backbone(model)
    modules = dict(bottom.named_modules())
    chosen = set(named(linears(bottom), patterns, "places"))
    for each in () if chosen else ("attention", "feedforward") if kind == "both" else (kind,):
        found = {name for prefix, block in blocks(bottom) for name in _ends(prefix, block, each)}
        if not found:
            raise BadPlan(
                f"no {each} output was found in the structure of this {type(bottom).__name__}; name the linear layers behind "
                "which to add modules: places=['*.attention.dense', '*.mlp.down']"
            )
        chosen |= found
    return [Place(name, out_width(module) or 0, module) for name, module in modules.items() if name in chosen]


def find_embeddings(model: nn.Module) -> Place:
    """What gives the blocks their first states: the outermost module that holds the input embedding and no block.

    Raises:
        BadPlan: the model has no input embedding.
    """
    bottom = backbone(model)
    modules = dict(bottom.named_modules())
    table = getattr(bottom, "get_input_embeddings", lambda: None)()
    table = table or next((module for module in modules.values() if isinstance(module, nn.Embedding)), None)
    name = next((name for name, module in modules.items() if module is table and name), "")
    if not name:
        raise BadPlan(
            f"this {type(bottom).__name__} has no input embedding, behind which an invertible module could stand"
        )
    inside = [prefix for prefix, _ in blocks(bottom)]
    parts = name.split(".")
    around = [".".join(parts[:i]) for i in range(1, len(parts) + 1)]
    place = next(outer for outer in around if not any(block.startswith(outer + ".") for block in inside))
    width = out_width(modules[name]) or find_places(model, "feedforward")[0].width
    return Place(place, width, modules[place])


def blocks(bottom: nn.Module) -> list[tuple[str, nn.Module]]:
    """The repeated blocks of a backbone, by name."""
    lists = {
        name: module
        for name, module in bottom.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and _alike(list(module.children()))
    }
    attending = [
        n
        for n, members in lists.items()
        if any(_is_attention(name, module) for name, module in next(members.children()).named_modules())
    ]
    inner = [n for n in attending if not any(_below(other, n) for other in attending)]
    outer = [n for n in lists if not any(_below(n, other) for other in lists)]
    return [
        (f"{name}.{at}".removeprefix("."), block)  # a backbone may itself be the list
        for name in inner or outer
        for at, block in lists[name].named_children()
    ]


def linears(module: nn.Module, prefix: str = "") -> dict[str, nn.Module]:
    """Every layer below with a matrix for a weight, embeddings aside; fused attention as a whole, since only that is called."""
    found: dict[str, nn.Module] = {}
    for name, child in module.named_children():
        full = f"{prefix}.{name}" if prefix else name
        if isinstance(child, nn.MultiheadAttention) or _is_linear(child):
            found[full] = child
        else:
            found |= linears(child, full)
    return found


def block_linears(bottom: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of a backbone's repeated blocks, fused attention left out."""
    found = {name: layer for prefix, block in blocks(bottom) for name, layer in linears(block, prefix).items()}
    return {name: layer for name, layer in found.items() if not isinstance(layer, nn.MultiheadAttention)}


def named(found: dict[str, nn.Module], patterns: Iterable[str], option: str) -> dict[str, nn.Module]:
    """Those of some modules that patterns name. Raises BadPlan for a pattern that names none."""
    chosen: dict[str, nn.Module] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        hit = {n: m for n, m in found.items() if matches(n, [pattern]) or n.endswith("." + pattern)}
        if not hit:
            raise BadPlan(
                f"{option}={pattern!r} names no linear layer of the backbone; it has {', '.join(list(found)[:4])}, …"
            )
        chosen |= hit
    return chosen


def norm_names(model: nn.Module) -> list[str]:
    """Names of the parameters of normalization layers: modules whose class is called …Norm, or …Norm1d and so on."""
    names = {id(p): n for n, p in base_parameters(model).items()}
    layers = (m for m in model.modules() if re.search(r"Norm(\dd)?$", type(m).__name__))
    return sorted({names[id(p)] for layer in layers for p in layer.parameters(recurse=False) if id(p) in names})


def _ends(prefix: str, block: nn.Module, kind: str) -> Iterator[str]:
    """The last linear layer of the block's width in each attention, and the last one outside of attention."""
    inside = linears(block, prefix)
    width = next((_in_width(module) for module in inside.values()), None)
    fitting = [name for name, module in inside.items() if out_width(module) == width]
    attentions = [f"{prefix}.{name}" for name, module in block.named_modules() if name and _is_attention(name, module)]
    tops = [n for n in attentions if not any(_below(n, other) for other in attentions)]
    groups = [[name for name in fitting if name == top or _below(name, top)] for top in tops]
    if kind == "attention":
        yield from (group[-1] for group in groups if group)
        return
    rest = [name for name in fitting if not any(name in group for group in groups)]
    yield from rest[-1:]


def _below(name: str, outer: str) -> bool:
    return name != outer and (not outer or name.startswith(outer + "."))


def _is_attention(name: str, module: nn.Module) -> bool:
    called = _ATTENTION.search(name.split(".")[-1]) or _ATTENTION.search(type(module).__name__)
    return bool(called) and bool(isinstance(module, nn.MultiheadAttention) or linears(module))


def _is_linear(module: nn.Module) -> bool:
    return not isinstance(module, nn.Embedding | nn.EmbeddingBag) and out_width(module) is not None


def _in_width(module: nn.Module) -> int | None:
    if isinstance(module, nn.MultiheadAttention):
        return module.embed_dim
    rows, columns = module._parameters["weight"].shape  # type: ignore[union-attr]
    return columns if out_width(module) == rows else rows


def _alike(members: list[nn.Module]) -> bool:
    """Whether modules are all of one class, and blocks with linear layers inside."""
    return bool(members) and len({type(m) for m in members}) == 1 and all(bool(linears(m)) for m in members)
