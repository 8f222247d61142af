"""Rendered dialogues taken apart again: OpenRLHF sends a policy's whole text, chat template included, and a reward model reads messages.

The template is that of the reward model's own backbone, whose fixed pieces are known (core.backbone.template). A text is taken apart between them,
and what comes out must render to the same text again: so nothing is guessed. A prompt without any template is one user message.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from core.backbone.model import Backbone
from core.backbone.template import ChatTemplate
from core.errors import BackboneError, DataError
from core.reward.dialogues import Item
from core.types import Message

# What ends a text that some policy wrote. Such a token is no part of an answer.
ENDS = ("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<end_of_turn>", "<eos>", "</s>", "<pad>", "[PAD]")
# What no plain text holds.
MARKS = re.compile(r"<\|[a-z_]+\|>|<start_of_turn>|<end_of_turn>|\[/?INST\]")


class Queries:
    """Takes the texts apart that are rendered with this backbone's template, or with none."""

    def __init__(self, backbone: Backbone) -> None:
        self.template: ChatTemplate = backbone.template
        tokenizer = backbone.tokenizer
        own = [str(token) for token in (tokenizer.eos_token, tokenizer.pad_token) if token]
        self.ends = tuple(dict.fromkeys([*own, *ENDS]))

    def divide(self, queries: Sequence[str], prompts: Sequence[str] | None) -> tuple[list[list[Message]], list[str]]:
        """The prompt (messages) and the response of each query. `prompts` are what the queries begin with. Raises DataError, naming the query, where
        it can't be told."""
        found = [self._item(number, query, None if prompts is None else prompts[number]) for number, query in enumerate(queries)]
        return [list(messages) for messages, _ in found], [response for _, response in found]

    def _item(self, number: int, query: str, prompt: str | None) -> Item:
        if prompt is None or not query.startswith(prompt):
            prompt = self._prompt_of(query)
        if prompt is None:
            raise DataError(
                f"query {number}, counted from 0, can't be divided into prompt and response",
                expected="`prompts` that the queries begin with, or this model's chat template",
                found=query[:60],
            )
        return self._messages(number, prompt), self._response(query[len(prompt) :])

    def _response(self, text: str) -> str:
        """Without the tokens that end a turn."""
        text, before = text.strip(), ""
        while text != before:
            before = text
            for end in self.ends:
                text = text.removesuffix(end).rstrip()
        return text

    def _prompt_of(self, query: str) -> str | None:
        """All up to where the last response begins, in this model's template; None where it is not in it."""
        if not self.template.has_template:
            return None
        turn = self._pieces(("user", "assistant"))
        before, found, _ = query.rpartition(turn[1]) if turn and turn[1] else ("", "", "")
        return before + found if found else None

    def _messages(self, number: int, prompt: str) -> tuple[Message, ...]:
        for messages in self._readings(prompt) if self.template.has_template else ():
            if self._renders_to(messages, prompt):
                return tuple(messages)
        if MARKS.search(prompt):
            remedy = "send prompts without a template, or train a policy that has the reward model's"
            raise DataError(f"prompt {number}, counted from 0, is in another model's chat template", found=prompt[:60], remedy=remedy)
        return ({"role": "user", "content": prompt},)

    def _readings(self, prompt: str) -> Iterator[list[Message]]:
        """What the text may be: longest dialogues first, so that no turn passes for a part of another's text."""
        turn = self._pieces(("user", "assistant"))
        most = prompt.count(turn[1]) if turn and turn[1] else 0
        for turns in range(most, 0, -1):
            for head in (("system",), ()):
                roles = (*head, *("user", "assistant") * turns)
                pieces = self._pieces(roles)
                match = pieces and re.fullmatch("(.*?)".join(map(re.escape, pieces[:-1])), prompt, re.DOTALL)
                if match:
                    yield [{"role": role, "content": text} for role, text in zip(roles[:-1], match.groups(), strict=True)]

    def _renders_to(self, messages: list[Message], prompt: str) -> bool:
        try:
            return self.template.text([*messages, {"role": "assistant", "content": "x"}]).startswith(prompt + "x")
        except BackboneError:
            return False

    def _pieces(self, roles: tuple[str, ...]) -> list[str]:
        """The template's fixed pieces around these messages; none where it refuses them."""
        try:
            return self.template.fixed_pieces(roles)
        except BackboneError:
            return []
