"""Dialogues become token ids: chat template, exactly one real BOS, and where each message's own text lies (METHOD.md section 2).

How a message's text is found in the rendered dialogue: the template is rendered once per sequence of roles with unmistakable placeholders instead
of the texts; what stands around them are the template's fixed pieces. The real rendering must be those pieces with the texts (as they are, or
stripped, as Gemma's and Llama's templates do) in between, which is checked. So no text can be mistaken for a part of the template.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from core.errors import BackboneError
from core.types import Message

OPEN, CLOSE = "\ue000", "\ue001"  # private-use characters: no template and hardly any text holds them
Span = tuple[int, int, int]  # characters of a message's text: its start, the end of what is not white space, its end
SEPARATOR = "\n"  # between messages of a model without a template


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A dialogue as tokens. `content` marks tokens of the messages' own texts (never the first position, never the template's).

    For every assistant message: `response_starts` its first own token, `response_ends` the last token of its text, trailing white space apart,
    `turn_ends` the token that follows its text (the end of turn), -1 where nothing follows.
    """

    ids: Int32[np.ndarray, " t"]
    content: Bool[np.ndarray, " t"]
    response_starts: tuple[int, ...]
    response_ends: tuple[int, ...]
    turn_ends: tuple[int, ...]


class ChatTemplate:
    """Renders dialogues for one tokenizer."""

    def __init__(self, tokenizer: Any, *, date: str) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise BackboneError(
                "this model's tokenizer gives no character offsets", expected="a tokenizer.json (fast tokenizer)", found=type(tokenizer).__name__
            )
        self.tokenizer = tokenizer
        self.has_template = bool(tokenizer.chat_template)
        self._date = date
        # A template that asks for today's date gets the fixed one, or equal texts would have other tokens tomorrow.
        clock = "{%- macro strftime_now(format) -%}{{ " + json.dumps(date) + " }}{%- endmacro -%}"
        self._source = clock + str(tokenizer.chat_template) if "strftime_now" in str(tokenizer.chat_template) else tokenizer.chat_template
        self._pieces: dict[tuple[str, ...], list[str]] = {}
        first = tokenizer("a")["input_ids"][:1]
        # A real BOS is one that the tokenizer itself puts first. SmolLM2 names <|im_start|> its BOS and never adds it.
        self.bos = first[0] if first and first[0] == tokenizer.bos_token_id else None

    def render(self, dialogues: Sequence[Sequence[Message]]) -> list[Rendered]:
        """Tokens and positions of each dialogue. Raises BackboneError if the template refuses one or rewrites its text."""
        laid = [self._lay_out(list(messages)) for messages in dialogues]
        if not laid:
            return []
        encoded = self.tokenizer([text for text, _ in laid], add_special_tokens=False, padding=False, truncation=False)
        return [self._locate(encoded, i, list(dialogues[i]), spans) for i, (_, spans) in enumerate(laid)]

    def text(self, messages: Sequence[Message]) -> str:
        """The rendered dialogue."""
        return self._lay_out(list(messages))[0]

    def _lay_out(self, messages: list[Message]) -> tuple[str, list[Span]]:
        """The rendered text and each message's own span in it."""
        if not self.has_template:
            return _concatenate(messages)
        pieces = self.fixed_pieces(tuple(m["role"] for m in messages))
        text = self._apply(messages)
        spans, at = [], len(pieces[0])
        if not text.startswith(pieces[0]):
            raise self._rewritten(text)
        for message, piece in zip(messages, pieces[1:], strict=True):
            for own in (message["content"], message["content"].strip()):
                if text.startswith(own + piece, at):
                    spans.append((at, at + len(own.rstrip()), at + len(own)))
                    at += len(own) + len(piece)
                    break
            else:
                raise self._rewritten(text)
        if at != len(text):
            raise self._rewritten(text)
        return text, spans

    def _rewritten(self, text: str) -> BackboneError:
        return BackboneError(
            "the chat template changes the text of a message, so its tokens can't be told apart",
            expected="texts as they are, or stripped",
            found=text[:120],
            remedy="give a tokenizer with a plainer chat_template",
        )

    def fixed_pieces(self, roles: tuple[str, ...]) -> list[str]:
        """What the template puts before, between and behind messages of these roles. Raises BackboneError where it refuses them."""
        if roles not in self._pieces:
            marks = [f"{OPEN}{i}{CLOSE}" for i in range(len(roles))]
            text = self._apply([{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)])
            pieces = []
            for mark in marks:
                before, found, text = text.partition(mark)
                if not found:
                    raise BackboneError("the chat template leaves a message out", found=f"roles {', '.join(roles)}")
                pieces.append(before)
            self._pieces[roles] = [*pieces, text]
        return self._pieces[roles]

    def _apply(self, messages: list[Message]) -> str:
        from jinja2.exceptions import TemplateError

        try:
            return str(self.tokenizer.apply_chat_template(messages, chat_template=self._source, tokenize=False, date_string=self._date))
        except TemplateError as error:
            raise BackboneError(
                "the chat template refuses this dialogue", found=f"{error} (roles: {', '.join(m['role'] for m in messages)})"
            ) from error

    def fold_system(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as the template takes them: where it refuses a system role (Gemma-2), that text opens the first user message."""
        messages = list(messages)
        if not (messages and messages[0]["role"] == "system") or self._takes_system():
            return messages
        if len(messages) < 2 or messages[1]["role"] != "user":
            raise BackboneError("the chat template takes no system message, and no user message follows to carry it")
        merged = messages[0]["content"] + "\n\n" + messages[1]["content"]
        return [{"role": "user", "content": merged}, *messages[2:]]

    def _takes_system(self) -> bool:
        if not self.has_template:
            return True
        try:
            self.fixed_pieces(("system", "user", "assistant"))
        except BackboneError:
            return False
        return True

    def _locate(self, encoded: Any, i: int, messages: list[Message], spans: list[Span]) -> Rendered:
        ids, shift = self._with_one_bos(list(encoded[i].ids))
        content = np.zeros(len(ids), dtype=bool)
        starts, ends, turns = [], [], []
        for message, (start, stop, following) in zip(messages, spans, strict=True):
            first, last = _token_span(encoded, i, start, stop)
            if first is None:
                continue
            content[max(first + shift, 1) : last + shift + 1] = True
            if message["role"] == "assistant":
                starts.append(first + shift)
                ends.append(last + shift)
                after = encoded.char_to_token(i, following) if self.has_template else None
                turns.append(-1 if after is None else after + shift)
        return Rendered(
            ids=np.array(ids, dtype=np.int32), content=content, response_starts=tuple(starts), response_ends=tuple(ends), turn_ends=tuple(turns)
        )

    def _with_one_bos(self, ids: list[int]) -> tuple[list[int], int]:
        """The ids with exactly one real BOS in front, and by how many places they moved."""
        if self.bos is None:
            return ids, 0
        have = 0
        while have < len(ids) and ids[have] == self.bos:
            have += 1
        return [self.bos, *ids[have:]], 1 - have


def _concatenate(messages: list[Message]) -> tuple[str, list[Span]]:
    spans, text = [], ""
    for message in messages:
        text += SEPARATOR if text else ""
        own = message["content"]
        spans.append((len(text), len(text) + len(own.rstrip()), len(text) + len(own)))
        text += own
    return text, spans


def _token_span(encoded: Any, i: int, start: int, stop: int) -> tuple[int | None, int]:
    """First and last token of the text between two characters; None where the text has no token.

    The last character can take several tokens (emoji in byte-level vocabularies); the last of them counts.
    """
    text_range = range(start, stop)
    first = next((t for c in text_range if (t := encoded.char_to_token(i, c)) is not None), None)
    last = next((t for c in reversed(text_range) if (t := encoded.char_to_token(i, c)) is not None), None)
    if first is None or last is None:
        return None, -1
    while (
        last + 1 < len(encoded[i].ids) and (span := encoded.token_to_chars(i, last + 1)) is not None and span.start < stop and span.end > span.start
    ):
        last += 1
    return first, last
