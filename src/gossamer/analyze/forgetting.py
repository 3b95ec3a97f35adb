"""Forgetting: how far a delta takes the base's representations from where they were, layer by layer (He et al. 2021 §4).

The same sampled tokens, no special ones, go through the base and through the base with the delta; at each layer RSA and linear
CKA of the states say how alike they are. What a pretrained head loses on top of the changed states is measured beside it, where
one is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.analyze.similarity import cka, rsa
from gossamer.delta.apply import applied
from gossamer.delta.base import backbone
from gossamer.delta.delta import Delta
from gossamer.delta.snapshot import evaluating
from gossamer.errors import BadData, BadPlan


@dataclass(frozen=True)
class Forgetting:
    """What one delta did. `rsa`, `cka`: one number a layer, the embeddings first; `before`, `after`: scores, {} without any."""

    rsa: tuple[float, ...]
    cka: tuple[float, ...]
    tokens: int
    before: Mapping[str, float]
    after: Mapping[str, float]


def forgetting(
    model: nn.Module,
    deltas: Mapping[str, Delta],
    batches: Iterable[Mapping[str, Tensor]],
    *,
    special: Iterable[int] = (),
    tokens: int = 5000,
    seed: int = 0,
    score: Callable[[Delta], Mapping[str, float]] | None = None,
) -> dict[str, Forgetting]:
    """How far each delta takes the states of a model from the base's.

    Args:
        model: a base, with or without a head, no delta on it.
        deltas: name → delta, heads ignored.
        batches: what the backbone's forward takes: `input_ids` [b, t] and `attention_mask`, iterated once for the base and once
            for each delta, so a list or another thing that can be iterated again.
        special: token ids that are never sampled: those of the tokenizer's special tokens.
        tokens: how many are sampled, or all that there are; the same for every delta.
        score: the scores of a pretrained task under a delta, its head on top; None for none.

    Raises:
        BadData: fewer than 3 tokens. BadPlan: `batches` cannot be iterated again, or a backbone that returns no hidden states.
    """
    batches = list(batches) if isinstance(batches, (list, tuple)) else batches
    if iter(batches) is batches:
        raise BadPlan(
            "batches can be iterated only once, but every delta needs them again; give a list or a DataLoader"
        )
    places = _sample(batches, set(special), tokens, seed)
    plain = states(model, batches, places)
    before = dict(score(Delta({}))) if score else {}
    found = {}
    for name, delta in deltas.items():
        with applied(model, delta.without_head()):
            changed = states(model, batches, places)
        pairs = list(zip(plain, changed, strict=True))
        after = dict(score(delta.without_head())) if score else {}
        alike = tuple(rsa(a, b) for a, b in pairs), tuple(cka(a, b) for a, b in pairs)
        found[name] = Forgetting(*alike, sum(map(len, places)), before, after)
    return found


def states(model: nn.Module, batches: Iterable[Mapping[str, Tensor]], places: list[Tensor]) -> list[Tensor]:
    """The states at some places of each batch (flat, [b·t]), layer by layer: float32 [n, width] each, the embeddings first."""
    base = backbone(model)
    device = next(base.parameters()).device
    layers: list[list[Tensor]] = []
    with evaluating(model):
        for batch, where in zip(batches, places, strict=True):
            given: dict[str, Any] = {
                n: v.to(device) for n, v in batch.items() if n in ("input_ids", "attention_mask", "token_type_ids")
            }
            hidden = getattr(base(**given, output_hidden_states=True), "hidden_states", None)
            if not hidden:
                raise BadPlan(f"{type(base).__name__} returns no hidden states; give a transformers encoder or decoder")
            layers = layers or [[] for _ in hidden]
            for kept, layer in zip(layers, hidden, strict=True):
                kept.append(layer.flatten(0, 1)[where.to(layer.device)].float().cpu())
    return [torch.cat(kept) for kept in layers]


def _sample(batches: Iterable[Mapping[str, Tensor]], special: set[int], tokens: int, seed: int) -> list[Tensor]:
    """For each batch the flat places of the tokens that are looked at, drawn uniformly from all ordinary ones."""
    ordinary = []
    for batch in batches:
        ids = batch["input_ids"]
        fine = batch.get("attention_mask", torch.ones_like(ids)).bool() & ~torch.isin(
            ids, torch.tensor(sorted(special), dtype=ids.dtype)
        )
        ordinary.append(fine.flatten().nonzero()[:, 0])
    total = sum(map(len, ordinary))
    if total < 3:
        raise BadData(
            f"the data hold {total} ordinary tokens; similarities need 3 or more, and some thousands to be exact"
        )
    drawn = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:tokens].sort().values
    ends = torch.tensor([0, *map(len, ordinary)]).cumsum(0)
    return [
        part[drawn[(drawn >= a) & (drawn < b)] - a] for part, a, b in zip(ordinary, ends[:-1], ends[1:], strict=True)
    ]


def plot(found: Mapping[str, Forgetting], path: Path) -> None:
    """Writes RSA and CKA, layer by layer, a line a delta."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    for name, one in found.items():
        for axis, values in zip(axes, (one.rsa, one.cka), strict=True):
            axis.plot(range(len(values)), values, marker=".", label=name)
    for axis, title in zip(axes, ("RSA with the base", "linear CKA with the base"), strict=True):
        axis.set_title(title, loc="left")
        axis.set_xlabel("layer (0: embeddings)")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
