"""Finds control tokens inside texts, so that no text can steer the model with one (METHOD.md section 2).

These are control tokens of a text:
- every special token of the tokenizer (`<|im_end|>`, `</s>`, `<pad>` ...), and every added token that the chat template
  itself writes;
- the turn markers of the well-known chat templates, even where this tokenizer has no such token: a text with them has
  been rendered by a template already, and would be wrapped twice; likewise `</s>`, `<eos>` or padding at a text's very
  end, `<s>` or `<bos>` at its start.

A closing token of this template, or the tokenizer's end of text, at the very end of an assistant message is how a
policy ends its answer: it is cut, and counted. For any other control token the text is refused (`control_tokens =
refuse`), or the token is encoded as plain characters (`control_tokens = text`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int32

from core.backbone.thinking import TAGS
from core.data.chat_markers import MARKERS, sequence_mark

THINK_TAGS = frozenset(tag for tags in TAGS for tag in tags)  # handled by core.backbone.thinking


class ControlTokens:
    """The control tokens of one tokenizer and its chat template; `template_text` is what the template itself writes."""

    def __init__(self, tokenizer: Any, template_text: str) -> None:
        self.tokenizer = tokenizer
        added = {number: token for number, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
        written = {number for number, token in added.items() if token.content in template_text and not token.content.isalnum()}
        special = {number for number, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        texts = {number: str(tokenizer.convert_ids_to_tokens(number)) for number in special | written}
        self._texts = {number: text for number, text in texts.items() if text.strip() and text not in THINK_TAGS}
        self.ids: frozenset[int] = frozenset(self._texts)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        tokens = sorted(set(self._texts.values()), key=lambda text: (-len(text), text))
        return re.compile("|".join([*map(re.escape, tokens), *MARKERS]))

    def first_in(self, text: str) -> str:
        """The first control token in a text, empty where there is none."""
        match = self._pattern.search(text)
        return match[0] if match else sequence_mark(text)

    def is_token(self, text: str) -> bool:
        """Whether this tokenizer encodes the text as one control token; else it is a marker of another template."""
        return text in self._texts.values()

    def closing_tokens(self, closing_piece: str) -> tuple[str, ...]:
        """What ends an assistant message: control tokens in the template's piece after it, and end of text."""
        tokens = [match[0] for match in self._pattern.finditer(closing_piece) if self.is_token(match[0])]
        return tuple(dict.fromkeys([*tokens, *([str(self.tokenizer.eos_token)] if self.tokenizer.eos_token else [])]))

    def as_plain_text(self, token: str) -> tuple[list[int], list[tuple[int, int]]] | None:
        """Ids of a control token's characters and where each lies among them; None where there is no other encoding.

        They are encoded after a line break, whose tokens are removed: some tokenizers put a space first.
        """
        encoded = self.tokenizer("\n" + token, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True)
        spans = [(start - 1, stop - 1) for start, stop in encoded["offset_mapping"]]
        plain = [(number, span) for number, span in zip(encoded["input_ids"], spans, strict=True) if span[1] > 0]
        if not plain or any(number in self.ids for number, _ in plain):
            return None
        return [number for number, _ in plain], [(max(start, 0), stop) for _, (start, stop) in plain]


def without_closing(text: str, closing: Iterable[str]) -> str:
    """A text without closing tokens at its very end and the white space before them; unchanged if it ends with none."""
    closing = [token for token in closing if token]
    rest = text.rstrip()
    while token := next((token for token in closing if rest.endswith(token)), ""):
        text = rest = rest.removesuffix(token).rstrip()
    return text


def control_in(ids: Int32[np.ndarray, " t"], content: np.ndarray, control: frozenset[int]) -> list[int]:
    """Positions of control tokens [t] among the tokens of the messages' own texts (`content`)."""
    return np.flatnonzero(content & np.isin(ids, list(control))).tolist()
