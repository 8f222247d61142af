"""Which text is usable, and messages made of texts. Refused, never mended: null characters (a sign of a damaged or binary file), broken encoding."""

from __future__ import annotations

import math
from typing import Any

from core.types import Message

MAX_CHARACTERS = 1_000_000  # of one text: some 250,000 tokens, more than any model here reads
MAX_META = 200  # characters of a text that is kept beside a pair
ROLES = ("system", "user", "assistant")
KIND_NAMES = {bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object", bytes: "bytes"}


class Refused(Exception):
    """A row that can't be used: its field and the reason."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


def keeps(value: Any) -> bool:
    """Whether a value can be kept beside a pair: a number, a truth value, or a text of at most MAX_META characters."""
    if isinstance(value, str):
        return 0 < len(value) <= MAX_META and _encodable(value)
    return isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value))


def _encodable(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def is_missing(value: Any) -> bool:
    """No value: None, or the NaN that tables have for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def text_of(value: Any, field: str, *, may_be_empty: bool = False) -> str:
    """A usable text without outer white space. Raises Refused: missing, not text, empty, too long, null character, broken encoding."""
    if is_missing(value):
        raise Refused(field, "missing")
    if not isinstance(value, str):
        raise Refused(field, f"not text but {KIND_NAMES.get(type(value), type(value).__name__)}")
    text = value.strip()
    if not text and not may_be_empty:
        raise Refused(field, "empty")
    if len(text) > MAX_CHARACTERS:
        raise Refused(field, f"longer than {MAX_CHARACTERS:,} characters")
    if "\0" in text:
        raise Refused(field, "holds a null character")
    if not _encodable(text):
        raise Refused(field, "not valid Unicode: bytes that are not UTF-8, or half a surrogate pair")
    return text


def messages_of(value: Any, field: str) -> tuple[Message, ...]:
    """A list of messages, checked and without empty system messages. Raises Refused."""
    if not isinstance(value, list) or not value:
        raise Refused(field, "empty" if value == [] else "not a list of messages")
    found: list[Message] = []
    for message in value:
        if not isinstance(message, dict) or "role" not in message:
            raise Refused(field, "not a list of messages {role, content}")
        role = message["role"]
        if role not in ROLES:
            raise Refused(field, "a message whose role is not system, user or assistant")
        content = text_of(message.get("content"), field, may_be_empty=role == "system")
        if content:
            found.append({"role": role, "content": content})
    return tuple(found)


def user_prompt(value: Any, field: str = "prompt") -> tuple[Message, ...]:
    """A prompt given as text: one user message. Given as messages: these."""
    return messages_of(value, field) if isinstance(value, list) else ({"role": "user", "content": text_of(value, field)},)
