"""Planted latents: five that truly decide the preference are found and used, amid distractors, collinear directions and wrong labels."""

from __future__ import annotations

import numpy as np
import pytest
from reward_helpers import FakeSAE, World, make_hidden, make_pairs, split_names

from core.config import FitConfig, HeadConfig, SelectionConfig
from core.reward.fitting import fit_sparserm, largest_k
from core.reward.head_inputs import margins_of, random_tasks, train_tasks
from core.reward.selection import latent_frequencies
from core.types import no_progress

PLANTED, DISTRACTORS, CLUSTER, D_MODEL = 5, 500, 60, 384


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def dictionary(rng: np.random.Generator, places: np.ndarray) -> np.ndarray:
    """505 unit rows: at `places` the five that decide; 60 distractors within a narrow cone."""
    rows = unit(rng.normal(size=(PLANTED + DISTRACTORS, D_MODEL)))
    others = np.setdiff1d(np.arange(len(rows)), places)
    cone = rng.choice(others, CLUSTER, replace=False)
    rows[cone] = unit(np.sqrt(0.88) * unit(rng.normal(size=(1, D_MODEL))) + np.sqrt(0.12) * rows[cone])
    cosines = rows[cone] @ rows[cone].T
    assert cosines.min() > 0.8
    return rows.astype(np.float32)


def activity(rng: np.random.Generator, places: np.ndarray, n_prompts: int, per_prompt: int) -> np.ndarray:
    """f of every response: distractors partly shared within a prompt, the five drawn freely, no two responses of a pair alike in their number."""
    n, width = n_prompts * per_prompt, PLANTED + DISTRACTORS
    on = np.repeat(rng.random((n_prompts, width)) < 0.01, 2 * per_prompt, axis=0) | (rng.random((2 * n, width)) < 0.01)
    on[:, places] = rng.random((2 * n, PLANTED)) < 0.35
    tied = np.flatnonzero(on[0::2][:, places].sum(1) == on[1::2][:, places].sum(1))
    flips = places[rng.integers(PLANTED, size=len(tied))]
    on[2 * tied, flips] ^= True
    return on * rng.uniform(1.7, 2.3, size=on.shape)


def planted_world(seed: int, n_prompts: int = 800, per_prompt: int = 3) -> tuple[World, np.ndarray]:
    """The response with more of the five active is chosen; in 2 % of the training and validation pairs the other one is."""
    rng = np.random.default_rng(seed)
    places = np.sort(rng.choice(PLANTED + DISTRACTORS, PLANTED, replace=False))
    rows, f = dictionary(rng, places), activity(rng, places, n_prompts, per_prompt)
    states = (f @ rows + 0.05 * rng.normal(size=(len(f), D_MODEL)) + 3.0).astype(np.float32)
    pairs = make_pairs([per_prompt] * n_prompts, split_names(n_prompts, (0.4, 0.1, 0.5), rng))
    counts = (f[:, places] > 0).sum(1)
    wrong = (np.array(pairs.split) != "test") & (rng.random(len(pairs)) < 0.02)
    first_wins = (counts[0::2] > counts[1::2]) ^ wrong
    a, b = np.arange(0, len(f), 2), np.arange(1, len(f), 2)
    hidden = make_hidden(states, np.where(first_wins, a, b), np.where(first_wins, b, a))
    return World(hidden, pairs, FakeSAE(rows, threshold=1.0, offset=3.0)), places


@pytest.mark.parametrize("seed", [0, 1])
def test_planted_latents_rank_first_and_the_head_uses_them(seed: int) -> None:
    world, places = planted_world(seed)
    config = FitConfig(selection=SelectionConfig(k=16), head=HeadConfig(seeds=2), curve=(8, 16))
    frequencies, resamples = latent_frequencies(world.hidden, world.pairs, world.sae, config.selection, largest_k(config))
    fit = fit_sparserm(world.hidden, world.pairs, world.sae, frequencies, resamples, config)
    assert sorted(fit.selected.latent_ids[:PLANTED]) == list(places)
    assert (fit.selected.side[:PLANTED] == 1).all()
    assert (fit.selected.stability[:PLANTED] == 1).all()
    assert (frequencies.q_value[places] < 1e-3).all()
    test = world.pairs.rows_of("test")
    assert (fit.sparserm.margins[:, test] > 0).mean(axis=1).min() >= 0.97

    # The world is no walk-over: as many random directions do worse.
    tasks = random_tasks(world.hidden, world.sae, frequencies, len(fit.selected.latent_ids), draws=1)
    heads = train_tasks(tasks, world.pairs, config.head, ["margin"] * len(tasks), no_progress, "controls")
    for head, task in zip(heads, tasks, strict=True):
        assert (margins_of(head, task.inputs, test) > 0).mean() < 0.9
