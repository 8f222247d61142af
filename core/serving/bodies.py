"""The fields of a request's JSON body, checked. Everything here raises DataError for a field that can't be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.errors import DataError

Body = Mapping[str, Any]
Answer = dict[str, Any]


def listed(body: Body, name: str) -> list[Any]:
    """A list."""
    values = body.get(name)
    if not isinstance(values, list):
        raise DataError(f"{name} can't be read", expected="a list", found=type(values).__name__)
    return values


def several(body: Body, name: str) -> list[Any]:
    """A list; a text is a list of one."""
    return [body[name]] if isinstance(body.get(name), str) else listed(body, name)


def whole_numbers(body: Body, name: str) -> list[int]:
    """A list of whole numbers; empty where the field is missing."""
    numbers = listed(body, name) if body.get(name) is not None else []
    if not all(_is_whole(number) and abs(number) < 2**31 for number in numbers):
        raise DataError(f"{name} can't be read", expected="whole numbers")
    return numbers


def spans(body: Body) -> list[tuple[int, int]] | None:
    """Pairs of whole numbers, characters of the response; None where the field is missing."""
    if body.get("spans") is None:
        return None
    pairs = listed(body, "spans")
    if not all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_whole, pair)) for pair in pairs):
        raise DataError("spans can't be read", expected="[start, stop] in characters of the response")
    return [(start, stop) for start, stop in pairs]


def dialogue(body: Any) -> tuple[Any, Any]:
    """Prompt and response: a text or messages each."""
    fields = body if isinstance(body, Mapping) else {}
    for name in ("prompt", "response"):
        if not isinstance(fields.get(name), (str, list)):
            raise DataError(f"{name} can't be read", expected="a text, or messages {role, content}", found=type(fields.get(name)).__name__)
    return fields["prompt"], fields["response"]


def _is_whole(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)
