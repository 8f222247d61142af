"""Makes the page of a latent from its column of activations; core/latents/pages.py describes each field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from jaxtyping import Float, Int

from core.backbone.token_text import pieces, token_bytes
from core.config import LatentsConfig
from core.latents.columns import Column, TokenisedCorpus
from core.latents.windows import Window, Windows

if TYPE_CHECKING:
    from core.backbone.unembedding import Unembedding
    from core.sae.autoencoder import SparseAutoencoder

BARS, LOGITS, CLOSEST = 40, 10, 10


class Snippet(TypedDict):
    """A window of text."""

    tokens: list[str]
    template: list[int]
    dataIndex: str
    dataSource: str


class Activation(Snippet):
    """A window around an activation."""

    values: list[float]
    minValue: float
    maxValue: float
    maxValueTokenIndex: int
    binMin: float
    binMax: float
    binContains: float


class Feature(TypedDict):
    """A latent's page, in Neuronpedia's field names."""

    modelId: str
    layer: str
    index: str
    pos_str: list[str]
    pos_values: list[float]
    neg_str: list[str]
    neg_values: list[float]
    logits_hist_data_bar_heights: list[int]
    logits_hist_data_bar_values: list[float]
    frac_nonzero: float
    maxActApprox: float
    freq_hist_data_bar_heights: list[int]
    freq_hist_data_bar_values: list[float]
    topkCosSimIndices: list[int]
    topkCosSimValues: list[float]
    activations: list[Activation]
    inactive: list[int]


@dataclass(kw_only=True)
class PageMaker:
    """Makes pages from the columns of activations."""

    corpus: TokenisedCorpus
    tokenizer: Any
    sae: SparseAutoencoder
    unembedding: Unembedding
    config: LatentsConfig
    names: tuple[str, str]

    @cached_property
    def windows(self) -> Windows:
        return Windows(corpus=self.corpus, config=self.config)

    @cached_property
    def _bytes(self) -> dict[int, bytes]:
        """The bytes of every token of the corpus and the vocabulary."""
        return token_bytes(self.tokenizer, [*range(len(self.tokenizer)), *np.unique(self.corpus.ids).tolist()])

    @cached_property
    def _unit_rows(self) -> Float[np.ndarray, "d_sae d_model"]:
        rows = self.sae.directions(np.arange(self.sae.d_sae))
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    def pages(self, latents: Int[np.ndarray, " n"], columns: Sequence[Column]) -> Iterator[Feature]:
        """The pages of some latents, given their columns."""
        effects = self.unembedding.logits(self.sae.directions(latents))[:, : len(self.tokenizer)]
        cosines = self._unit_rows[latents] @ self._unit_rows.T
        cosines[np.arange(len(latents)), latents] = -np.inf
        for latent, column, effect, cosine in zip(latents.tolist(), columns, effects, cosines, strict=True):
            yield self._page(latent, column, effect, cosine)

    def _page(self, latent: int, column: Column, effect: Float[np.ndarray, " v"], cosine: Float[np.ndarray, " d_sae"]) -> Feature:
        highest, lowest = _largest(effect, LOGITS), _largest(-effect, LOGITS)
        closest = _largest(cosine, min(CLOSEST, len(cosine) - 1))
        logit_values, logit_heights = _histogram(effect, float(effect.min()), float(effect.max()))
        peak = float(column[1].max()) if len(column[1]) else 0.0
        values, heights = _histogram(column[1], 0.0, peak) if peak else ([], [])
        rng = np.random.default_rng([self.config.seed, 2, latent])  # a latent's page does not depend on which other pages are made
        return Feature(
            modelId=self.names[0],
            layer=self.names[1],
            index=str(latent),
            pos_str=[self._text(i) for i in highest],
            pos_values=_shown(effect[highest]),
            neg_str=[self._text(i) for i in lowest],
            neg_values=_shown(effect[lowest]),
            logits_hist_data_bar_heights=logit_heights,
            logits_hist_data_bar_values=logit_values,
            frac_nonzero=len(column[0]) / self.corpus.n_counted,
            maxActApprox=_short(peak),
            freq_hist_data_bar_heights=heights,
            freq_hist_data_bar_values=values,
            topkCosSimIndices=closest,
            topkCosSimValues=_shown(cosine[closest]),
            activations=[self._activation(column, window) for window in self.windows.of_latent(column, rng)],
            inactive=self.windows.silent(column, rng).tolist(),
        )

    def _activation(self, column: Column, window: Window) -> Activation:
        values = _shown(self.windows.values(column, window.start, window.stop))
        return Activation(
            **self.snippet(window.start, window.stop),
            values=values,
            minValue=min(values),
            maxValue=max(values),
            maxValueTokenIndex=window.peak - window.start,
            binMin=_short(window.low),
            binMax=_short(window.high),
            binContains=_short(window.share),
        )

    def snippet(self, start: int, stop: int) -> Snippet:
        """The text of a window."""
        number = int(self.corpus.document_of(np.array([start]))[0])
        return Snippet(
            tokens=pieces([self._bytes[i] for i in self.corpus.ids[start:stop].tolist()]),
            template=np.flatnonzero(~self.corpus.counted[start:stop]).tolist(),
            dataIndex=str(number),
            dataSource=self.corpus.names[int(self.corpus.source[number])],
        )

    def _text(self, token: int) -> str:
        return self._bytes[token].decode("utf-8", errors="replace")


def _largest(values: Float[np.ndarray, " n"], n: int) -> list[int]:
    """Places of the largest values, falling; of equal ones the first."""
    n = min(n, len(values))
    bound = np.partition(values, len(values) - n)[len(values) - n]
    places = np.flatnonzero(values >= bound)
    largest: list[int] = places[np.argsort(-values[places], kind="stable")][:n].tolist()
    return largest


def _histogram(values: Float[np.ndarray, " n"], low: float, high: float) -> tuple[list[float], list[int]]:
    """Centres of the bars, and their counts."""
    heights, edges = np.histogram(values, bins=BARS, range=(low, high))
    return _shown((edges[:-1] + edges[1:]) / 2), heights.tolist()


def _shown(values: np.ndarray) -> list[float]:
    return [_short(value) if value else 0.0 for value in values.tolist()]


def _short(value: float) -> float:
    """Four digits: files of thousands of pages stay small."""
    return float(f"{value:.4g}")
