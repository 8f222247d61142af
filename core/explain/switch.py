"""Latents switched off: reward, held-out accuracy and length correlation with projections at their means.

Held-out responses are kept as pre-activations of the head's hidden units, so a set costs its own columns, a ReLU and a
few sums: milliseconds, and no language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core.errors import ConfigError
from core.explain.cues import Correlation, correlations
from core.reward.evaluation import accuracy_of
from core.reward.fit_responses import FitResponses
from core.reward.head_words import counted_pairs, shipped_head, shipped_seed
from core.reward.parts import RewardParts
from core.types import Accuracy


@dataclass(frozen=True, kw_only=True)
class SwitchedOff:
    """With these latents at their training means: the shipped head's accuracy on held-out pairs, Spearman correlation
    of its reward with length over held-out responses, and (where a response was given) its reward. `seed` is the
    shipped head's, `split` that of the held-out pairs: test, or validation where there is no test split.
    """

    latent_ids: tuple[int, ...]
    accuracy: Accuracy
    length: Correlation
    reward: float | None
    seed: int | None
    split: str

    @property
    def measured_on(self) -> str:
        """What the accuracy was measured on: `shipped head, seed 3, 94 test pairs`."""
        return f"{shipped_head(self.seed)}, {counted_pairs(self.accuracy.n, self.split)}"

    def to_json(self) -> dict[str, Any]:
        figures = {**self.accuracy.to_json(), "head": "shipped", "seed": self.seed, "split": self.split}
        return {"latent_ids": list(self.latent_ids), **figures, "length": self.length.to_json(), "reward": self.reward}


class Switchboard:
    """Switches for the latents of one reward model. Raises ConfigError where no held-out pairs are kept beside it."""

    def __init__(self, parts: RewardParts, known: FitResponses | None) -> None:
        if known is None or not len(known.held_out_pairs) or parts.latent_ids is None:
            remedy = "fit it again with a test or a validation split"
            raise ConfigError("latents can't be switched off: no held-out pairs are kept beside this reward model", remedy=remedy)
        self.parts, self.split, rows = parts, known.held_out_split, known.held_out
        self.columns = {int(latent): column for column, latent in enumerate(parts.latent_ids)}
        self.v = known.projections[rows].astype(np.float64)
        self.first, self.second = parts.head.weight_1.astype(np.float64), parts.head.weight_2.astype(np.float64)[0]
        self.hidden = self.v @ self.first.T + parts.head.bias_1
        self.n_tokens, self.groups = known.n_tokens[rows].astype(np.float64), known.groups[rows]
        pairs = known.held_out_pairs
        self.chosen, self.rejected = (np.searchsorted(rows, side[pairs]) for side in (known.chosen_rows, known.rejected_rows))
        self.alike = (self.v[self.chosen] == self.v[self.rejected]).all(axis=1)  # a tie, which rounding must not break
        self.prompts = np.unique(self.groups[self.chosen], return_inverse=True)[1]

    def off(self, latent_ids: Sequence[int], v: Float[np.ndarray, " k"] | None = None) -> SwitchedOff:
        """With these latents off; `v`: a response whose reward is asked for. ConfigError: a latent is not read."""
        strange = sorted(set(map(int, latent_ids)) - set(self.columns))
        if strange:
            unknown = ", ".join(map(str, strange))
            raise ConfigError("this reward model has no such latent", expected=f"some of {len(self.columns)} selected latents", found=unknown)
        columns = np.array(sorted({self.columns[int(latent)] for latent in latent_ids}), dtype=np.int64)
        rewards = self._rewards(self.v, self.hidden, columns)
        if len(columns) == len(self.columns):
            rewards[:] = rewards[0]  # all rewards are equal but for rounding
        margins = np.where(self.alike, 0.0, rewards[self.chosen] - rewards[self.rejected])
        return SwitchedOff(
            latent_ids=tuple(int(i) for i in latent_ids),
            accuracy=accuracy_of(margins[None], self.prompts),
            length=correlations(rewards[:, None], self.n_tokens, self.groups)[0],
            reward=None if v is None else self._reward(v, columns),
            seed=shipped_seed(self.parts.method),
            split=self.split,
        )

    def _rewards(self, v: Float[np.ndarray, "n k"], hidden: Float[np.ndarray, "n hidden"], columns: Int[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
        mean = self.parts.projection_mean[columns].astype(np.float64)
        changed = hidden - (v[:, columns] - mean) @ self.first[:, columns].T if len(columns) else hidden
        rewards: np.ndarray = np.maximum(changed, 0.0) @ self.second + float(self.parts.head.bias_2[0])
        return rewards

    def _reward(self, v: Float[np.ndarray, " k"], columns: Int[np.ndarray, " m"]) -> float:
        hidden = v[None] @ self.first.T + self.parts.head.bias_1
        return float(self._rewards(v[None], hidden, columns)[0])
