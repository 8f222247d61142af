"""Words with a figure each, the strongest of them, and bars of deletions, drawn by a terminal and by a page."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from core.explain.token_values import PROMPT, RESPONSE, Deletion, Span, TokenGradient, TokenView
from core.explain.waterfall import Bar
from core.explain.words import WordTable

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


def token_spans(words: Sequence[Word], response: str) -> tuple[str, list[Span]]:
    """The text that holds the words, and the characters of each in it: the response, or the words' own text where the
    tokenizer changes the response's."""
    texts = [word.text for word in words]
    whole = "".join(texts)
    begin = response.find(whole.strip()) - (len(whole) - len(whole.lstrip()))
    text, at = (response, begin) if whole.strip() in response else (whole, 0)
    spans = []
    for part in texts:
        spans.append((min(max(at, 0), len(text)), min(max(at + len(part), 0), len(text))))
        at += len(part)
    return text, spans


def agreement_with_deletion(words: WordTable, deletions: Sequence[Deletion]) -> float | None:
    """Rank correlation of what spans carry with what deleting each does to the reward; None under three of them, where
    one can't be deleted, and where either does not vary."""
    from scipy.stats import rankdata  # takes 0.7 s to import

    effects = [deletion.effect for deletion in deletions if deletion.effect is not None]
    if len(effects) < max(3, len(deletions)):
        return None
    carried = rankdata(words.over([(deletion.start, deletion.stop) for deletion in deletions]).values)
    removed = rankdata(effects)
    return None if carried.std() == 0 or removed.std() == 0 else float(np.corrcoef(carried, removed)[0, 1])
