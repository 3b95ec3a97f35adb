"""Attention in plain steps, for passes that differentiate twice: fused attention has no second derivative.

transformers models are switched to their eager attention through their configuration, found by its attribute, and
whoever calls PyTorch's attention directly gets its unfused kernel. Both are put back on exit.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from gossamer.errors import BadPlan

_SETTING = "_attn_implementation"
logger = logging.getLogger("gossamer")


@contextmanager
def plain_attention(model: nn.Module, why: str) -> Iterator[list[str]]:
    """The model with attention that can be differentiated twice, inside a `with`; `why` is what needs it.

    Yields:
        The fused kinds that were switched off ([] where there was nothing to switch). They are also told, once a
        `with`, to the logger "gossamer" at level WARNING: seen by default, and no Python warning, which callers may
        have turned into errors.

    Raises:
        BadPlan: something on the way has no second derivative all the same.
    """
    before = [(config, getattr(config, _SETTING)) for config in _configs(model)]
    fused = sorted({kind for _, kind in before if kind not in (None, "eager")})
    if fused:
        logger.warning("%s differentiates twice: attention goes from %s to eager meanwhile", why, " and ".join(fused))
    try:
        for config, _ in before if fused else ():
            setattr(config, _SETTING, "eager")
        with sdpa_kernel(SDPBackend.MATH):
            yield fused
    except RuntimeError as error:
        if not re.search("derivative for .* is not implemented|once_differentiable", str(error)):
            raise
        raise BadPlan(
            f"{why} differentiates twice, and a part of this model cannot be: {error}; choose a way without it"
        ) from error
    finally:
        for config, kind in before if fused else ():  # parents first: setting one may set those within it
            setattr(config, _SETTING, kind)


def _configs(model: nn.Module) -> list[Any]:
    """Every configuration of a model and its parts that names an attention, those within others after them."""
    found: dict[int, Any] = {}
    waiting = [config for module in model.modules() if (config := getattr(module, "config", None)) is not None]
    for config in waiting:
        if id(config) not in found and hasattr(config, _SETTING):
            found[id(config)] = config
            waiting += [getattr(config, name, None) for name in getattr(config, "sub_configs", ())]
    return list(found.values())
