"""Chooses the texts of a latent's page: highest activations, each part of its range, and without activity.

A window is a run of tokens around one token, two thirds of it before that token, since a decoder's activation depends
on no later token. It stays within the message texts of one document, with tokens of the template only between messages.

A latent shows at most one window of a document, and no two windows with the same tokens, or the same tokens up to their
maxima: preference pairs repeat their prompts, and equal beginnings give equal activations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from core.config import LatentsConfig
from core.latents.columns import Column, TokenisedCorpus

TRIES = 32  # tokens of an interval that are tried for each window to be found


@dataclass(frozen=True, kw_only=True)
class Window:
    """Tokens `start` to `stop` of the corpus, around the token `peak`. `low` to `high` is the interval of activations
    that it represents, which holds a `share` of all; -1 as lower end and share marks the highest activations
    (Neuronpedia's convention)."""

    start: int
    stop: int
    peak: int
    low: float
    high: float
    share: float


@dataclass(kw_only=True)
class Windows:
    """Cuts windows out of a corpus, and draws the snippets: windows around random tokens, the same for all latents."""

    corpus: TokenisedCorpus
    config: LatentsConfig
    snippets: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        self.snippets = list(self._draw_snippets())
        self._starts, self._stops = (np.array([span[i] for span in self.snippets], dtype=np.int64) for i in (0, 1))

    def span(self, token: int) -> tuple[int, int]:
        """The window around a token; it is shorter only if the document is."""
        document = int(self.corpus.document_of(np.array([token]))[0])
        low, high = (int(bound[document]) for bound in self.corpus.bounds)
        length = self.config.window
        start = max(low, min(token - 2 * length // 3, high - length))
        return start, min(high, start + length)

    def of_latent(self, column: Column, rng: np.random.Generator) -> list[Window]:
        """Windows of the highest activations, falling; then of each interval, highest first, as they were drawn."""
        token, value = column
        if not len(token):
            return []
        used, peak = _Used(self), float(value.max())
        ranked = _by_document(token, value, self.corpus.document_of(token)).tolist()
        windows = list(used.taken(ranked, self.config.top, -1.0, peak, -1.0))
        for number in reversed(range(self.config.intervals)):
            low, high = (peak * (number + i) / self.config.intervals for i in (0, 1))
            inside = np.flatnonzero((value > low) & ((value <= high) | (number + 1 == self.config.intervals)))
            drawn = rng.choice(inside, min(self.config.per_interval * TRIES, len(inside)), replace=False)
            peaks = (int(token[i]) for i in drawn if self._is_peak(column, int(i)))
            windows += used.taken(peaks, self.config.per_interval, low, high, len(inside) / len(token))
        return windows

    def values(self, column: Column, start: int, stop: int) -> Float[np.ndarray, " t"]:
        """A latent's activations on a window's tokens; 0 where inactive, and on tokens that do not count."""
        values = np.zeros(stop - start, dtype=np.float32)
        a, b = np.searchsorted(column[0], [start, stop])
        values[column[0][a:b] - start] = column[1][a:b]
        return values

    def silent(self, column: Column, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
        """Numbers of snippets where the latent is nowhere active: `config.inactive` drawn at random, rising."""
        empty = np.flatnonzero(np.searchsorted(column[0], self._starts) == np.searchsorted(column[0], self._stops))
        return np.sort(rng.choice(empty, min(self.config.inactive, len(empty)), replace=False))

    def _is_peak(self, column: Column, i: int) -> bool:
        return bool(self.values(column, *self.span(int(column[0][i]))).max() <= column[1][i])

    def _draw_snippets(self) -> Iterator[tuple[int, int]]:
        """One snippet of each document; if the documents are too few, further ones that do not overlap."""
        rng = np.random.default_rng([self.config.seed, 1])
        places = rng.permutation(np.flatnonzero(self.corpus.counted))
        documents, kept = self.corpus.document_of(places), dict[int, list[tuple[int, int]]]()
        texts: set[bytes] = set()
        for most in (1, len(places)):
            for token, document in zip(places.tolist(), documents.tolist(), strict=True):
                if len(texts) == self.config.snippets:
                    return
                spans = kept.setdefault(document, [])
                if len(spans) >= most:
                    continue
                start, stop = self.span(token)
                text = self.corpus.ids[start:stop].tobytes()
                if text not in texts and all(stop <= a or b <= start for a, b in spans):
                    texts.add(text)
                    spans.append((start, stop))
                    yield start, stop


class _Used:
    """The documents and texts that the windows of one latent have used."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self.documents: set[int] = set()
        self.texts: set[tuple[str, bytes]] = set()

    def taken(self, tokens: Iterable[int], most: int, low: float, high: float, share: float) -> Iterator[Window]:
        """Windows around the first `most` of these tokens whose document and text are not used yet."""
        corpus, n = self.windows.corpus, 0
        for token in tokens:
            if n == most:
                return
            document = int(corpus.document_of(np.array([token]))[0])
            start, stop = self.windows.span(token)
            texts = {("window", corpus.ids[start:stop].tobytes()), ("up to its maximum", corpus.ids[start : token + 1].tobytes())}
            if document not in self.documents and self.texts.isdisjoint(texts):
                self.documents.add(document)
                self.texts |= texts
                n += 1
                yield Window(start=start, stop=stop, peak=token, low=low, high=high, share=share)


def _by_document(token: Int[np.ndarray, " n"], value: Float[np.ndarray, " n"], documents: Int[np.ndarray, " n"]) -> Int[np.ndarray, " m"]:
    """The token of each document's highest activation (the first of equal ones), by falling activation."""
    first = np.flatnonzero(np.diff(documents, prepend=-1))
    highest = np.maximum.reduceat(value, first)
    at = np.flatnonzero(value == np.repeat(highest, np.diff(first, append=len(value))))
    peaks = at[np.unique(documents[at], return_index=True)[1]]
    ranked: np.ndarray = token[peaks[np.lexsort((token[peaks], -value[peaks]))]]
    return ranked
