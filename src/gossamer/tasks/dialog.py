"""Instruction data as segments of text, each the model's own words (a reply) or not, and these as tokens.

Each segment is tokenized by itself, so the tokens before a reply are the very ones that it is generated from later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gossamer.errors import BadData, BadPlan

Segments = list[tuple[str, bool]]  # text, whether it is a reply
REPLIER = "assistant"


def plain(prompt: Sequence[str], reply: str | None, separator: str) -> Segments:
    """A prompt in parts, of which blank ones are left out, and a reply, without any template."""
    return [
        (separator.join(part for part in prompt if part.strip()) + separator, False),
        *([] if reply is None else [(reply, True)]),
    ]


def chat(tokenizer: Any, messages: Any, row: int, *, reply: bool = True) -> Segments:
    """A conversation under the tokenizer's chat template: every turn of the assistant is a reply, with what ends it.

    Args:
        messages: list of {"role": …, "content": …}.
        reply: else the conversation is cut before the assistant's last turn, which is to be generated.

    Raises:
        BadData: they are no such list, nobody replies, or the template refuses them.
        BadPlan: the template writes earlier turns differently once later ones follow, so replies cannot be told apart.
    """
    turns = _checked(messages, row)
    replies = [at for at, turn in enumerate(turns) if turn["role"] == REPLIER]
    if not reply:
        kept = turns[: replies[-1]] if replies and replies[-1] == len(turns) - 1 else turns
        return [(_rendered(tokenizer, kept, row, ask=True), False)]
    if not replies:
        raise BadData(f"row {row + 1} has no message of the role {REPLIER!r}, so nothing can be learned from it")
    segments: Segments = []
    done = ""
    for at in replies:
        asked = _rendered(tokenizer, turns[:at], row, ask=True)
        said = _rendered(tokenizer, turns[: at + 1], row, ask=False)
        if not (asked.startswith(done) and said.startswith(asked)):
            raise BadPlan(
                f"row {row + 1}: the base's chat template does not write a reply after its own prompt for one, so what is the "
                "reply cannot be told; give columns prompt and response with template='none'"
            )
        segments += [(asked[len(done) :], False), (said[len(asked) :], True)]
        done = said
    return segments


def ids(tokenizer: Any, segments: Segments, before: Sequence[int] = ()) -> tuple[list[int], list[int]]:
    """Token ids of segments, and the labels: the ids of replies, −100 elsewhere."""
    tokens, labels = list(before), [-100] * len(before)
    for text, reply in segments:
        if text:
            own = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            tokens += own
            labels += own if reply else [-100] * len(own)
    return tokens, labels


def _rendered(tokenizer: Any, turns: list[Any], row: int, *, ask: bool) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise BadPlan(
            "this base's tokenizer has no chat template, so conversations cannot be written out; give columns of a prompt and "
            "its response (--fields prompt,response), or a base that was trained for chat"
        )
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)
    except TemplateError as error:
        raise BadData(f"row {row + 1}: the base's chat template refuses this conversation: {error}") from None


def _checked(messages: Any, row: int) -> list[Any]:
    good = isinstance(messages, list) and all(
        isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in messages
    )
    if not good or not messages:
        raise BadData(
            f"row {row + 1} holds {str(messages)[:80]!r}; expected a list of messages, each with role and content as text"
        )
    return messages
