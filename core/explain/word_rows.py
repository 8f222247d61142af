"""Words with a figure each, the strongest of them, and bars of deletions, drawn by a terminal and by a page."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from core.explain.token_values import PROMPT, RESPONSE, Deletion, Span, TokenGradient, TokenView
from core.explain.waterfall import Bar

TEXT = (PROMPT, RESPONSE)


@dataclass(frozen=True, kw_only=True)
class Word:
    """A token and its figure. `place` counts the whole dialogue's tokens; `running`: the head's reward there."""

    place: int
    text: str
    kind: str
    value: float
    running: float


def word_rows(tokens: TokenView, values: Float[np.ndarray, " t"] | None, kinds: Collection[str] = (RESPONSE,)) -> list[Word]:
    """The tokens of these kinds, with their value (0 without)."""
    return [
        Word(place=i, text=text, kind=kind, value=0.0 if values is None else float(values[i]), running=float(tokens.running[i]))
        for i, (text, kind) in enumerate(zip(tokens.texts, tokens.kinds, strict=True))
        if kind in kinds
    ]


def latent_words(tokens: TokenView, latent_id: int, kinds: Collection[str] = (RESPONSE,)) -> list[Word]:
    """With the activation of a latent, 0 without an SAE. ConfigError: the latent is not among the selected ones."""
    return word_rows(tokens, None if tokens.activation is None else tokens.of_latent(latent_id), kinds)


def gradient_words(tokens: TokenView, gradient: TokenGradient, kinds: Collection[str] = (RESPONSE,)) -> list[Word]:
    """With how sensitive the reward is to each token."""
    return word_rows(tokens, gradient.norm, kinds)


def strongest(words: Sequence[Word], most: int) -> list[Word]:
    """The words of largest value, the largest first; those of value 0 are left out."""
    return [word for word in sorted(words, key=lambda word: -word.value)[:most] if word.value > 0]


def deletion_bars(deletions: Sequence[Deletion]) -> list[Bar]:
    """A bar a span: what it adds to the reward. A span without which nothing would be left has none."""
    return [Bar(label=deletion.text, value=deletion.effect, note=deletion.text) for deletion in deletions if deletion.effect is not None]


def span_of(words: Sequence[Word], response: str, first: int, last: int) -> Span | None:
    """The characters that the words `first` to `last` cover; None where tokens' texts differ from the response's."""
    texts = [word.text for word in words]
    whole = "".join(texts)
    begin, lead = response.find(whole.strip()), len(whole) - len(whole.lstrip())
    start = max(0, begin - lead + sum(map(len, texts[:first])))
    stop = min(len(response), begin - lead + sum(map(len, texts[: last + 1])))
    return (start, stop) if begin >= 0 and start < stop else None
