"""Gossamer as a method of Hugging Face PEFT. Importing this file registers it; PEFT then does the rest.

    import gossamer.interop.peft as gossamer_peft
    model = get_peft_model(base, gossamer_peft.GossamerConfig(method="magnitude", density=0.005))

What is learnt goes both ways: `to_delta` makes a delta of an adapter, `from_delta` an adapter of a delta, and both change
the base to the same bits. Values are in float32 over bases of 16 bits (merge at the end rounds once).
"""

from __future__ import annotations

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType, register_peft_method

from gossamer.interop.peft_choose import choose
from gossamer.interop.peft_config import NAME, GossamerConfig
from gossamer.interop.peft_delta import from_delta, to_delta
from gossamer.interop.peft_layer import GossamerLayer
from gossamer.interop.peft_tuner import GossamerModel, hotswap_adapter

__all__ = ["GossamerConfig", "GossamerLayer", "GossamerModel", "choose", "from_delta", "hotswap_adapter", "to_delta"]

if PeftType(NAME) not in PEFT_TYPE_TO_CONFIG_MAPPING:
    register_peft_method(name=NAME.lower(), config_cls=GossamerConfig, model_cls=GossamerModel)
