"""Finds each message's text in a rendered dialogue and checks that the rest are the chat template's fixed pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import BackboneError
from core.types import Message

SEPARATOR = "\n"  # between messages of a model without a template


class Unreadable(Exception):
    """A dialogue that can't be read. `reason` continues a sentence: `the response holds the control token </s>`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class TemplatePieces:
    """What a template writes: `around[i]` before the message numbered `order[i]`, the last entry after all of them."""

    around: tuple[str, ...]
    order: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Span:
    """Characters of one message's text in the rendered dialogue: its start, the end without white space, its end."""

    message: int
    start: int
    visible_end: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A rendered dialogue before it is tokenised. `messages` are those that the template was given."""

    messages: tuple[Message, ...]
    text: str
    spans: tuple[Span, ...]
    n_closing: int
    thinking: str


def default_template(given: Any) -> tuple[str, str]:
    """The template to use (empty where there is none), and its name among several (empty where it is the only one).

    A tokenizer can have several named templates (`default`, `tool_use`, `rag` ...). BackboneError: none is the default.
    """
    if not isinstance(given, dict):
        return str(given or ""), ""
    if "default" not in given:
        raise BackboneError(
            "this model has several chat templates and none of them is the default",
            expected="a template named default",
            found=", ".join(sorted(map(str, given))),
            remedy="name one of them default in the model's folder (chat_template.jinja)",
        )
    others = sorted(str(name) for name in given if name != "default")
    return str(given["default"]), f"default (not used: {', '.join(others)})" if others else ""


def find_spans(text: str, messages: Sequence[Message], pieces: TemplatePieces) -> tuple[Span, ...] | None:
    """Where each message's text lies in a rendered dialogue; None unless it is fixed pieces with the texts between."""
    if not text.startswith(pieces.around[0]):
        return None
    spans, at = list[Span](), len(pieces.around[0])
    for number, piece in zip(pieces.order, pieces.around[1:], strict=True):
        given = messages[number]["content"]
        written = next((t for t in (given, given.strip(), given.rstrip(), given.lstrip()) if text.startswith(t + piece, at)), None)
        if written is None:
            return None
        spans.append(Span(message=number, start=at, visible_end=at + len(written.rstrip()), end=at + len(written)))
        at += len(written) + len(piece)
    return tuple(spans) if at == len(text) else None


def concatenate(messages: Sequence[Message], n_closing: int, thinking: str) -> Layout:
    """The layout for a model without a chat template: the texts with `SEPARATOR` between them."""
    spans, text = list[Span](), ""
    for number, message in enumerate(messages):
        text += SEPARATOR if text else ""
        content = message["content"]
        spans.append(Span(message=number, start=len(text), visible_end=len(text) + len(content.rstrip()), end=len(text) + len(content)))
        text += content
    return Layout(messages=tuple(messages), text=text, spans=tuple(spans), n_closing=n_closing, thinking=thinking)
