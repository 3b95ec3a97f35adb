"""What a tokenizer cut off is said: how many inputs were longer than the model was given room for."""

from __future__ import annotations

import logging
from typing import Any


def say_cut(encoded: Any, limit: int) -> int:
    """Warns, by the logger "gossamer", of inputs that truncation has cut, and returns how many there are.

    A fast tokenizer knows what is left over; of another, an input that fills all of `limit` counts, though it may just fit.

    Args:
        encoded: what a tokenizer made of a list of texts or pairs, with ``truncation=True`` and ``max_length=limit``.
    """
    exact = bool(getattr(encoded, "is_fast", False))
    kept = [bool(part.overflowing) for part in encoded.encodings] if exact else [
        len(ids) >= limit for ids in encoded["input_ids"]
    ]  # fmt: skip
    if cut := sum(kept):
        how = "are longer than" if exact else "fill"
        logging.getLogger("gossamer").warning(
            f"{cut:,} of {len(kept):,} inputs {how} {limit} tokens; what lies beyond is not read (--max-length reads more)"
        )
    return cut
