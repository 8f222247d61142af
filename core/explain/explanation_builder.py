"""From projections and activations to explanations: no language model, no SAE, no disk.

1. Contributions of the shipped head and of all seeds' heads, for the response and for every known response to its
   prompt. Known are the responses of the fit, as they were saved in the reward model's folder.
2. The mean over those is the prompt part; the rest of the response's contributions is the response part.
3. Interventions, percentile, neighbours; then the sentence, made of the response parts (`core.explain.sentence`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core.errors import ConfigError, StoreError
from core.explain.attribution import Attribution, at_mean, collinear_groups, contributions, contributions_by_head
from core.explain.curves import Curves, own_curves, value_without
from core.explain.edits import Edit
from core.explain.explanation import Explanation, ModelFigures, PairExplanation
from core.explain.features import ResponseFeatures
from core.explain.neighbours import neighbours, percentile
from core.explain.removal import removal_effects
from core.explain.sentence import Evidence, why_pair, why_response
from core.explain.stability import prompt_share, stability
from core.explain.words import AT_RESPONSE_END, NOT_KEPT, PairWords, WordTable, pair_words, response_words
from core.latents.labels import Labels
from core.reward.fit_responses import FitResponses
from core.reward.hidden_states import WHOLE
from core.reward.parts import RewardParts
from core.reward.response_tokens import KeptTokens

KINDS = ("sparserm", "random-rows")


def check_explainable(parts: RewardParts) -> None:
    """Raises ConfigError for a reward model that has no latents with directions."""
    if parts.kind not in KINDS or parts.directions is None or parts.latent_ids is None:
        raise ConfigError("this reward model can't be explained by latents", expected=" or ".join(KINDS), found=parts.kind)


class ExplanationBuilder:
    """Explains the responses of one reward model. Raises ConfigError for a control without latent directions."""

    def __init__(
        self, parts: RewardParts, known: FitResponses | None, faithfulness: Mapping[str, Any] | None = None, tokens: KeptTokens | None = None
    ) -> None:
        check_explainable(parts)
        assert parts.directions is not None and parts.latent_ids is not None
        self.parts, self.known, self._faithfulness, self.tokens = parts, known, faithfulness, tokens
        self.latent_ids: Int[np.ndarray, " k"] = parts.latent_ids
        self.directions: Float[np.ndarray, "k d_model"] = parts.directions.astype(np.float64)
        self.mean: Float[np.ndarray, " k"] = parts.projection_mean.astype(np.float64)
        self.overlaps: Float[np.ndarray, "k k"] = self.directions @ self.directions.T

    @cached_property
    def figures(self) -> ModelFigures:
        """Stability, prompt share and faithfulness of the model itself."""
        known, share = self.known, None
        if known is not None:
            share = prompt_share(self.parts.head.reward(known.projections[known.held_out]), known.groups[known.held_out])
        return ModelFigures(
            stability=stability(self.parts, known),
            prompt_share=share,
            faithfulness=self._faithfulness,
            groups=collinear_groups(self.directions),
            n_held_out=0 if known is None else len(known.held_out),
        )

    def response(self, this: ResponseFeatures, labels: Labels, beside: Sequence[ResponseFeatures] = ()) -> Explanation:
        """One response explained. Those `beside` it answer the same prompt, and count as known."""
        v = np.concatenate([np.stack([features.v for features in (this, *beside)]), self._rivals([this, *beside])])
        attribution, shipped, by_head = self._attributed(this, v)
        n_known = 0 if self.known is None and len(v) == 1 else len(v)
        split = (shipped - shipped.mean(axis=0), by_head - by_head.mean(axis=1, keepdims=True)) if len(v) > 1 else (shipped, by_head)
        moved = this.v - (v.mean(axis=0) if len(v) > 1 else self.mean)
        active = None if this.f is None else np.where(moved > 0, this.f, np.nan)
        evidence = self._evidence(
            attribution,
            labels,
            value=split[0][0],
            by_head=split[1][:, 0],
            moved=moved,
            activation=active,
            active=None if this.f is None else this.f > 0,
        )
        rank = percentile(self.parts.reward_quantiles, attribution.reward)
        parts = (shipped.mean(axis=0), by_head.mean(axis=1))
        words = self._response_words(this, *parts) if len(v) > 1 else self._response_words(this, np.zeros_like(parts[0]), np.zeros_like(parts[1]))
        return Explanation(
            prompt=this.item[0],
            response=this.item[1],
            attribution=attribution,
            prompt_part=parts[0],
            response_part=shipped[0] - parts[0],
            prompt_by_head=parts[1],
            n_known=n_known,
            percentile=rank,
            at_mean=at_mean(self.parts.head, this.v, self.mean),
            removed=None if this.f is None else removal_effects(self.parts.head, this.v[None], this.f[None], self.overlaps)[0],
            curves=self._curves(attribution, this),
            neighbours=() if self.known is None else neighbours(self.known, self.parts, this.v, response_id=this.response_id),
            why=why_response(evidence, reward=attribution.reward, percentile=rank, n_known=n_known, words=words),
            figures=self.figures,
            words=words,
            no_words=self._no_words(this),
        )

    def pair(self, chosen: ResponseFeatures, rejected: ResponseFeatures, labels: Labels) -> PairExplanation:
        """Two responses to one prompt, and the margin between them."""
        sides = self.response(chosen, labels, [rejected]), self.response(rejected, labels, [chosen])
        margin = self.path(sides[1].attribution, sides[0].attribution)
        higher = None if chosen.f is None or rejected.f is None else np.where(chosen.v > rejected.v, chosen.f, rejected.f)
        either = None if chosen.f is None or rejected.f is None else (chosen.f > 0) | (rejected.f > 0)
        moved, value = chosen.v - rejected.v, margin.contribution
        evidence = self._evidence(margin, labels, value=value, by_head=margin.by_head, moved=moved, activation=higher, active=either)
        difference = margin.reward - margin.baseline_reward
        probability = float(1 / (1 + np.exp(-self.parts.margin_scale * difference)))
        words = self._pair_words(chosen, rejected)
        return PairExplanation(
            chosen=sides[0],
            rejected=sides[1],
            margin=margin,
            probability=probability,
            at_mean=sides[0].at_mean - sides[1].at_mean,
            removed=_difference(sides[0].removed, sides[1].removed),
            curves=self._curves(margin, chosen, rejected),
            why=why_pair(evidence, margin=difference, probability=probability, words=words),
            words=words,
            no_words=self._no_words(chosen, rejected),
        )

    def known_pair(self, number: int, labels: Labels) -> PairExplanation:
        """A pair of the fit by its number, from saved figures. StoreError: no texts; ConfigError: no such pair."""
        known = self.known
        if known is None or known.pairs is None:
            raise StoreError("no texts of known pairs are kept beside this reward model", remedy="give prompt and responses, or fit it again")
        if not 0 <= number < len(known.pairs):
            raise ConfigError("there is no such known pair", expected=f"0 to {len(known.pairs) - 1}", found=str(number))
        pair = known.pairs[number]
        sides = ((known.chosen_rows[number], pair.chosen), (known.rejected_rows[number], pair.rejected))
        chosen, rejected = (
            ResponseFeatures(
                item=(pair.prompt, text),
                v=known.projections[row].astype(np.float64),
                f=known.activations[row].astype(np.float64),
                tokens=None if self.tokens is None else self.tokens.of(int(row)),
            )
            for row, text in sides
        )
        return self.pair(chosen, rejected, labels)

    def edit(self, this: ResponseFeatures, labels: Labels, parent: Edit | None = None) -> Edit:
        """A changed text with its change against `parent`; without one, the root of a chain."""
        explanation = self.response(this, labels)
        change = None if parent is None else self.path(parent.explanation.attribution, explanation.attribution)
        return Edit(explanation=explanation, parent=parent, change=change, n_tokens=this.n_tokens, n_computed=this.n_computed)

    def path(self, start: Attribution, end: Attribution) -> Attribution:
        """From one response straight to another: the contributions sum to the difference of their rewards."""
        before, after = start.projection[None], end.projection[None]
        return Attribution(
            latent_ids=self.latent_ids,
            projection=end.projection,
            baseline=start.projection,
            activation=end.activation,
            contribution=contributions(self.parts.head, before, after)[0],
            by_head=contributions_by_head(self.parts.heads, before, after)[:, 0],
            reward=end.reward,
            baseline_reward=start.reward,
        )

    def _attributed(
        self, this: ResponseFeatures, v: Float[np.ndarray, "n k"]
    ) -> tuple[Attribution, Float[np.ndarray, "n k"], Float[np.ndarray, "heads n k"]]:
        """The first row's attribution, and the contributions of all rows."""
        start = np.broadcast_to(self.mean, v.shape)
        shipped, by_head = contributions(self.parts.head, start, v), contributions_by_head(self.parts.heads, start, v)
        reward, before = self.parts.head.reward(np.stack([this.v, self.mean]))
        attribution = Attribution(
            latent_ids=self.latent_ids,
            projection=this.v,
            baseline=self.mean,
            activation=this.f,
            contribution=shipped[0],
            by_head=by_head[:, 0],
            reward=float(reward),
            baseline_reward=float(before),
        )
        return attribution, shipped, by_head

    @property
    def _heads(self) -> dict[str, Any]:
        return {"head": self.parts.head, "heads": self.parts.heads, "latent_ids": self.latent_ids}

    def _response_words(self, this: ResponseFeatures, prompt: Float[np.ndarray, " k"], by_head: Float[np.ndarray, "heads k"]) -> WordTable | None:
        """The exact split over a response's words; None where its tokens are not at hand."""
        if this.tokens is None:
            return None
        parts: dict[str, Any] = {"baseline": self.mean, "prompt_part": prompt, "prompt_by_head": by_head}
        return response_words(this.item[1], this.tokens, this.v, **self._heads, **parts)

    def _pair_words(self, chosen: ResponseFeatures, rejected: ResponseFeatures) -> PairWords | None:
        """The exact split of the margin, measured from the mean of the known responses to the prompt."""
        if chosen.tokens is None or rejected.tokens is None:
            return None
        middle = np.concatenate([np.stack([chosen.v, rejected.v]), self._rivals([chosen, rejected])]).mean(axis=0)
        texts, tokens = (chosen.item[1], rejected.item[1]), (chosen.tokens, rejected.tokens)
        return pair_words(texts, tokens, (chosen.v, rejected.v), **self._heads, baseline=middle)

    def _no_words(self, *responses: ResponseFeatures) -> str:
        """Why there is no split over words; empty where there is one."""
        if all(features.tokens is not None for features in responses):
            return ""
        return NOT_KEPT if self.parts.position == WHOLE else AT_RESPONSE_END

    def _rivals(self, responses: Sequence[ResponseFeatures]) -> Float[np.ndarray, "m k"]:
        """v of the other known responses to their prompt, without `responses` themselves, which count already."""
        if self.known is None:
            return np.zeros((0, self.parts.k))
        rows = self.known.rows_of_prompt(responses[0].item[0])
        others = rows[~np.isin(self.known.response_ids[rows], [features.response_id for features in responses])]
        return self.known.projections[others].astype(np.float64)

    def _curves(self, attribution: Attribution, this: ResponseFeatures, less: ResponseFeatures | None = None) -> Curves | None:
        """Of a reward, or (with `less`) of a margin; None where no SAE is at hand, or too few latents are active."""
        both = [features for features in (this, less) if features is not None]
        values = [value_without(self.parts.head, features.v, features.f, self.overlaps) for features in both if features.f is not None]
        if len(values) < len(both):
            return None
        active = np.any([features.f > 0 for features in both if features.f is not None], axis=0)
        return own_curves(lambda sets: values[0](sets) - (values[1](sets) if len(values) > 1 else 0.0), active, attribution.contribution)

    def _evidence(self, attribution: Attribution, labels: Labels, **figures: Any) -> Evidence:
        return Evidence(
            latent_ids=self.latent_ids,
            contribution_by_head=attribution.by_head,
            groups=self.figures.groups,
            table=self.parts.selection,
            stability=self.figures.stability,
            labels=labels,
            **figures,
        )


def _difference(chosen: np.ndarray | None, rejected: np.ndarray | None) -> np.ndarray | None:
    """Change of the margin where a latent is removed from both; NaN where it is active in neither."""
    if chosen is None or rejected is None:
        return None
    return np.where(np.isnan(chosen) & np.isnan(rejected), np.nan, np.nan_to_num(chosen) - np.nan_to_num(rejected))
