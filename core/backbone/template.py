"""Turns dialogues into token ids, with exactly one real BOS and the place of each message's text (METHOD.md section 2).

How a message's text is located in the rendered dialogue: the template is rendered once for each sequence of roles with
placeholders instead of the texts; what is around them are the template's fixed pieces, in whichever order it writes the
messages (some put the system text into the last user turn). The real rendering must be those pieces with the texts
between them (unchanged, or stripped, as Gemma's and Llama's templates do), which is checked. So no text can be mistaken
for a part of the template.

For a dialogue that can't be read this way (the template refuses it, leaves a message out or rewrites its text; a text
holds a control token; a config field refuses thinking) `render` returns an `Unreadable` with the reason, and goes on
with the others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

from core.backbone.control_tokens import ControlTokens, control_in, without_closing
from core.backbone.layout import SEPARATOR, Layout, Span, TemplatePieces, Unreadable, concatenate, default_template, find_spans
from core.backbone.thinking import strip_all, thinks, without_empty_block
from core.errors import BackboneError
from core.types import Message

OPEN, CLOSE = "\ue000", "\ue001"  # private-use characters: no template and hardly any text holds them
ANSWER = f"{OPEN}answer{CLOSE}"
KEPT, STRIPPED = "kept", "stripped"


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A dialogue as tokens, and where each message's own text lies among them.

    `content` marks tokens of the messages' own texts (never the first position, never the template's). For every
    assistant message: `response_starts` its first own token, `response_ends` the last token of its text without
    trailing white space, `turn_ends` the token after its text (the end of turn), -1 where nothing follows,
    `response_spans` the characters of its text in `text`, without trailing white space. `answered`: the last message is
    an assistant's and has a token of its own. `messages` are those that were rendered (a system text may have been moved
    into the first user message, a closing token cut). `text` is the rendered dialogue, and `starts` the character at
    which each token begins (-1 for a BOS that was added). `n_closing` control tokens were cut after assistant messages;
    `thinking` is `KEPT` or `STRIPPED` (empty: there is no block).
    """

    ids: Int32[np.ndarray, " t"]
    content: Bool[np.ndarray, " t"]
    response_starts: tuple[int, ...]
    response_ends: tuple[int, ...]
    turn_ends: tuple[int, ...]
    response_spans: tuple[tuple[int, int], ...]
    answered: bool
    messages: tuple[Message, ...]
    text: str
    starts: Int32[np.ndarray, " t"]
    n_closing: int
    thinking: str


