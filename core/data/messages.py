"""Checks message lists, and finds those that a file holds as text.

A message is `{role, content}`, or `{from, value}` as ShareGPT writes it. Its content is a text, or a list of text
parts, which are joined by a line break. Messages that only a model of images, sounds or tools can read are refused, and
the reason names what they hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from core.data.literals import TOKEN, holds_list_of_texts, parse_literal
from core.data.rows import RepeatedKeys
from core.data.texts import Refused, is_blank, text_of
from core.text_safety import printable
from core.types import Message

ROLES = {"system": "system", "user": "user", "assistant": "assistant"}
SHAREGPT_ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"), "assistant"),
    "system": "system",
}
TOOL_ROLES = ("tool", "function", "function_call", "function_response", "tool_call", "tool_response", "observation", "ipython")
TEXT_PARTS = ("text", "input_text", "output_text")
MEDIA = {"image": "an image", "audio": "audio", "video": "a video"}
# Fields of a message that hold more than its text, and what to call a message with one.
BEYOND_TEXT = {
    **dict.fromkeys(("tool_calls", "function_call", "tool_call_id"), "a tool call"),
    **dict.fromkeys(("reasoning_content", "reasoning", "thinking"), "reasoning beside the content"),
    **{name + ending: kind for name, kind in MEDIA.items() for ending in ("", "s")},
}
BEGINS_AS_MESSAGES = re.compile(r"""\s*(?:array\s*\(\s*)?(?:\[\s*)?\{\s*(['"])(?:role|content|from|value)\1\s*:""")
KEYS_OF_MESSAGES = re.compile(r"""(['"])(?:role|from)\1\s*:""")
# Message lists in notations that are not parsed: what programs print for message objects, and YAML.
OBJECTS = re.compile(r"""\s*\[?\s*[A-Za-z_]\w*\(\s*(?:\w+\s*=\s*[^\s(),=]+,\s*)*?(?:role|content)\s*=\s*['"]""")
ROLE_OF_OBJECT = re.compile(r"""\brole\s*=\s*['"](?:system|user|assistant)['"]""")
YAML = re.compile(r"""\s*-\s*(?:role|from):\s*['"]?(?:system|user|assistant|human|gpt)\b""")
SPEAKER_KEYS, WORDS_KEYS = {"role", "from", "speaker", "author", "sender"}, {"content", "value", "text", "message", "utterance", "parts"}
# Columns that always hold lists or objects, so a text in them is parsed whatever it holds.
CONTAINERS = frozenset(
    (
        *("messages", "conversations", "conversation", "conversation_a", "conversation_b", "trajectory", "history", "context"),
        *("completions", "answers", "generations", "rating", "ratings", "correct_answers", "incorrect_answers", "mc1_targets", "mc2_targets"),
        *("data", "annotations", "fields", "responses", "suggestions", "images", "tools"),
    )
)


def is_message(value: Any) -> bool:
    """Whether a value is an object with `role` and content or tool calls, or with `from` and `value`."""
    if not isinstance(value, dict):
        return False
    return ("role" in value and not value.keys().isdisjoint(("content", "tool_calls", "function_call"))) or ("from" in value and "value" in value)


def messages_of(value: Any, field: str) -> tuple[Message, ...]:
    """The messages of a list, checked, without empty system messages. Raises Refused."""
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
    role = (ROLES if "role" in item else SHAREGPT_ROLES).get(given) if isinstance(given, str) else None
    if role is None:
        raise Refused(field, f"a message whose role is not system, user or assistant but {printable(given, 40)}")
    return {"role": role, "content": _content(content, field, may_be_empty=role == "system")}


def _content(content: Any, field: str, *, may_be_empty: bool) -> str:
    if not isinstance(content, list):
        return text_of(content, field, may_be_empty=may_be_empty)
    return text_of("\n".join(_part(part, field) for part in content), field, may_be_empty=may_be_empty)


def _part(part: Any, field: str) -> str:
    """The text of one part of a message's content. Raises Refused, naming what it is, for anything but text."""
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
    """The messages of a prompt: one user message for a text, the messages themselves for a (written) list."""
    value = unpack_messages(value, field)
    if isinstance(value, dict) and is_message(value):
        value = [value]
    return messages_of(value, field) if isinstance(value, list) else ({"role": "user", "content": text_of(value, field)},)


def unpack_messages(value: Any, field: str) -> Any:
    """The message list, message or object with `messages` that a text writes; any other value unchanged.

    A list whose messages are each written as text, and an object of lists `{role: [...], content: [...]}`, become
    message lists, too. Raises Refused where a text begins as a message list does and can't be parsed, since its
    characters would otherwise become the answer.
    """
    if isinstance(value, list) and value and all(isinstance(item, str) and item.lstrip().startswith("{") for item in value):
        items = [parse_literal(item) for item in value]
        return items if all(map(is_message, items)) else value
    if isinstance(value, dict):
        return _rows_of_columns(value)
    if not isinstance(value, str):
        return value
    if (OBJECTS.match(value[:2000]) and ROLE_OF_OBJECT.search(value)) or YAML.match(value[:200]):
        raise Refused(field, "messages written as text in a notation that is not read (JSON, Python's and numpy's are)")
    if not _may_be_literal(value):
        return value
    parsed = parse_literal(value)
    if _is_messages(parsed):
        return _rows_of_columns(parsed)
    if _is_dialogue_of_other_keys(parsed):
        raise Refused(field, f"a dialogue written as text, of objects with {', '.join(sorted(parsed[0]))[:80]}: only role and content are known")
    if parsed is None and BEGINS_AS_MESSAGES.match(value) and KEYS_OF_MESSAGES.search(value) and not _ends_early(value):
        raise Refused(field, "a message list written as text that can't be read (cut, or in no known notation)")
    return value


def _may_be_literal(text: str) -> bool:
    return text[:200].lstrip()[:6].startswith(("[", "{", "array", '"[{', "'[{"))


def _rows_of_columns(value: Any) -> Any:
    """The message list of an object with one list for each field (as `datasets` writes a sequence of objects)."""
    for role, content in (("role", "content"), ("from", "value")) if isinstance(value, dict) else ():
        roles, contents = value.get(role), value.get(content)
        if isinstance(roles, list) and isinstance(contents, list) and len(roles) == len(contents):
            return [{role: a, content: b} for a, b in zip(roles, contents, strict=True)]
    return value


def _is_messages(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(is_message(item) for item in value)
    return isinstance(value, dict) and (is_message(value) or (isinstance(value.get("messages"), list) and _is_messages(value["messages"])))


def _is_dialogue_of_other_keys(value: Any) -> bool:
    """Whether each item of a list holds a speaker and words under names that are not read, such as {speaker, text}."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and not is_message(item) and SPEAKER_KEYS & item.keys() and WORDS_KEYS & item.keys() for item in value)
    )


def unpack_row(row: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The row with the texts that clearly write lists or objects replaced by them, and whether there were any.

    Raises Refused as `unpack_messages` does.
    """
    listed = {"num_correct", "num_rejected"} & row.keys() or _is_rm_bench(row)  # `chosen` and `rejected` are lists of answers
    lists = {"chosen", "rejected"} if listed else {"prompt", "response_a", "response_b"} if "winner_model_a" in row else set()
    changed = {name: new for name, value in row.items() if (new := _unpacked(name, value, lists)) is not value}
    return ({**row, **changed}, True) if changed else (dict(row), False)


def _is_rm_bench(row: Mapping[str, Any]) -> bool:
    """Whether a table's row comes from RM-Bench: a domain, and on both sides a list of three texts, written as text."""
    sides = [row.get(name) for name in ("chosen", "rejected")]
    return "domain" in row and all(holds_list_of_texts(side) and len(parse_literal(str(side))) == 3 for side in sides)


def _unpacked(name: str, value: Any, lists: set[str]) -> Any:
    by_nature = name in CONTAINERS or name in lists or name.endswith((".responses", ".status", ".suggestion"))
    if by_nature and isinstance(value, str) and _may_be_literal(value):
        parsed = parse_literal(value)
        if parsed is not None:
            return unpack_messages(parsed, name)
    return unpack_messages(value, name)


def _ends_early(text: str) -> bool:
    """Whether other words follow the complete list or object with which a text begins, so that it only mentions a list."""
    position = text.index(text.lstrip()[0])
    depth, started = 0, False
    while match := TOKEN.match(text, position):
        position = match.end()
        if match.lastgroup == "mark":
            depth += (match.group() in "[{(") - (match.group() in "]})")
            started = True
        if started and depth == 0:
            rest = text[position:].lstrip(" ,\n\r\t")
            return bool(rest) and BEGINS_AS_MESSAGES.match(rest) is None
    return False
