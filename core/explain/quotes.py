"""Which words of a response, or of a pair, are quoted as the reason for its reward.

1. Only words that pull the way the reward (or margin) went are quoted, at most three passages, the strongest first, until
   they carry SHARE of the difference together with the prompt.
2. A passage is a sentence; where there is but one, or it is long, its contiguous words of largest sum. Where three
   passages of this kind carry too little, contiguous words of the whole text are taken, over several sentences.
3. A quote shows at most twelve of a passage's words, the strongest, with an ellipsis in the place of the others.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from core.explain.words import WordTable

MOST_QUOTES, SHARE = 3, 0.6
LONG_SENTENCE = 20  # words; of a longer sentence the strongest contiguous part is quoted
MOST_WORDS, MOST_CHARACTERS = 12, 140  # of a quote
Run = tuple[int, int]  # numbers of the first word and of the one after the last


@dataclass(frozen=True, kw_only=True)
class Passage:
    """Words of one text: their characters, what a quote of them shows (on one line), what they add (`row`: by latent),
    and which latents are active on any of them (None where no SAE was at hand)."""

    side: str
    start: int
    stop: int
    quote: str
    value: float
    row: Float[np.ndarray, " k"]
    active: Bool[np.ndarray, " k"] | None


def passages(texts: Mapping[str, WordTable], total: float, prompt: float = 0.0) -> tuple[Passage, ...]:
    """What is quoted, the strongest first. `total` is the difference that is explained (reward less start, or margin), of
    which the prompt gives `prompt`; empty where no word pulls its way."""
    direction = 1.0 if total > 0 else -1.0
    needed = (SHARE * total - prompt) * direction
    best: tuple[Passage, ...] = ()
    for rule in (_sentence_runs, _free_runs):
        runs = [(side, run) for side, table in texts.items() for run in rule(table, direction)]
        ranked = sorted((_passage(side, texts[side], run, direction) for side, run in runs), key=lambda passage: -abs(passage.value))
        quoted = _enough(ranked, needed)
        if abs(sum(passage.value for passage in quoted)) > abs(sum(passage.value for passage in best)):
            best = quoted
        if abs(sum(passage.value for passage in best)) >= needed:
            break
    return best


def _enough(ranked: Sequence[Passage], needed: float) -> tuple[Passage, ...]:
    """The first passages that carry what is needed, at most three."""
    for n in range(1, MOST_QUOTES):
        if abs(sum(passage.value for passage in ranked[:n])) >= needed:
            return tuple(ranked[:n])
    return tuple(ranked[:MOST_QUOTES])


def _sentence_runs(table: WordTable, direction: float) -> list[Run]:
    """Sentences that pull that way; of long ones, and of a single one, the strongest contiguous words."""
    words, sentences = table.units("word"), table.units("sentence")
    first = np.searchsorted([start for start, _ in words.spans], [start for start, _ in sentences.spans])
    edges = [*first.tolist(), len(words.spans)]
    edges[0] = 0
    pulls = words.values * direction
    runs: list[Run] = []
    for a, b in itertools.pairwise(edges):
        if b <= a:
            continue
        run = strongest_run(pulls[a:b]) if len(sentences.spans) == 1 or b - a > LONG_SENTENCE else (0, b - a)
        if pulls[a + run[0] : a + run[1]].sum() > 0:
            runs.append((a + run[0], a + run[1]))
    return runs


def _free_runs(table: WordTable, direction: float) -> list[Run]:
    """The strongest contiguous words of the text, then those of what is left of it, three times."""
    pulls, runs = table.units("word").values * direction, list[Run]()
    for _ in range(MOST_QUOTES):
        first, after = strongest_run(pulls)
        if not pulls[first:after].sum() > 0:
            break
        runs.append((first, after))
        pulls = pulls.copy()
        pulls[first:after] = -np.inf
    return runs


def strongest_run(values: Float[np.ndarray, " n"]) -> Run:
    """First and one after the last of the contiguous values of largest sum, at least one value (Kadane)."""
    best, run, total, begin = -np.inf, (0, 1), 0.0, 0
    for number, value in enumerate(values.tolist()):
        if total <= 0:
            total, begin = 0.0, number
        total += value
        if total > best:
            best, run = total, (begin, number + 1)
    return run


def _passage(side: str, table: WordTable, run: Run, direction: float) -> Passage:
    words = table.units("word")
    part = slice(*run)
    spans = words.spans[part]
    return Passage(
        side=side,
        start=spans[0][0],
        stop=spans[-1][1],
        quote=_quote(table.text, spans, words.values[part] * direction),
        value=float(words.values[part].sum()),
        row=words.table[part].sum(axis=0),
        active=None if words.activations is None else np.asarray((words.activations[part] > 0).any(axis=0)),
    )


def _quote(text: str, spans: Sequence[tuple[int, int]], pulls: Float[np.ndarray, " n"]) -> str:
    """At most twelve words of the passage, where they pull most, on one line."""
    first = 0
    if len(spans) > MOST_WORDS:
        sums = np.convolve(pulls, np.ones(MOST_WORDS), mode="valid")
        first = int(sums.argmax())
    shown = spans[first : first + MOST_WORDS]
    line = " ".join(text[shown[0][0] : shown[-1][1]].split())
    cut = len(line) > MOST_CHARACTERS
    before, after = "… " if first else "", " …" if cut or first + MOST_WORDS < len(spans) else ""
    return f"{before}{line[:MOST_CHARACTERS] if cut else line}{after}"
