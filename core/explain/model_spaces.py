"""Compares the dense and the sparse space of a fitted reward model (core.explain.spaces): from its folder, the hidden
states that its fit kept in the cache, and its SAE. The language model is not loaded. The result is an artefact, found
by the folder's content.

It is not part of a fit: t-SNE of 5,000 responses takes half a minute on one core, and no reward depends on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from core.config import SpacesConfig
from core.explain.spaces import NAME, Spaces, compare_spaces, load_spaces, save_spaces
from core.reward.folder import ModelFolder
from core.reward.model import SparseRM
from core.reward.projection import isotropic_directions, random_live_latents
from core.types import LatentFrequencies, Progress, no_progress


def model_spaces(folder: ModelFolder, config: SpacesConfig, *, progress: Progress = no_progress) -> tuple[Spaces, Path]:
    """Pictures and figures and their artefact's folder, found or made.

    Raises MissingError where the folder does not keep its pairs or this cache does not hold the fit's hidden states,
    and what loading the SAE raises.
    """

    def make(target: Path, _scratch: Path) -> dict[str, Any]:
        model, responses = SparseRM.load(folder.path), folder.responses_with_texts
        directions = random_directions(model, folder.find_frequencies(), config.random_draws)
        spaces = compare_spaces(responses, folder.states(), directions, config, progress)
        save_spaces(target, spaces)
        return {"n_points": len(spaces.rows), **spaces.made}

    path = folder.result(NAME, config, make).path
    return load_spaces(path), path


def random_directions(model: SparseRM, frequencies: LatentFrequencies | None, draws: int) -> dict[str, list[Float[np.ndarray, "k d_model"]]]:
    """Directions of each draw of the random controls: as many as selected, draw i with seed i, as in a fit."""
    k, width = model.parts.k, model.parts.d_model
    directions = {"random-isotropic": [isotropic_directions(k, width, seed) for seed in range(draws)]}
    if frequencies is None:
        return directions
    rows = [model.sae.directions(random_live_latents(frequencies, k, seed)) for seed in range(draws)]
    return {**directions, "random-rows": rows}
