"""Parses lists and objects that a file holds as text: a csv of pandas with a column of message lists, numpy's way of
printing a list, JSON inside a string.

Nothing is executed: JSON is parsed by `json`, Python's and numpy's notation by `ast.literal_eval`, after a check that
the text is not too long or too deeply nested and holds only texts, numbers, brackets and the names None, True, False,
nan, array, dtype and object. Which parsed values replace the text is decided in `messages.py`.

| text | becomes |
|---|---|
| `[{"role": "user", "content": "Hi"}]` | the list |
| `[{'role': 'user', 'content': 'Hi'}]` | the list |
| `[{'role': ...}\\n {'role': ...}]`, `array([{...}], dtype=object)` | the list: numpy prints no commas |
| `[1] See below`, `[1, 2, 3]`, `['a', 'b']`, `[{"role": "user", "content": "Hi"}] is the body` | stays text: not a message list |
| `[{'role': 'user', 'content': 'Hi` | refused: it begins as a message list does and can't be parsed |
"""

from __future__ import annotations

import ast
import json
import re
from typing import Any

from core.data.rows import parse_json
from core.data.texts import MAX_CHARACTERS

MAX_DEPTH = 40  # brackets within brackets; a message list has three
TOKEN = re.compile(
    r"""(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
    r"|(?P<mark>[\[\]{}(),:=])|(?P<word>[A-Za-z_]+)|(?P<number>[-+]?\d[\d.eE+-]*)|(?P<space>\s+)",
    re.DOTALL,
)
WORDS = {"None": "None", "True": "True", "False": "False", "nan": "None", "array": "", "dtype": "", "object": ""}


def parse_literal(text: str) -> Any:
    """The list or object that a text writes in JSON, Python's or numpy's notation; None for any other text."""
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
    """The text inside a quoted text, such as JSON inside a JSON string."""
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
    """The text as one Python literal, with the commas added that numpy leaves out; None if it holds anything else."""
    pieces: list[str] = []
    kept_brackets: list[bool] = []  # for each open bracket: whether it is kept; the one of `array(` is dropped
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
    """Adds a piece, with a comma between two values that have none (Python would join two texts without one)."""
    if not piece or (piece == "," and pieces and pieces[-1] == ","):
        return
    if pieces and pieces[-1] not in list("[{(,:") and piece not in list("]}),:"):
        pieces.append(",")
    pieces.append(piece)


def holds_list_of_texts(value: Any) -> bool:
    """Whether a text writes a list of texts, as a csv does for a column of lists.

    It may also be an answer, so callers keep the text.
    """
    if not isinstance(value, str) or not value.lstrip()[:2].startswith(("['", '["')):
        return False
    parsed = parse_literal(value)
    return isinstance(parsed, list) and bool(parsed) and all(isinstance(item, str) for item in parsed)
