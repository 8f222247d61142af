"""Which texts and numbers of a row can be used; `Refused` is raised for those that can't.

A text with a null character (the sign of a damaged or binary file) or with broken encoding is refused, never repaired.
"""

from __future__ import annotations

import math
import re
from typing import Any

MAX_CHARACTERS = 1_000_000  # of one text: some 250,000 tokens, more than any model here reads
MAX_META = 200  # characters of a text that is kept in a pair's meta
# White space, and what has no shape: zero-width spaces and joiners, marks of writing direction, soft hyphens, byte
# order marks.
INVISIBLE = re.compile(r"[\s\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]*")
KIND_NAMES = {bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object", bytes: "bytes"}


class Refused(Exception):
    """A row that can't be used: the field at fault, and the reason."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


def keeps(value: Any) -> bool:
    """Whether a value can be kept in a pair's meta: a number, a truth value, or a text of at most MAX_META characters."""
    if isinstance(value, str):
        return 0 < len(value) <= MAX_META and _encodable(value)
    return isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value))


def _encodable(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def is_missing(value: Any) -> bool:
    """Whether there is no value: None, or NaN, which tables use for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_blank(value: Any) -> bool:
    """Whether a value is missing or an empty text, list or object (tables write these where a row lacks the column)."""
    return is_missing(value) or (isinstance(value, str) and not value.strip()) or (isinstance(value, (list, dict)) and not value)


def text_of(value: Any, field: str, *, may_be_empty: bool = False) -> str:
    """A usable text without outer white space.

    Raises Refused: missing, not text, empty, too long, null character, broken encoding.
    """
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


def number_of(value: Any, field: str) -> float:
    """A finite number, also one written as text. Raises Refused."""
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        raise Refused(field, "not a number") from None
    if not math.isfinite(number):
        raise Refused(field, "missing" if is_missing(value) else "not a number")
    return number
