"""Which text is usable, and messages made of texts. Refused, never mended: null characters (a sign of a damaged or
binary file), broken encoding.

A message is `{role, content}`, or `{from, value}` as ShareGPT has it. Its content is a text, or a list of text parts,
which are joined by a line break. What only a model of images, sounds or tools can read is refused by its name.
"""

from __future__ import annotations

import math
import re
from typing import Any

from core.data.rows import RepeatedKeys, printable
from core.types import Message

MAX_CHARACTERS = 1_000_000  # of one text: some 250,000 tokens, more than any model here reads
MAX_META = 200  # characters of a text that is kept beside a pair
# White space, and what has no shape: zero-width spaces and joiners, marks of writing direction, soft hyphens, byte order marks.
INVISIBLE = re.compile(r"[\s\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]*")
ROLES = ("system", "user", "assistant")
SHAREGPT_ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    "system": "system",
}
TOOL_ROLES = ("tool", "function", "function_call", "function_response", "tool_call", "tool_response", "observation", "ipython")
KIND_NAMES = {bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object", bytes: "bytes"}
TEXT_PARTS = ("text", "input_text", "output_text")
MEDIA = {"image": "an image", "audio": "audio", "video": "a video"}
# Fields of a message that are more than its text, and what holds one.
BEYOND_TEXT = {
    **dict.fromkeys(("tool_calls", "function_call", "tool_call_id"), "a tool call"),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "reasoning beside the content"),
    **{name + ending: kind for name, kind in MEDIA.items() for ending in ("", "s")},
}


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


def is_blank(value: Any) -> bool:
    """No value, or one that holds nothing: an empty text, list or object (tables write these where a row has no such column)."""
    return is_missing(value) or (isinstance(value, str) and not value.strip()) or (isinstance(value, (list, dict)) and not value)


def text_of(value: Any, field: str, *, may_be_empty: bool = False) -> str:
    """A usable text without outer white space. Raises Refused: missing, not text, empty, too long, null character, broken encoding."""
    if is_missing(value):
        raise Refused(field, "missing")
    if not isinstance(value, str):
        raise Refused(field, f"not text but {KIND_NAMES.get(type(value), type(value).__name__)}")
    text = value.strip()
    if not may_be_empty and INVISIBLE.fullmatch(text):
        raise Refused(field, "empty: only characters that are not seen" if text else "empty")
    if len(text) > MAX_CHARACTERS:
        raise Refused(field, f"longer than {MAX_CHARACTERS:,} characters")
    if "\0" in text:
        raise Refused(field, "holds a null character")
    if not _encodable(text):
        raise Refused(field, "not valid Unicode: bytes that are not UTF-8, or half a surrogate pair")
    return text


def is_message(value: Any) -> bool:
    """Whether a value has the shape of a message: an object with `role` and what it said, or with `from` and `value`."""
    if not isinstance(value, dict):
        return False
    return ("role" in value and not value.keys().isdisjoint(("content", "tool_calls", "function_call"))) or ("from" in value and "value" in value)


def messages_of(value: Any, field: str) -> tuple[Message, ...]:
    """A list of messages, checked and without empty system messages. Raises Refused."""
    if not isinstance(value, list) or not value:
        raise Refused(field, "empty" if value == [] else "not a list of messages")
    messages = (_message(item, field) for item in value)
    return tuple(message for message in messages if message["content"])


def _message(item: Any, field: str) -> Message:
    if not isinstance(item, dict) or not ("role" in item or "from" in item):
        raise Refused(field, "not a list of messages {role, content}")
    if isinstance(item, RepeatedKeys):
        raise Refused(field, "a message that gives one key twice")
    given, content = (item["role"], item.get("content")) if "role" in item else (item["from"], item.get("value"))
    if isinstance(given, str) and given in TOOL_ROLES:
        raise Refused(field, f"a tool call (a message of role {given}): only texts are read")
    beyond = next((name for name in item if name in BEYOND_TEXT and item[name]), None)
    if beyond:
        raise Refused(field, f"{BEYOND_TEXT[beyond]} ({beyond}): only texts are read")
    role = (ROLES_BY_NAME if "role" in item else SHAREGPT_ROLES).get(given) if isinstance(given, str) else None
    if role is None:
        raise Refused(field, f"a message whose role is not system, user or assistant but {printable(given, 40)}")
    return {"role": role, "content": _content(content, field, may_be_empty=role == "system")}


ROLES_BY_NAME = {name: name for name in ROLES}


def _content(content: Any, field: str, *, may_be_empty: bool) -> str:
    if not isinstance(content, list):
        return text_of(content, field, may_be_empty=may_be_empty)
    return text_of("\n".join(_part(part, field) for part in content), field, may_be_empty=may_be_empty)


def _part(part: Any, field: str) -> str:
    """The text of one part of a message's content. Raises Refused on anything but text, by its name."""
    if isinstance(part, str):
        return text_of(part, field, may_be_empty=True)
    if not isinstance(part, dict):
        raise Refused(field, "a message whose content is neither text nor a list of parts {type, text}")
    kind = str(part.get("type", "text"))
    media = next((name for key, name in MEDIA.items() if key in kind or not is_blank(part.get(key)) or not is_blank(part.get(key + "_url"))), None)
    if media:
        raise Refused(field, f"holds {media}: only texts are read")
    if kind not in TEXT_PARTS:
        raise Refused(field, f"holds a part of type {printable(kind, 40)}: only texts are read")
    return text_of(part.get("text"), field, may_be_empty=True)


def user_prompt(value: Any, field: str = "prompt") -> tuple[Message, ...]:
    """A prompt given as text: one user message. Given as messages (or as the text of a message list): these."""
    from core.data.literals import unpack_messages  # literals.py builds on this file

    value = unpack_messages(value, field)
    if isinstance(value, dict) and is_message(value):
        value = [value]
    return messages_of(value, field) if isinstance(value, list) else ({"role": "user", "content": text_of(value, field)},)
