"""Replies that a causal language model generates: prompts padded on the left, in batches of like length."""

from __future__ import annotations

from typing import Any

from torch import nn

from gossamer.delta.snapshot import evaluating
from gossamer.errors import BadData
from gossamer.tasks.tokens import padded, positions


def generated(
    model: nn.Module,
    tokenizer: Any,
    encoded: list[dict[str, Any]],
    *,
    pad: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    batch_size: int = 16,
) -> list[dict[str, Any]]:
    """One {"text": …} a prompt, in the order given. The mode is put back.

    Args:
        pad: the id that fills up a batch.
        temperature: 0 takes the likeliest token; else one is drawn from torch's generator.

    Raises:
        BadData: a prompt leaves no room for a reply in the model's positions.
    """
    from transformers import GenerationConfig

    room = positions(model)
    for example in encoded:
        if room and len(example["input_ids"]) + max_new_tokens > room:
            raise BadData(
                f"row {example['_row'] + 1} has {len(example['input_ids'])} tokens; with max_new_tokens={max_new_tokens} that "
                f"is more than the base's {room} positions"
            )
    sampled = {"temperature": temperature} if temperature else {}
    own = getattr(model, "generation_config", None)
    ends = own.eos_token_id if own is not None and own.eos_token_id is not None else tokenizer.eos_token_id
    settings = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=bool(sampled), eos_token_id=ends, pad_token_id=pad,
                                **sampled)  # fmt: skip
    device, texts = next(model.parameters()).device, dict[int, str]()
    order = sorted(range(len(encoded)), key=lambda i: (-len(encoded[i]["input_ids"]), i))
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = padded([encoded[i] for i in chosen], pad, left=True)
            made = model.generate(**{n: t.to(device) for n, t in batch.items()}, generation_config=settings)  # type: ignore[operator]
            for i, tokens in zip(chosen, made[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                texts[i] = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return [{"text": texts[i]} for i in range(len(encoded))]
