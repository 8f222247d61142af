"""The values of a reward model's folder, each read once, when first asked for; `core.reward.folder` shares them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from core.errors import MissingError, StoreError
from core.files import read_json
from core.reward.fit_responses import FitResponses, read_responses
from core.reward.parts import RewardParts
from core.reward.parts_files import read_parts, read_selection
from core.reward.recorded_files import FAITHFULNESS, SELECTION, remedy_for
from core.reward.response_tokens import KeptTokens, read_tokens

FIT_AGAIN = "fit it again with this cache (SPARSERM_CACHE); finished steps are found"


class FolderContent:
    """The values read from one folder while its record is the same: shared, so nothing may be written into them."""

    def __init__(self, path: Path, k: int) -> None:
        self.path, self._k = path, k
        self._json: dict[str, Any] = {}

    def json(self, name: str) -> Any:
        """The value of a JSON file. MissingError: the folder has none; StoreError: it can't be read."""
        if name not in self._json:
            if not (self.path / name).is_file():
                raise MissingError(f"{self.path} holds no {name}", remedy=FIT_AGAIN)
            self._json[name] = read_json(self.path / name)
        return self._json[name]

    @cached_property
    def faithfulness(self) -> Mapping[str, Any] | None:
        """Measured faithfulness of explanations (core.explain.faithfulness); None where the folder has none."""
        figures = self.json(FAITHFULNESS) if (self.path / FAITHFULNESS).is_file() else None
        if figures is not None and not isinstance(figures, dict):
            problem, kind = f"{self.path / FAITHFULNESS} is damaged", type(figures).__name__
            raise StoreError(problem, expected="a JSON object", found=kind, remedy=remedy_for(self.path))
        return figures

    @cached_property
    def selection(self) -> tuple[Mapping[str, Any], ...]:
        return read_selection(self.path / SELECTION)

    @cached_property
    def parts(self) -> RewardParts:
        return read_parts(self.path)

    @cached_property
    def responses(self) -> FitResponses | None:
        return read_responses(self.path, self._k)

    @cached_property
    def tokens(self) -> KeptTokens | None:
        return None if self.responses is None else read_tokens(self.path, self._k, len(self.responses))

    @cached_property
    def rewards(self) -> Float[np.ndarray, " n"]:
        rewards = np.zeros(0) if self.responses is None else self.parts.head.reward(self.responses.projections)
        rewards.flags.writeable = False
        return rewards

    @cached_property
    def pair_rewards(self) -> Float[np.ndarray, "n_pairs 2"]:
        if self.responses is None:
            return np.zeros((0, 2))
        return np.stack([self.rewards[self.responses.chosen_rows], self.rewards[self.responses.rejected_rows]], axis=1)

    @cached_property
    def margins_by_head(self) -> Float[np.ndarray, "n_heads n_pairs"]:
        if self.responses is None:
            return np.zeros((len(self.parts.heads), 0))
        rewards = np.stack([head.reward(self.responses.projections) for head in self.parts.heads])
        return rewards[:, self.responses.chosen_rows] - rewards[:, self.responses.rejected_rows]

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each pair by its id; of equal pairs the first."""
        pairs = None if self.responses is None else self.responses.pairs
        return {} if pairs is None else {pair.pair_id: number for number, pair in reversed(list(enumerate(pairs)))}