class ChatTemplate:
    """Renders dialogues for one tokenizer. `control_tokens` and `think` are the fields of BackboneConfig.

    `name` is the one that is used of several named templates (empty where there is only one). Raises BackboneError
    where none can be used.
    """

    def __init__(self, tokenizer: Any, *, date: str, control_tokens: str = "refuse", think: str = "keep") -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise BackboneError(
                "this model's tokenizer gives no character offsets", expected="a tokenizer.json (fast tokenizer)", found=type(tokenizer).__name__
            )
        self.tokenizer, self._control_rule, self._think = tokenizer, control_tokens, think
        source, self.name = default_template(tokenizer.chat_template)
        self.has_template = bool(source)
        self._date = date
        # A template that writes today's date gets a fixed one; otherwise equal texts would have other tokens tomorrow.
        clock = "{%- macro strftime_now(format) -%}{{ " + json.dumps(date) + " }}{%- endmacro -%}"
        self._source = clock + source if "strftime_now" in source else source
        self._pieces: dict[tuple[str, ...], TemplatePieces | Unreadable] = {}
        first = tokenizer("a")["input_ids"][:1]
        # A real BOS is one that the tokenizer itself puts first. SmolLM2 names <|im_start|> its BOS and never adds it.
        self.bos = first[0] if first and first[0] == tokenizer.bos_token_id else None
        turn = self._turn_pieces()
        self.control = ControlTokens(tokenizer, "".join(turn))
        self.closing = self.control.closing_tokens(turn[-1])

    def _turn_pieces(self) -> tuple[str, ...]:
        """What the template writes around one question and its answer. Raises BackboneError where it renders none."""
        if not self.has_template:
            return ("", SEPARATOR, "")
        try:
            return self.fixed_pieces(("user", "assistant")).around
        except Unreadable as error:
            raise BackboneError(
                "this model's chat template can't be used: it does not render a user's message and its answer",
                found=error.reason,
                remedy="give a model folder with a working chat_template",
            ) from error

    def render(self, dialogues: Sequence[Sequence[Message]]) -> list[Rendered | Unreadable]:
        """Tokens and positions of each dialogue, or why it can't be read."""
        layouts = [self._lay_out_or_refuse(messages) for messages in dialogues]
        texts = [layout.text for layout in layouts if isinstance(layout, Layout)]
        # `split_special_tokens` is passed each time: a tokenizer folder may switch it on, which would split the
        # template's tokens.
        rules: dict[str, Any] = {"add_special_tokens": False, "padding": False, "truncation": False, "split_special_tokens": False}
        encodings = iter(self.tokenizer(texts, **rules).encodings if texts else ())
        return [self._locate_or_refuse(next(encodings), layout) if isinstance(layout, Layout) else layout for layout in layouts]

    def text(self, messages: Sequence[Message]) -> str:
        """The rendered dialogue. Raises Unreadable."""
        return self._lay_out(messages).text

    def _lay_out_or_refuse(self, messages: Sequence[Message]) -> Layout | Unreadable:
        try:
            return self._lay_out(messages)
        except Unreadable as error:
            return error

    def _lay_out(self, messages: Sequence[Message]) -> Layout:
        """The rendered text and each message's own span in it. Raises Unreadable."""
        messages, n_closing = self._without_closing(messages)
        thinking = self._rule_on_thinking(messages)
        if thinking == STRIPPED:
            messages = strip_all(messages)
        self._check_control_tokens(messages)
        messages = self.fold_system(messages)
        if not self.has_template:
            return concatenate(messages, n_closing, thinking)
        pieces = self.fixed_pieces(tuple(m["role"] for m in messages))
        text = self._apply(messages)
        spans = find_spans(text, messages, pieces)
        if spans is None and thinking == KEPT:
            return replace(self._lay_out_as_written(messages), n_closing=n_closing)
        if spans is None:
            raise Unreadable("the chat template changes the text of a message, so its tokens can't be located")
        layout = Layout(messages=tuple(messages), text=text, spans=spans, n_closing=n_closing, thinking=thinking)
        return _without_second_block(layout) if thinking == KEPT else layout

    def _without_closing(self, messages: Sequence[Message]) -> tuple[list[Message], int]:
        """The messages without closing tokens after the assistant's texts, and how many of the messages had one."""
        cut = [Message(role=m["role"], content=without_closing(m["content"], self.closing)) if m["role"] == "assistant" else m for m in messages]
        return cut, sum(before["content"] != after["content"] for before, after in zip(messages, cut, strict=True))

    def _rule_on_thinking(self, messages: Sequence[Message]) -> str:
        """How thinking blocks are treated (`KEPT`, `STRIPPED`), empty without any. Raises Unreadable to refuse them."""
        if not any(m["role"] == "assistant" and thinks(m["content"]) for m in messages):
            return ""
        if self._think == "refuse":
            raise Unreadable("an answer holds a thinking block (<think>), and think is set to refuse")
        return STRIPPED if self._think == "strip" else KEPT

    def _check_control_tokens(self, messages: Sequence[Message]) -> None:
        if self._control_rule == "text":
            return
        for number, message in enumerate(messages):
            token = self.control.first_in(message["content"])
            if token:
                raise Unreadable(self._control_reason(token, number, messages))

    def _control_reason(self, token: str, number: int, messages: Sequence[Message]) -> str:
        place = "the response" if number == len(messages) - 1 and messages[-1]["role"] == "assistant" else f"the prompt ({messages[number]['role']})"
        whose = "the control token" if self.control.is_token(token) else "a control token of another chat template,"
        return f"{place} holds {whose} {token}: it is not plain text (control_tokens = text reads it as characters)"

    def _lay_out_as_written(self, messages: list[Message]) -> Layout:
        """The layout of a dialogue with a thinking block in a message that the template would rewrite.

        Earlier turns are read without their blocks, as the template writes them. The response replaces a placeholder
        that the template renders, and the empty block that some templates open before an answer is removed.
        """
        *earlier, last = messages
        if last["role"] != "assistant":
            raise Unreadable("the chat template changes the text of a message, so its tokens can't be located")
        history = strip_all(earlier)
        with_placeholder = [*history, Message(role="assistant", content=ANSWER)]
        text = self._apply(with_placeholder)
        spans = find_spans(text, with_placeholder, self.fixed_pieces(tuple(m["role"] for m in messages)))
        if spans is None:
            raise Unreadable("the chat template changes the text of a message, so its tokens can't be located")
        placeholder = next(span for span in spans if span.message == len(messages) - 1)
        if any(span.start > placeholder.start for span in spans):
            raise Unreadable("the chat template writes another message after the answer, which holds a thinking block")
        before = without_empty_block(text[: placeholder.start]) if thinks(last["content"]) else text[: placeholder.start]
        answer = last["content"].strip()
        end = len(before) + len(answer)
        response = Span(message=placeholder.message, start=len(before), visible_end=end, end=end)
        placed = (*(span for span in spans if span is not placeholder), response)
        return Layout(messages=(*history, last), text=before + answer + text[placeholder.end :], spans=placed, n_closing=0, thinking=KEPT)

    def fixed_pieces(self, roles: tuple[str, ...]) -> TemplatePieces:
        """What the template writes around messages of these roles. Raises Unreadable where it refuses them."""
        if roles not in self._pieces:
            try:
                self._pieces[roles] = self._find_pieces(roles)
            except Unreadable as error:
                self._pieces[roles] = error
        pieces = self._pieces[roles]
        if isinstance(pieces, Unreadable):
            raise pieces
        return pieces

    def _find_pieces(self, roles: tuple[str, ...]) -> TemplatePieces:
        marks = [f"{OPEN}{i}{CLOSE}" for i in range(len(roles))]
        text = self._apply([Message(role=role, content=mark) for role, mark in zip(roles, marks, strict=True)])
        for role, mark in zip(roles, marks, strict=True):
            if text.count(mark) != 1:
                fault = "leaves a message out" if mark not in text else "writes a message twice"
                raise Unreadable(f"the chat template {fault} (a {role} message; roles: {', '.join(roles)})")
        order = sorted(range(len(roles)), key=lambda i: text.index(marks[i]))
        around = []
        for number in order:
            before, _, text = text.partition(marks[number])
            around.append(before)
        return TemplatePieces(around=(*around, text), order=tuple(order))

    def _apply(self, messages: Sequence[Message]) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(list(messages), chat_template=self._source, tokenize=False, date_string=self._date))
        except Exception as error:  # a template may raise anything to refuse a dialogue
            roles = ", ".join(m["role"] for m in messages)
            raise Unreadable(f"the chat template refuses this dialogue: {str(error)[:200]} (roles: {roles})") from error

    def fold_system(self, messages: Sequence[Message]) -> list[Message]:
        """The messages as the template accepts them: a refused system text (Gemma-2) opens the first user message."""
        messages = list(messages)
        if not (messages and messages[0]["role"] == "system") or self._takes_system():
            return messages
        if len(messages) < 2 or messages[1]["role"] != "user":
            raise Unreadable("the chat template takes no system message, and no user message follows to carry it")
        merged = messages[0]["content"] + "\n\n" + messages[1]["content"]
        return [Message(role="user", content=merged), *messages[2:]]

    def _takes_system(self) -> bool:
        if not self.has_template:
            return True
        try:
            self.fixed_pieces(("system", "user", "assistant"))
        except Unreadable:
            return False
        return True

    def _locate_or_refuse(self, encoding: Any, layout: Layout) -> Rendered | Unreadable:
        try:
            return self._locate(encoding, layout)
        except Unreadable as error:
            return error

    def _locate(self, encoding: Any, layout: Layout) -> Rendered:
        ids = np.array(encoding.ids, dtype=np.int32)
        places = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
        content = self._content_of(layout, places)
        if control := control_in(ids, content, self.control.ids):
            ids, places = self._as_plain_text(layout, ids, places, control)
            content = self._content_of(layout, places)
        ids, starts, shift = self._with_one_bos(ids, places[:, 0])
        content = np.concatenate([np.zeros(max(shift, 0), dtype=bool), content[max(-shift, 0) :]])
        content[:1] = False
        responses, answered = list[tuple[int, int, int, tuple[int, int]]](), False
        for span in sorted(layout.spans, key=lambda span: span.message):
            if layout.messages[span.message]["role"] != "assistant":
                continue
            tokens = _tokens_between(places, span.start, span.visible_end)
            answered = len(tokens) > 0
            if answered:
                following = _tokens_between(places, span.end, span.end + 1)
                turn_end = int(following[0]) + shift if self.has_template and len(following) else -1
                responses.append((int(tokens[0]) + shift, int(tokens[-1]) + shift, turn_end, (span.start, span.visible_end)))
        return Rendered(
            ids=ids,
            content=content,
            response_starts=tuple(start for start, _, _, _ in responses),
            response_ends=tuple(end for _, end, _, _ in responses),
            turn_ends=tuple(turn for _, _, turn, _ in responses),
            response_spans=tuple(span for _, _, _, span in responses),
            answered=answered and layout.messages[-1]["role"] == "assistant",
            messages=layout.messages,
            text=layout.text,
            starts=starts,
            n_closing=layout.n_closing,
            thinking=layout.thinking,
        )

    def _content_of(self, layout: Layout, places: Int32[np.ndarray, "t 2"]) -> Bool[np.ndarray, " t"]:
        content = np.zeros(len(places), dtype=bool)
        for span in layout.spans:
            tokens = _tokens_between(places, span.start, span.visible_end)
            if len(tokens):
                content[tokens[0] : tokens[-1] + 1] = True
        return content

    def _as_plain_text(
        self, layout: Layout, ids: Int32[np.ndarray, " t"], places: Int32[np.ndarray, "t 2"], control: list[int]
    ) -> tuple[Int32[np.ndarray, " m"], Int32[np.ndarray, "m 2"]]:
        """The tokens; a control token in a text becomes the tokens of its characters. Raises Unreadable if refused."""
        new_ids, new_places = ids.tolist(), places.tolist()
        for at in reversed(control):
            start, stop = new_places[at]
            token = layout.text[start:stop]
            plain = self.control.as_plain_text(token) if self._control_rule == "text" else None
            if plain is None:
                number = next((span.message for span in layout.spans if span.start <= start < span.end), len(layout.messages) - 1)
                raise Unreadable(self._control_reason(token, number, layout.messages))
            new_ids[at : at + 1] = plain[0]
            new_places[at : at + 1] = [[start + a, start + b] for a, b in plain[1]]
        return np.array(new_ids, dtype=np.int32), np.array(new_places, dtype=np.int32)

    def _with_one_bos(self, ids: Int32[np.ndarray, " t"], starts: Int32[np.ndarray, " t"]) -> tuple[np.ndarray, np.ndarray, int]:
        """The ids with exactly one real BOS at the front, their first characters, and by how many places they moved."""
        if self.bos is None:
            return ids, starts, 0
        have = next((i for i, number in enumerate(ids.tolist()) if number != self.bos), len(ids))
        front = np.array([self.bos], dtype=np.int32)
        first = starts[:1] if have else np.array([-1], dtype=np.int32)
        return np.concatenate([front, ids[have:]]), np.concatenate([first, starts[have:]]), 1 - have


def _without_second_block(layout: Layout) -> Layout:
    """The layout without the empty block that some templates (SmolLM3's) open even if the answer has its own."""
    last = len(layout.messages) - 1
    if layout.messages[last]["role"] != "assistant" or not thinks(layout.messages[last]["content"]):
        return layout
    start = next(span.start for span in layout.spans if span.message == last)
    before = without_empty_block(layout.text[:start])
    cut = start - len(before)
    moved = (
        replace(span, start=span.start - cut, visible_end=span.visible_end - cut, end=span.end - cut) if span.start >= start else span
        for span in layout.spans
    )
    return replace(layout, text=before + layout.text[start:], spans=tuple(moved))


def _tokens_between(places: Int32[np.ndarray, "t 2"], start: int, stop: int) -> np.ndarray:
    """Tokens that hold a character from `start` to before `stop`; several tokens may hold the same one (emoji)."""
    return np.flatnonzero((places[:, 0] < stop) & (places[:, 1] > start) & (places[:, 1] > places[:, 0]))
