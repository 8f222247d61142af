"""The null of METHOD.md section 3: labels swapped per prompt in all splits, 100 times, discover hardly anything and predict nothing."""

from __future__ import annotations

from functools import cache

import numpy as np
from reward_helpers import noise_world, swap_labels
from scipy.stats import binom

from core.config import HeadConfig, SelectionConfig
from core.reward.head_inputs import HeadTask, margins_of, sparse_task, train_tasks
from core.reward.selection import latent_frequencies, select, selected_directions
from core.types import LatentFrequencies, no_progress

SHUFFLES = 100
CONFIG = SelectionConfig(k=4, resamples=10)


@cache
def shuffled_fits() -> tuple[list[LatentFrequencies], list[HeadTask]]:
    world = noise_world()
    frequencies, tasks = [], []
    for seed in range(SHUFFLES):
        hidden = swap_labels(world.hidden, world.pairs, seed)
        found, resamples = latent_frequencies(hidden, world.pairs, world.sae, CONFIG, CONFIG.k)
        frequencies.append(found)
        tasks.append(sparse_task(hidden, selected_directions(found, resamples, world.sae, CONFIG.k)))
    return frequencies, tasks


def test_swapped_labels_discover_hardly_anything() -> None:
    frequencies, _ = shuffled_fits()
    assert min(int(np.isfinite(f.q_value).sum()) for f in frequencies) > 50, "the null must have latents to test"
    assert sum(bool((f.q_value < 0.05).any()) for f in frequencies) <= 10


def test_what_was_selected_by_luck_vanishes_on_held_out_pairs() -> None:
    frequencies, _ = shuffled_fits()
    on_train, held_out = [], []
    for found in frequencies:
        ids, side = select(found.separation, CONFIG.k)
        on_train.append((side * found.separation[ids]).mean())
        held_out.append((side * found.held_out[ids]).mean())
    assert np.mean(on_train) > 0.08
    assert abs(np.mean(held_out)) < 3 * np.std(held_out, ddof=1) / np.sqrt(SHUFFLES)


def test_prompts_are_the_unit_because_pairs_of_one_prompt_agree() -> None:
    world = noise_world()
    frequencies, _ = shuffled_fits()
    by_prompt = np.concatenate([f.p_value[np.isfinite(f.q_value)] for f in frequencies])
    train, by_pair = world.pairs.rows_of("train"), []
    for seed in range(20):
        hidden = swap_labels(world.hidden, world.pairs, seed)
        on = {name: states[train] @ world.sae.rows.T > 8.0 for name, states in (("w", hidden.chosen), ("l", hidden.rejected))}
        more, fewer = (on["w"] & ~on["l"]).sum(0), (on["l"] & ~on["w"]).sum(0)
        by_pair.append(np.minimum(1, 2 * binom.cdf(np.minimum(more, fewer), more + fewer, 0.5)))
    assert (by_prompt < 0.05).mean() < 0.05
    assert (np.concatenate(by_pair) < 0.05).mean() > 0.08


def test_heads_on_swapped_labels_are_at_chance() -> None:
    world = noise_world()
    _, tasks = shuffled_fits()
    assert {task.inputs.values.shape[1] for task in tasks} == {2 * CONFIG.k}
    heads = train_tasks(tasks, world.pairs, HeadConfig(), ["margin"] * SHUFFLES, no_progress, "heads")
    test = world.pairs.rows_of("test")
    shares = np.array([(margins_of(head, task.inputs, test) > 0).mean() for head, task in zip(heads, tasks, strict=True)])
    assert shares.std(ddof=1) > 0.01
    assert abs(shares.mean() - 0.5) <= 3 * shares.std(ddof=1) / np.sqrt(SHUFFLES)
    # The choice of the epoch flatters validation: that is why the test split is read once.
    assert np.mean([head.validation_accuracy for head in heads]) > 0.52
