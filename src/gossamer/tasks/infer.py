"""What a model finds on encoded examples: eval mode, batches of like length, results in the given order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from gossamer.delta.snapshot import evaluating

Example = Mapping[str, Any]


def outputs(
    model: nn.Module,
    encoded: Sequence[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], Mapping[str, Tensor]],
    found: Callable[[Any, Mapping[str, Tensor]], Sequence[Any]],
    batch_size: int = 16,  # on one thread as fast as 64, in a fraction of the memory
) -> list[Any]:
    """What `found` makes of the model's output on each batch, one item an example in the order given.

    The model does not see `labels`; `found` sees the whole batch, on the model's device. The mode is put back.
    """
    lengths = [length(example) for example in encoded]
    order = sorted(range(len(encoded)), key=lambda i: (-lengths[i], i))
    device = next(model.parameters()).device
    items: list[Any] = [None] * len(encoded)
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = {name: values.to(device) for name, values in collate([encoded[i] for i in chosen]).items()}
            output = model(**{name: values for name, values in batch.items() if name != "labels"})
            for i, item in zip(chosen, found(output, batch), strict=True):
                items[i] = item
    return items


def length(example: Example) -> int:
    """In tokens; of several sequences the longest."""
    ids = example["input_ids"]
    return max(map(len, ids), default=0) if len(ids) and hasattr(ids[0], "__len__") else len(ids)


def shown(example: Example) -> dict[str, Any]:
    """What a model may see of an example: without the fields named "_…"."""
    return {name: value for name, value in example.items() if not name.startswith("_")}
