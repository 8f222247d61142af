"""What can be said of a reward model from its folder alone: the pairs kept beside it, ranked and explained, and its latents switched off.

Projections and activations of known responses are in the folder (core.reward.fit_responses), so neither the language
model nor the SAE is needed, torch is not imported, and an answer takes milliseconds. A page does this in its own
process; texts of one's own need a live model (core.serving).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core.errors import ConfigError, StoreError
from core.explain.explanation import PairExplanation
from core.explain.explanation_builder import ExplanationBuilder
from core.explain.switch import Switchboard, SwitchedOff
from core.latents.label_book import LabelBook
from core.latents.labels import Labels
from core.reward.fit_responses import FitResponses, read_responses
from core.reward.parts_files import read_parts
from core.reward.recorded_files import FAITHFULNESS, remedy_for
from core.types import PreferencePair, strict_json

SIDES = ("chosen", "rejected")


class Kept:
    """One reward model's folder. Raises StoreError where it is damaged or no reward model's, ConfigError for a control without latents."""

    def __init__(self, folder: str | Path, *, root: Path | None = None) -> None:
        self.folder = Path(folder)
        self.parts = read_parts(self.folder)
        self.known = read_responses(self.folder, self.parts.k)
        self.builder = ExplanationBuilder(self.parts, self.known, read_faithfulness(self.folder))
        named = self.parts.sae if self.parts.sae and isinstance(self.parts.sae.get("sha256"), str) else None
        self._book = None if named is None else LabelBook(named, root)

    @property
    def labels(self) -> Labels:
        """What the latents are called, as the label files stand now."""
        return self._book.labels() if self._book else {}

    # --- which pairs there are ---

    @cached_property
    def rewards(self) -> Float[np.ndarray, "n_pairs 2"]:
        """Rewards of each kept pair's chosen and rejected response."""
        known = self._known()
        rewards = self.parts.head.reward(known.projections)
        return np.stack([rewards[known.chosen_rows], rewards[known.rejected_rows]], axis=1)

    @property
    def margins(self) -> Float[np.ndarray, " n_pairs"]:
        """s_w - s_l of each kept pair."""
        return self.rewards[:, 0] - self.rewards[:, 1]

    @cached_property
    def margins_by_head(self) -> Float[np.ndarray, "n_heads n_pairs"]:
        """s_w - s_l of each kept pair by each of the heads that are kept; `margins` are the shipped one's."""
        known = self._known()
        rewards = np.stack([head.reward(known.projections) for head in self.parts.heads])
        return rewards[:, known.chosen_rows] - rewards[:, known.rejected_rows]

    def held_out(self, by: str = "") -> Int[np.ndarray, " m"]:
        """Numbers of the held-out pairs: as they stand, or first the `worst` (lowest reward), or the most `misranked` (lowest margin)."""
        pairs = self._known().held_out_pairs
        keys = {"": np.arange(len(pairs)), "worst": self.rewards[pairs].min(axis=1), "misranked": self.margins[pairs]}
        if by not in keys:
            raise ConfigError("held-out pairs can't be ordered so", expected=", ".join(filter(None, keys)), found=by)
        return pairs[np.argsort(keys[by], kind="stable")]

    def number_of(self, pair_id: str) -> int | None:
        """The number of the pair with this id; None where it is not kept."""
        return self._numbers.get(pair_id)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        pairs = self._known().pairs
        return {} if pairs is None else {pair.pair_id: number for number, pair in reversed(list(enumerate(pairs)))}

    def pair(self, number: int) -> PreferencePair:
        """A kept pair, with its texts. Raises as `explain`."""
        pairs = self._known().pairs
        if pairs is None or not 0 <= number < len(pairs):
            raise ConfigError("there is no such known pair", found=str(number))
        return pairs[number]

    # --- what is said of them ---

    def explain(self, number: int) -> PairExplanation:
        """A kept pair explained. Raises StoreError where no texts are kept, ConfigError where there is no such pair."""
        return self.builder.known_pair(number, self.labels)

    def switch_off(self, latents: Sequence[int], number: int | None = None, side: str = "chosen") -> tuple[SwitchedOff, SwitchedOff]:
        """With these latents at their training means, and with none: held-out accuracy, liking for length, and the reward of a kept pair's response.

        Raises ConfigError where no held-out pairs are kept, or for a latent that the model does not read.
        """
        v = None
        if number is not None:
            known = self._known()
            row = (known.chosen_rows, known.rejected_rows)[SIDES.index(side)][number]
            v = known.projections[row].astype(np.float64)
        return self._switches.off(latents, v), self._switches.off((), v)

    @cached_property
    def _switches(self) -> Switchboard:
        return Switchboard(self.parts, self.known)

    def _known(self) -> FitResponses:
        if self.known is None:
            raise StoreError("no known responses are kept beside this reward model", expected="known.safetensors", remedy="fit it again")
        return self.known


def read_faithfulness(folder: Path | None) -> Mapping[str, Any] | None:
    """How faithful the fit measured its explanations to be, from the reward model's folder; None without. Raises StoreError where it is damaged."""
    path = None if folder is None else folder / FAITHFULNESS
    if path is None or not path.is_file():
        return None
    try:
        figures: Mapping[str, Any] = strict_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged", expected="JSON", found=str(error), remedy=remedy_for(path.parent)) from error
    if not isinstance(figures, dict):
        raise StoreError(f"{path} is damaged", expected="a JSON object", found=type(figures).__name__, remedy=remedy_for(path.parent))
    return figures
