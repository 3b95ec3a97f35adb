"""How many weights another method would train on a model, head not counted: for comparisons at equal k.

lora:r        Σ r (in + out) over the linear layers of the repeated blocks, embeddings, pooler and head left out
pfeiffer:m    places × (2dm + m + d): one bottleneck of m a block, after the feed-forward
houlsby:m     the same, two a block, after the attention too
bitfit        the number of entries of bias vectors
"""

from __future__ import annotations

import re

from torch import nn

from gossamer.delta.base import backbone
from gossamer.errors import BadPlan
from gossamer.select.bias import bias
from gossamer.train.choose import Patterns, maskable
from gossamer.tunable.places import block_linears, find_places
from gossamer.tunable.tuned import head_parameters

BEHIND = {"pfeiffer": "feedforward", "houlsby": "both"}  # where bottlenecks stand
SIZED = ("lora", *BEHIND)


def matched(model: nn.Module, match: str, head: bool | Patterns = True) -> int:
    """The number of weights of the backbone that `match` would train.

    Args:
        match: "lora:8", "pfeiffer:16", "houlsby:16" (a rank or a bottleneck's width) or "bitfit".
        head: what of the model is its head, see `Tuned`.

    Raises:
        BadPlan: another text, or a model that this other method cannot work on.
    """
    name, size = parsed(match)
    try:
        if name == "bitfit":
            return bias(maskable(model, head, ())).k
        if name == "lora":
            return size * sum(sum(weight.shape) for weight in _lora_weights(model, head))
        return sum(2 * place.width * size + size + place.width for place in find_places(model, BEHIND[name]))
    except BadPlan as error:
        raise BadPlan(f"match={match!r}: {error}") from None


def parsed(match: str) -> tuple[str, int]:
    """("lora", 8) of "lora:8"; ("bitfit", 0) of "bitfit". Raises BadPlan for anything else."""
    name, sign, size = match.partition(":")
    if name == "bitfit" and not sign:
        return name, 0
    if name not in SIZED or not re.fullmatch("[1-9][0-9]*", size, re.ASCII):
        raise BadPlan(
            f"match={match!r}; expected lora:RANK, pfeiffer:WIDTH, houlsby:WIDTH or bitfit, for example lora:8"
        )
    return name, int(size)


def _lora_weights(model: nn.Module, head: bool | Patterns) -> list[nn.Parameter]:
    """The matrices that LoRA changes by default, those of the head left out."""
    mine = {id(p) for p in head_parameters(model, head).values()}
    weights = [layer.weight for layer in block_linears(backbone(model)).values()]
    found = [w for w in weights if isinstance(w, nn.Parameter) and id(w) not in mine]
    if not found:
        raise BadPlan("this model's backbone has no linear layers in repeated blocks; give k or a density instead")
    return found
