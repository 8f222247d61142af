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
| `[1] See below`, `[1, 2, 3]`, `['a', 'b']`, `[{"role": "user", "content": "Hi"}] is the body` | stays the text: it is no message list |
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
# What programs print of message objects, and YAML: message lists too, but in notations that are not parsed.
OBJECTS = re.compile(r"""\s*\[?\s*[A-Za-z_]\w*\(\s*(?:\w+\s*=\s*[^\s(),=]+,\s*)*?(?:role|content)\s*=\s*['"]""")
ROLE_OF_OBJECT = re.compile(r"""\brole\s*=\s*['"](?:system|user|assistant)['"]""")
YAML = re.compile(r"""\s*-\s*(?:role|from):\s*['"]?(?:system|user|assistant|human|gpt)\b""")
SPEAKER_KEYS, WORDS_KEYS = {"role", "from", "speaker", "author", "sender"}, {"content", "value", "text", "message", "utterance", "parts"}
# Columns that hold lists or objects by their nature, so a text in them is parsed whatever it holds.
CONTAINERS = frozenset(
    (
        *("messages", "conversations", "conversation", "conversation_a", "conversation_b", "trajectory", "history", "context"),
        *("completions", "answers", "generations", "rating", "ratings", "correct_answers", "incorrect_answers", "mc1_targets", "mc2_targets"),
        *("data", "annotations", "fields", "responses", "suggestions", "images", "tools"),
    )
)


def parse_literal(text: str) -> Any:
    """The list or object that a text is, in JSON, Python's or numpy's notation; None where it is none of them."""
    stripped = text.strip()
    if len(stripped) <= MAX_CHARACTERS and stripped.startswith(('"[{', "'[{")) and stripped[-1] == stripped[0]:
        stripped = _text_within_text(stripped)
    if len(stripped) > MAX_CHARACTERS or not stripped.startswith(("[", "{", "array(", "array (")):
        return None
    try:
        value = parse_json(stripped)
    except (ValueError, RecursionError):
        value = _parse_python(stripped)
    return value if isinstance(value, (list, dict)) else None


def _text_within_text(text: str) -> str:
    """What a quoted text holds: JSON inside a JSON string."""
    try:
        value = json.loads(text) if text.startswith('"') else ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ""
    return value if isinstance(value, str) else ""


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


def _ends_early(text: str) -> bool:
    """Whether the list or object with which a text begins is whole and other words follow it: then the text speaks of a list and is none."""
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


def unpack_messages(value: Any, field: str) -> Any:
    """The message list (or the one message, or the object with `messages`) that a text is; any other value as it is. Also a list of messages each of
    which is written as text, and an object of lists {role: [...], content: [...]}.

    Raises Refused where the text begins as a message list does and can't be read: its letters would become the answer.
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
    """A list of messages, where an object has one list a field (as `datasets` writes a sequence of objects)."""
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
    """Whether a list holds a speaker and words an item, under names that are not ours: {speaker, text}, say."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and not is_message(item) and SPEAKER_KEYS & item.keys() and WORDS_KEYS & item.keys() for item in value)
    )


def unpack_row(row: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The row with lists and objects in place of texts that are unmistakably such, and whether there was one. Raises Refused as `unpack_messages`."""
    listed = {"num_correct", "num_rejected"} & row.keys() or _is_rm_bench(row)  # `chosen` and `rejected` are lists of answers
    lists = {"chosen", "rejected"} if listed else {"prompt", "response_a", "response_b"} if "winner_model_a" in row else set()
    changed = {name: new for name, value in row.items() if (new := _unpacked(name, value, lists)) is not value}
    return ({**row, **changed}, True) if changed else (dict(row), False)


def _is_rm_bench(row: Mapping[str, Any]) -> bool:
    """Whether a table's row is one of RM-Bench's: a domain, and three texts written as a list on both sides."""
    sides = [row.get(name) for name in ("chosen", "rejected")]
    return "domain" in row and all(holds_list_of_texts(side) and len(parse_literal(str(side))) == 3 for side in sides)


def _unpacked(name: str, value: Any, lists: set[str]) -> Any:
    by_nature = name in CONTAINERS or name in lists or name.endswith((".responses", ".status", ".suggestion"))
    if by_nature and isinstance(value, str) and _may_be_literal(value):
        parsed = parse_literal(value)
        if parsed is not None:
            return unpack_messages(parsed, name)
    return unpack_messages(value, name)


def holds_list_of_texts(value: Any) -> bool:
    """Whether a text is a list of texts, as a csv has them of a column of lists. It may as well be an answer, so it stays a text."""
    if not isinstance(value, str) or not value.lstrip()[:2].startswith(("['", '["')):
        return False
    parsed = parse_literal(value)
    return isinstance(parsed, list) and bool(parsed) and all(isinstance(item, str) for item in parsed)


def as_json(value: Any) -> str:
    """A value as it is compared: equal values, equal text."""
    return json.dumps(value, sort_keys=True, default=str)
