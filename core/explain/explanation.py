"""Explanations as values: of one response, of a pair, and of their reward model. Made in core.explain.explainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from core.explain.attribution import Attribution
from core.explain.curves import Curves
from core.explain.neighbours import Neighbour
from core.explain.sentence import Why
from core.explain.stability import PromptShare, Stability
from core.explain.words import PairWords, WordTable
from core.types import Message, json_value

INACTIVE = "inactive: nothing to remove"
NO_SAE = "the SAE is not at hand"


@dataclass(frozen=True, kw_only=True)
class ModelFigures:
    """What is shown beside every explanation of a reward model: can it be believed. `faithfulness` is what the fit
    measured (JSON), None if it is not kept; `groups` are the columns of collinear latents."""

    stability: Stability
    prompt_share: PromptShare | None
    faithfulness: Mapping[str, Any] | None
    groups: tuple[tuple[int, ...], ...]
    n_held_out: int

    def to_json(self) -> dict[str, Any]:
        return {name: json_value(getattr(self, name)) for name in ("stability", "prompt_share", "faithfulness", "n_held_out")}


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """One response explained. The path starts at the mean training projection.

    `prompt_part` is the mean contribution over the `n_known` known responses to this prompt (this one included; 0: none
    are kept beside the model), `response_part` what is left; `prompt_by_head` is the prompt part of each seed's head.
    `at_mean` is how the reward changes where a projection is set to its training mean, `removed` how it changes where
    the latent is taken out of the residual stream (NaN: inactive, nothing to remove; None: no SAE at hand).
    `percentile` is among held-out ones. `curves` is this explanation's own faithfulness, None for too few latents.
    `words` is the exact split over the response's words; None with the reason in `no_words`.
    """

    prompt: tuple[Message, ...]
    response: str
    attribution: Attribution
    prompt_part: Float[np.ndarray, " k"]
    response_part: Float[np.ndarray, " k"]
    prompt_by_head: Float[np.ndarray, "heads k"]
    n_known: int
    percentile: float
    at_mean: Float[np.ndarray, " k"]
    removed: Float[np.ndarray, " k"] | None
    curves: Curves | None
    neighbours: tuple[Neighbour, ...]
    why: Why
    figures: ModelFigures
    words: WordTable | None = None
    no_words: str = ""

    @property
    def reward(self) -> float:
        return self.attribution.reward

    @property
    def latents(self) -> list[dict[str, Any]]:
        """A row of JSON values a latent, in the order of the directions, as terminal, page and file show it."""
        columns = {"prompt_part": self.prompt_part, "response_part": self.response_part, "at_mean": self.at_mean}
        return latent_rows(self.attribution, columns, self.removed)

    def to_json(self) -> dict[str, Any]:
        """JSON values; `groups` as lists of latent ids (those of two and more)."""
        return {
            "prompt": list(self.prompt),
            "response": self.response,
            "why": self.why.to_json(),
            "percentile": self.percentile,
            "n_known": self.n_known,
            "prompt_part": float(self.prompt_part.sum()),
            "response_part": float(self.response_part.sum()),
            **self.attribution.figures,
            "latents": self.latents,
            "groups": named_groups(self.attribution, self.figures.groups),
            "curves": None if self.curves is None else self.curves.to_json(),
            "neighbours": [neighbour.to_json() for neighbour in self.neighbours],
            "words": None if self.words is None else self.words.to_json(),
            "no_words": self.no_words,
            "model": self.figures.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class PairExplanation:
    """Two responses to one prompt. `margin` runs from v_l to v_w, so its contributions sum to s_w - s_l; the prompt's
    offset cancels in it. `at_mean`, `removed`: changes of the margin, a latent held or removed in both. `words` splits the
    margin over the words of both texts; None with the reason in `no_words`."""

    chosen: Explanation
    rejected: Explanation
    margin: Attribution
    probability: float
    at_mean: Float[np.ndarray, " k"]
    removed: Float[np.ndarray, " k"] | None
    curves: Curves | None
    why: Why
    words: PairWords | None = None
    no_words: str = ""

    @property
    def attribution(self) -> Attribution:
        """The attribution that the sentence is about: the margin's."""
        return self.margin

    @property
    def latents(self) -> list[dict[str, Any]]:
        """A row of JSON values a latent, in the order of the directions; its `contribution` is to the margin."""
        return latent_rows(self.margin, {"at_mean": self.at_mean}, self.removed)

    def to_json(self) -> dict[str, Any]:
        """JSON values; what belongs to the model stands once."""
        sides = {name: side.to_json() for name, side in (("chosen", self.chosen), ("rejected", self.rejected))}
        for side in sides.values():
            del side["model"], side["groups"]
        return {
            "why": self.why.to_json(),
            "margin": self.margin.reward - self.margin.baseline_reward,
            "probability": self.probability,
            "residual": self.margin.residual,
            "rank_correlation": self.margin.rank_correlation,
            "latents": self.latents,
            "words": None if self.words is None else self.words.to_json(),
            "no_words": self.no_words,
            **sides,
            "groups": named_groups(self.margin, self.chosen.figures.groups),
            "curves": None if self.curves is None else self.curves.to_json(),
            "model": self.chosen.figures.to_json(),
        }


def latent_rows(attribution: Attribution, columns: Mapping[str, np.ndarray], removed: np.ndarray | None) -> list[dict[str, Any]]:
    """An attribution's rows with more columns; `removal` gives the reason where a latent could not be removed."""
    rows = attribution.latents
    for i, row in enumerate(rows):
        row |= {name: float(values[i]) for name, values in columns.items()}
        change = None if removed is None or np.isnan(removed[i]) else float(removed[i])
        row |= {"removed": change} if change is not None else {"removed": None, "removal": NO_SAE if removed is None else INACTIVE}
    return rows


def named_groups(attribution: Attribution, groups: tuple[tuple[int, ...], ...]) -> list[list[int]]:
    """Groups of two latents and more, by latent id."""
    return [attribution.latent_ids[list(group)].tolist() for group in groups if len(group) > 1]
