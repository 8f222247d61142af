"""Finds and removes the blocks in which the answers of reasoning models think before they answer.

Templates of such models (Qwen3, DeepSeek-R1 and others) rewrite a message that holds a block: they remove it from
earlier turns, and remove it from the last turn too or change its layout. The config field `think` decides what is read
instead:

- `keep`: the response is encoded as the policy wrote it, block included, whatever the template would do with it.
  Earlier turns are left to the template: where it removes their blocks, they are read without.
- `strip`: all blocks are removed before the template gets the text.
- `refuse`: a dialogue with a block is refused.

A block is what stands between the tags, or before a lone closing tag (R1's template opens the block itself).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from core.types import Message

TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
_WHOLE = [re.compile(rf"\s*{re.escape(opening)}.*?{re.escape(closing)}\s*", re.DOTALL) for opening, closing in TAGS]
_LATER_HALF = [re.compile(rf"\A.*{re.escape(closing)}\s*", re.DOTALL) for _, closing in TAGS]
_UNFINISHED = [re.compile(rf"\s*{re.escape(opening)}.*\Z", re.DOTALL) for opening, _ in TAGS]
_EMPTY_AT_END = re.compile("(?:" + "|".join(rf"{re.escape(a)}\s*{re.escape(b)}\s*|{re.escape(a)}\s*" for a, b in TAGS) + r")\Z")


def thinks(text: str) -> bool:
    """Whether a text holds a block, or half of one."""
    return any(tag in text for tags in TAGS for tag in tags)


def without_thinking(text: str) -> str:
    """The text without its blocks; empty where nothing else is left, such as after a block that never ends."""
    for whole, later_half, unfinished in zip(_WHOLE, _LATER_HALF, _UNFINISHED, strict=True):
        text = unfinished.sub("", later_half.sub("", whole.sub("\n", text)))
    return text.strip()


def strip_all(messages: Sequence[Message]) -> list[Message]:
    """The messages, the assistant's without their blocks."""
    return [
        Message(role=m["role"], content=without_thinking(m["content"])) if m["role"] == "assistant" and thinks(m["content"]) else m for m in messages
    ]


def without_empty_block(template_piece: str) -> str:
    """What a template writes before an answer, without the empty or just opened block that some templates add."""
    return _EMPTY_AT_END.sub("", template_piece)
