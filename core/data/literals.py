"""Lists and objects that stand in a file as text: pandas' csv of a column of message lists, numpy's way of printing one,
JSON inside a string.

Only what can't be mistaken is parsed, and nothing is executed: JSON by `json`, Python's and numpy's notation by
`ast.literal_eval`, after a check of its size, its depth, and that it holds nothing but texts, numbers, brackets and
the names None, True, False, nan, array, dtype and object.

| text | becomes |
|---|---|
| `[{"role": "user", "content": "Hi"}]` | the list |
| `[{'role': 'user', 'content': 'Hi'}]` | the list |
| `[{'role': ...}\\n {'role': ...}]`, `array([{...}], dtype=object)` | the list: numpy prints no commas |
| `[1] See below`, `[1, 2, 3]`, `['a', 'b']` | stays the text: it is no message list |
| `[{'role': 'user', 'content': 'Hi` | refused: it begins as a message list does and can't be read |
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

from core.data.rows import parse_json
from core.data.texts import MAX_CHARACTERS, Refused, is_message

MAX_DEPTH = 40  # brackets within brackets; a message list has three
TOKEN = re.compile(
    r"""(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
    r"|(?P<mark>[\[\]{}(),:=])|(?P<word>[A-Za-z_]+)|(?P<number>[-+]?\d[\d.eE+-]*)|(?P<space>\s+)",
    re.DOTALL,
)
WORDS = {"None": "None", "True": "True", "False": "False", "nan": "None", "array": "", "dtype": "", "object": ""}
BEGINS_AS_MESSAGES = re.compile(r"""\s*(?:array\s*\(\s*)?(?:\[\s*)?\{\s*(['"])(?:role|content|from|value)\1\s*:""")
KEYS_OF_MESSAGES = re.compile(r"""(['"])(?:role|from)\1\s*:""")
# Columns that hold lists or objects by their nature, so a text in them is parsed whatever it holds.
CONTAINERS = frozenset(
    (
        *("messages", "conversations", "conversation", "conversation_a", "conversation_b", "trajectory", "history", "context"),
        *("completions", "answers", "generations", "rating", "ratings", "correct_answers", "incorrect_answers"),
        *("data", "annotations", "fields", "responses", "suggestions", "images", "tools"),
    )
)


def parse_literal(text: str) -> Any:
    """The list or object that a text is, in JSON, Python's or numpy's notation; None where it is none of them."""
    stripped = text.strip()
    if len(stripped) > MAX_CHARACTERS or not stripped.startswith(("[", "{", "array(", "array (")):
        return None
    try:
        value = parse_json(stripped)
    except (ValueError, RecursionError):
        value = _parse_python(stripped)
    return value if isinstance(value, (list, dict)) else None


def _parse_python(text: str) -> Any:
    source = _checked_source(text)
    if source is None:
        return None
    try:
        return ast.literal_eval(source)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _checked_source(text: str) -> str | None:
    """The text as one Python literal, with the commas that numpy leaves out; None where it holds anything else."""
    pieces: list[str] = []
    kept_brackets: list[bool] = []  # for each open bracket whether it stands in the result; that of `array(` does not
    position, word = 0, ""
    while position < len(text):
        match = TOKEN.match(text, position)
        if match is None:
            return None
        position, kind, piece = match.end(), match.lastgroup, match.group()
        if kind == "space":
            continue
        before, word = word, piece if kind == "word" else ""
        if kind == "word":
            if piece not in WORDS:
                return None
            piece = WORDS[piece]
        elif piece in ("[", "{", "("):
            kept_brackets.append(before != "array")
            piece = piece if kept_brackets[-1] else ""
        elif piece in ("]", "}", ")"):
            if not kept_brackets:
                return None
            piece = piece if kept_brackets.pop() else ""
        elif piece == "=":
            if before != "dtype":
                return None
            piece = ""
        if len(kept_brackets) > MAX_DEPTH:
            return None
        _append(pieces, piece)
    return "".join(pieces).rstrip(",")


def _append(pieces: list[str], piece: str) -> None:
    """Adds a piece. Two values without a comma between them are two elements of an array (Python would glue two texts together)."""
    if not piece or (piece == "," and pieces and pieces[-1] == ","):
        return
    if pieces and pieces[-1] not in list("[{(,:") and piece not in list("]}),:"):
        pieces.append(",")
    pieces.append(piece)


def unpack_messages(value: Any, field: str) -> Any:
    """The message list (or the one message, or the object with `messages`) that a text is; any other value as it is.

    Raises Refused where the text begins as a message list does and can't be read: its letters would become the answer.
    """
    if not isinstance(value, str) or not value.lstrip()[:6].startswith(("[", "{", "array")):
        return value
    parsed = parse_literal(value)
    if _is_messages(parsed):
        return parsed
    if parsed is None and BEGINS_AS_MESSAGES.match(value) and KEYS_OF_MESSAGES.search(value):
        raise Refused(field, "a message list written as text that can't be read (cut, or in no known notation)")
    return value


def _is_messages(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(is_message(item) for item in value)
    return isinstance(value, dict) and (is_message(value) or (isinstance(value.get("messages"), list) and _is_messages(value["messages"])))


def unpack_row(row: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The row with lists and objects in place of texts that are unmistakably such, and whether there was one. Raises Refused as `unpack_messages`."""
    listed = {"num_correct", "num_rejected"} & row.keys()  # RewardBench 2: `chosen` and `rejected` are lists of answers
    lists = {"chosen", "rejected"} if listed else {"prompt", "response_a", "response_b"} if "winner_model_a" in row else set()
    changed = {name: new for name, value in row.items() if isinstance(value, str) and (new := _unpacked(name, value, lists)) is not value}
    return ({**row, **changed}, True) if changed else (dict(row), False)


def _unpacked(name: str, text: str, lists: set[str]) -> Any:
    if not text.lstrip()[:6].startswith(("[", "{", "array")):
        return text
    if name in CONTAINERS or name in lists or name.endswith((".responses", ".status", ".suggestion")):
        parsed = parse_literal(text)
        if parsed is not None:
            return parsed
    return unpack_messages(text, name)


def as_json(value: Any) -> str:
    """A value as it is compared: equal values, equal text."""
    return json.dumps(value, sort_keys=True, default=str)
