"""Rendered dialogues taken apart again: OpenRLHF sends a policy's whole text, chat template included, and a reward
model reads messages.

The template is that of the reward model's own backbone, whose fixed pieces are known (core.backbone.template). A text
is taken apart between them: a BOS in front may be there or not, a date may be another than ours, and what stands
between the start of the answer and its text (white space, the empty thinking block of some templates) is the
template's. A text that still holds control tokens after that is in another template, or forged. A prompt without any
template is one user message.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from core.backbone.control_tokens import without_closing
from core.backbone.layout import TemplatePieces, Unreadable
from core.backbone.model import Backbone
from core.backbone.template import ChatTemplate
from core.backbone.thinking import TAGS, without_empty_block
from core.reward.dialogues import Item
from core.types import Message

DATE = "\ue002date\ue003"  # stands for the date in a template that writes one
ANY_DATE = r"[^\n]{1,60}?"
# Ends of text of other models' policies, whose tokenizer may be another than the reward model's. Such a token is no
# part of an answer.
FOREIGN_ENDS = ("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<end_of_turn>", "<eos>", "</s>", "<pad>", "[PAD]")
EMPTY_BLOCK = re.compile(r"\A(?:" + "|".join(rf"{re.escape(opening)}\s*{re.escape(closing)}" for opening, closing in TAGS) + r")\s*")


class Queries:
    """Divides texts that are rendered with this backbone's template, or with none, into prompt and response."""

    def __init__(self, backbone: Backbone) -> None:
        self.template = backbone.template
        self._dated = ChatTemplate(backbone.tokenizer, date=DATE)
        self._bos = str(backbone.tokenizer.bos_token) if backbone.template.bos is not None else ""
        turn = self._pieces(("user", "assistant"))
        closing_piece = turn.around[-1].strip() if turn else ""
        control_tokens = backbone.tokenizer.convert_ids_to_tokens(sorted(self.template.control.ids))
        self._ends = tuple(dict.fromkeys(filter(None, (closing_piece, *map(str, control_tokens), *FOREIGN_ENDS))))
        self._before_answer = without_empty_block(turn.around[-2]).strip() if turn else ""

    def divide(self, queries: Sequence[Any], prompts: Sequence[Any] | None) -> list[Item | str]:
        """The prompt (messages) and the response of each query, or why it can't be divided. `prompts` are what the
        queries begin with.

        A query that is no text is refused alone; a prompt that is no text counts as missing.
        """
        return [
            self._item(query, None if prompts is None else prompts[number]) if isinstance(query, str) else f"not a text but {type(query).__name__}"
            for number, query in enumerate(queries)
        ]

    def _item(self, query: str, prompt: Any) -> Item | str:
        if isinstance(prompt, str) and query.startswith(prompt):
            before = without_empty_block(prompt)
            messages = self._messages(before)
            # A block that the prompt opened (as R1's template does) is the answer's: the policy goes on in it.
            opened = prompt[len(before) :]
            opened = "" if any(closing in opened for _, closing in TAGS) else opened
            return messages if isinstance(messages, str) else (messages, self._response(opened + query[len(prompt) :]))
        for messages, answer in self._readings(self._without_bos(query)):
            return messages, self._response(answer)
        return "it can't be divided into prompt and response: it is not in this model's chat template, and does not begin with its `prompts`"

    def _response(self, text: str) -> str:
        """An answer without the tokens that end a turn, and without the empty block that a template puts before it."""
        return EMPTY_BLOCK.sub("", without_closing(text, self._ends).strip())

    def _messages(self, prompt: str) -> tuple[Message, ...] | str:
        """The messages of a prompt, rendered up to where its answer begins, or plain text."""
        for messages, rest in self._readings(self._without_bos(prompt)):
            if not rest.strip():
                return messages
        if self.template.control.first_in(prompt):
            return "the prompt is in another model's chat template: send prompts without one, or train a policy that has the reward model's"
        return ({"role": "user", "content": prompt.strip()},)

    def _without_bos(self, text: str) -> str:
        while self._bos and text.startswith(self._bos):
            text = text[len(self._bos) :]
        return text

    def _readings(self, text: str) -> Iterator[tuple[tuple[Message, ...], str]]:
        """What a rendered text may be: messages, and what follows the start of the answer. Longest dialogues first, so
        that no turn is taken for a part of another's text; without a system message first, since a template may write
        one by itself."""
        most = text.count(self._before_answer) if self.template.has_template and self._before_answer else 0
        for turns in range(most, 0, -1):
            for head in ((), ("system",)):
                roles = (*head, *("user", "assistant") * turns)
                pieces = self._pieces(roles)
                match = self._expression(pieces).fullmatch(text) if pieces and pieces.order[-1] == len(roles) - 1 else None
                if pieces and match:
                    texts = dict(zip(pieces.order, match.groups(), strict=True))
                    messages = tuple(Message(role=role, content=texts[number].strip()) for number, role in enumerate(roles[:-1]))
                    if not any(self.template.control.first_in(m["content"]) for m in messages):
                        yield messages, texts[len(roles) - 1]

    def _expression(self, pieces: TemplatePieces) -> re.Pattern[str]:
        """A rendered dialogue up to its answer, with a group a message and the answer's in the end."""
        first, *between, before_answer = pieces.around[:-1]
        parts = [self._dated_piece(self._without_bos(first).lstrip()), *map(self._dated_piece, between)]
        before_answer = self._dated_piece(without_empty_block(before_answer).rstrip())
        return re.compile(r"\s*" + "(.*?)".join(parts) + "(.*?)" + before_answer + r"\s*(.*)", re.DOTALL)

    def _dated_piece(self, piece: str) -> str:
        return ANY_DATE.join(map(re.escape, piece.split(DATE)))

    def _pieces(self, roles: tuple[str, ...]) -> TemplatePieces | None:
        """The template's fixed pieces around these messages; none where it has no template, or refuses them."""
        try:
            return self._dated.fixed_pieces(roles) if self.template.has_template else None
        except Unreadable:
            return None
