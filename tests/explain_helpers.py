"""Shared by the tests of core.explain: random heads, responses made by hand, and a tiny fit with all of its files."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from model_helpers import make_parts

from core.reward.fit_responses import FitResponses, prompt_id, response_id
from core.reward.head import Head
from core.reward.parts import RewardParts
from core.runs.store import Store, cache_root
from core.types import Message, PreferencePair, PreferencePairs

if TYPE_CHECKING:
    from core.explain.explainer import Explainer


def whole_number_head(rng: np.random.Generator, k: int, hidden: int, *, reach: int = 2) -> Head:
    """Small whole numbers: dead units, repeated ones, kinks at the very ends of a path and units that a path leaves
    alone are then common.
    """

    def draw(*shape: int) -> np.ndarray:
        return rng.integers(-reach, reach + 1, size=shape).astype(np.float32)

    return Head(weight_1=draw(hidden, k), bias_1=draw(hidden), weight_2=draw(1, hidden), bias_2=draw(1))


def real_head(rng: np.random.Generator, k: int = 64, hidden: int = 512, scale: float = 30.0) -> Head:
    """A head of the usual size on raw projections of the usual size: first-layer weights are small because the inputs
    are large.
    """
    return Head(
        weight_1=(rng.normal(size=(hidden, k)) / scale / np.sqrt(k)).astype(np.float32),
        bias_1=rng.normal(size=hidden).astype(np.float32),
        weight_2=(rng.normal(size=(1, hidden)) / np.sqrt(hidden)).astype(np.float32),
        bias_2=rng.normal(size=1).astype(np.float32),
    )


def question(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


def hand_made(n_prompts: int = 6, answers: int = 4, seed: int = 0, **changes: Any) -> tuple[RewardParts, FitResponses]:
    """A random reward model of 5 latents, and known responses: `answers` to each prompt, in half as many pairs; of six
    prompts two are held out, one validates.
    """
    rng = np.random.default_rng(seed)
    rows = tuple({"latent_id": 10 + i, "detection_auroc": 0.9, "n_active": 50, "stability": 0.95} for i in range(5))
    parts = make_parts(k=5, seed=seed, latent_ids=np.arange(10, 15), selection=rows, **changes)
    n = n_prompts * answers
    prompts = [question(f"Question {row // answers}?") for row in range(n)]
    texts = [f"Answer {row % answers}." for row in range(n)]
    chosen = np.arange(0, n, 2)
    cycle = ("train", "train", "train", "validation", "test", "test")
    split = [cycle[row // answers % len(cycle)] for row in chosen]
    pairs = tuple(PreferencePair(pair_id=f"p{row}", prompt=prompts[row], chosen=texts[row], rejected=texts[row + 1]) for row in chosen)
    activations = np.maximum(rng.normal(size=(n, 5)) + 0.3, 0)
    known = FitResponses(
        projections=rng.normal(size=(n, 5)).astype(np.float32),
        activations=activations.astype(np.float32),
        n_tokens=rng.integers(3, 40, size=n),
        prompt_ids=np.array([prompt_id(prompt) for prompt in prompts]),
        response_ids=np.array([response_id(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]),
        chosen_rows=chosen,
        rejected_rows=chosen + 1,
        split=np.array([("train", "validation", "test").index(name) for name in split]),
        pairs=PreferencePairs(pairs=pairs, split=tuple(split)),
    )
    return parts, known


@lru_cache(maxsize=2)
def tiny_explainer(position: str = "response_end") -> Explainer:
    """The tiny preset fitted with fewer and shorter heads, loaded with all that the fit kept beside it."""
    from core.backbone.presets import preset
    from core.fit.pipeline import fit
    from core.reward.model import SparseRM

    config = preset("tiny")
    head, selection = replace(config.head, seeds=3, epochs=20), replace(config.selection, resamples=20)
    backbone = replace(config.backbone, position=position)
    outcome = fit(replace(config, backbone=backbone, head=head, selection=selection, random_draws=1, curve=(8,)), Store(cache_root() / "explain"))
    return SparseRM.load(outcome.artefact).explainer
