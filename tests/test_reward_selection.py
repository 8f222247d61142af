"""Selection against plain loops, scipy and statsmodels; its rules by hand; its memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reward_helpers import FakeSAE, World, make_hidden, make_pairs, noise_world
from scipy.stats import binomtest, ttest_1samp
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from core.config import SelectionConfig
from core.errors import Cancelled, DataError
from core.reward import selection
from core.reward.hidden_states import LatentActivity
from core.reward.projection import (
    activations,
    detection_auroc,
    isotropic_directions,
    project,
    random_live_latents,
    response_activations,
    top_columns,
)
from core.reward.selection import Resamples, latent_frequencies, select, selected_directions, selection_summary, stability
from core.statistics.bootstrap import prompt_sums, resample_weights
from core.statistics.significance import benjamini_hochberg, sign_test
from core.types import LatentFrequencies, PreferencePairs

CONFIG = SelectionConfig(k=6, resamples=60, seed=3)
ROOT = Path(__file__).resolve().parents[1]


def uneven_world(seed: int = 0, sae: FakeSAE | None = None) -> World:
    """Prompts of one to four pairs in mixed order, responses shared between pairs and across splits' borders, some latents that separate."""
    rng = np.random.default_rng(seed)
    per_prompt = rng.integers(1, 5, size=60)
    pairs = make_pairs(per_prompt, rng.choice(["train", "validation", "test"], p=[0.5, 0.25, 0.25], size=60))
    n = len(pairs)
    order = rng.permutation(n)
    pairs = pairs.take(order)
    states = rng.normal(size=(2 * n + 5, 16)).astype(np.float32)
    chosen, rejected = rng.permutation(n), n + rng.permutation(n)
    chosen[:20] = chosen[0]
    states[chosen, 0] += 1.0
    rows = rng.normal(size=(40, 16)).astype(np.float32)
    rows[7] = 0.0
    rows[:3, 0] += 2.0
    return World(make_hidden(states, chosen, rejected), pairs, sae or FakeSAE(rows, threshold=3.0))


def brute_activity(world: World, row: int, latent: int) -> bool:
    pre = sum(float(z) * float(w) for z, w in zip(world.hidden.states[row], world.sae.rows[latent], strict=True))
    return pre - world.sae.threshold > 0


def brute_counts(world: World, split: str) -> dict[str, np.ndarray]:
    """Frequencies and votes of one split, by loops over pairs, latents and coordinates."""
    rows, d_sae = world.pairs.rows_of(split), world.sae.d_sae
    chosen, rejected, votes = np.zeros(d_sae), np.zeros(d_sae), np.zeros((2, d_sae), dtype=int)
    active: set[tuple[int, int]] = set()
    for latent in range(d_sae):
        by_prompt: Counter[str] = Counter()
        for i in rows:
            on_w, on_l = (brute_activity(world, int(side[i]), latent) for side in (world.hidden.chosen_rows, world.hidden.rejected_rows))
            active |= {(int(world.hidden.chosen_rows[i]), latent)} if on_w else set()
            active |= {(int(world.hidden.rejected_rows[i]), latent)} if on_l else set()
            chosen[latent] += on_w / len(rows)
            rejected[latent] += on_l / len(rows)
            by_prompt[world.pairs[int(i)].prompt_id] += int(on_w) - int(on_l)
        votes[0, latent] = sum(difference > 0 for difference in by_prompt.values())
        votes[1, latent] = sum(difference < 0 for difference in by_prompt.values())
    n_active = np.array([sum(latent == j for _, latent in active) for j in range(d_sae)])
    return {"chosen": chosen, "rejected": rejected, "votes": votes, "n_active": n_active}


def test_frequencies_votes_and_tests_agree_with_loops() -> None:
    world = uneven_world()
    found, _ = latent_frequencies(world.hidden, world.pairs, world.sae, CONFIG, keep=6)
    train, held_out = brute_counts(world, "train"), brute_counts(world, "validation")
    np.testing.assert_allclose(found.chosen, train["chosen"], atol=1e-9)
    np.testing.assert_allclose(found.rejected, train["rejected"], atol=1e-9)
    np.testing.assert_allclose(found.held_out, held_out["chosen"] - held_out["rejected"], atol=1e-9)
    np.testing.assert_array_equal([found.prompts_for, found.prompts_against], train["votes"])
    np.testing.assert_array_equal(found.n_active, train["n_active"])
    p_value = [binomtest(int(a), int(a + b)).pvalue if a + b else 1.0 for a, b in train["votes"].T]
    np.testing.assert_allclose(found.p_value, p_value, atol=1e-9)
    live = train["n_active"] >= CONFIG.min_active
    assert 0 < live.sum() < len(live)
    np.testing.assert_allclose(found.q_value[live], multipletests(np.array(p_value)[live], method="fdr_bh")[1], atol=1e-9)
    assert np.isnan(found.q_value[~live]).all()
    assert (found.n_pairs, found.n_pairs_held_out) == tuple(len(world.pairs.rows_of(split)) for split in ("train", "validation"))
    assert found.n_prompts == len({world.pairs[int(i)].prompt_id for i in world.pairs.rows_of("train")})


def test_bootstrap_intervals_and_stability_agree_with_loops() -> None:
    world = uneven_world()
    found, resamples = latent_frequencies(world.hidden, world.pairs, world.sae, CONFIG, keep=6)
    train = world.pairs.rows_of("train")
    on = np.array([[brute_activity(world, row, j) for j in range(world.sae.d_sae)] for row in range(len(world.hidden.states))]).astype(int)
    difference = on[world.hidden.chosen_rows[train]] - on[world.hidden.rejected_rows[train]]
    groups = world.pairs.take(train).prompt_groups()
    weights = np.concatenate(list(resample_weights(int(groups.max()) + 1, CONFIG.resamples, CONFIG.seed)))
    drawn = []
    for row in weights:
        copies = np.concatenate([np.repeat(np.flatnonzero(groups == g), int(times)) for g, times in enumerate(row)])
        drawn.append(difference[copies].mean(axis=0))
    asked = select(found.separation, 6)[0]
    expected = np.quantile(drawn, [0.025, 0.975], axis=0)[:, asked]
    np.testing.assert_allclose([found.low[asked], found.high[asked]], expected, atol=1e-6)
    others = np.setdiff1d(np.arange(world.sae.d_sae), asked)
    assert np.isnan(found.low[others]).all() and np.isnan(found.high[others]).all()

    selected = selected_directions(found, resamples, world.sae, 6)
    again = np.zeros(len(selected.latent_ids))
    for separation in drawn:
        ranked = sorted(range(world.sae.d_sae), key=lambda j: (-round(separation[j], 9), j))[:6]
        falling = sorted(range(world.sae.d_sae), key=lambda j: (round(separation[j], 9), j))[:6]
        for place, (latent, side) in enumerate(zip(selected.latent_ids, selected.side, strict=True)):
            again[place] += latent in (ranked if side > 0 else falling) and side * separation[latent] > 1e-9
    np.testing.assert_allclose(selected.stability, again / CONFIG.resamples, atol=1e-9)
    assert 0 < selected.stability.min() < selected.stability.max() <= 1


EFFECT = replace(CONFIG, selection="effect")


def activities(world: World) -> np.ndarray:
    return np.maximum(world.hidden.states @ world.sae.rows.T - world.sae.threshold, 0)


def test_effect_is_the_t_statistic_over_prompts() -> None:
    world = uneven_world()
    measured, resamples = latent_frequencies(world.hidden, world.pairs, world.sae, EFFECT, keep=6)
    f, train = activities(world), world.pairs.rows_of("train")
    groups = world.pairs.take(train).prompt_groups()
    difference = f[world.hidden.chosen_rows[train]] - f[world.hidden.rejected_rows[train]]
    by_prompt = np.array([difference[groups == g].mean(axis=0) for g in range(groups.max() + 1)])
    responses = np.unique(np.concatenate([world.hidden.chosen_rows[train], world.hidden.rejected_rows[train]]))
    common = (f[responses] > 0).sum(axis=0) >= selection.EFFECT_SHARE * len(responses)
    varies = by_prompt.std(axis=0) > 0
    expected = np.where(common & varies, ttest_1samp(by_prompt, 0.0).statistic, 0.0)
    assert measured.effect is not None and common.any()
    np.testing.assert_allclose(measured.effect, expected, atol=1e-4)
    assert (selected_directions(measured, resamples, world.sae, 6).latent_ids == select(expected, 6)[0]).all()
    weights = np.concatenate(list(resample_weights(len(by_prompt), EFFECT.resamples, EFFECT.seed)))
    drawn = np.repeat(by_prompt, weights[0].astype(int), axis=0)
    again = np.where(common & (drawn.std(axis=0) > 1e-9), ttest_1samp(drawn, 0.0).statistic, 0.0)
    assert resamples.chosen[0].tolist() == [*select(again, 6)[0][select(again, 6)[1] > 0].tolist(), *[-1] * 6][:6]
    plain, _ = latent_frequencies(world.hidden, world.pairs, world.sae, CONFIG, keep=6)
    for name in ("chosen", "rejected", "n_active", "p_value", "q_value", "held_out"):
        np.testing.assert_array_equal(getattr(measured, name), getattr(plain, name), err_msg=f"{name} does not depend on the rule")


def test_a_rare_latent_is_not_ranked_by_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    world = uneven_world()
    monkeypatch.setattr(selection, "EFFECT_SHARE", 0.2)
    measured, _ = latent_frequencies(world.hidden, world.pairs, world.sae, EFFECT, keep=6)
    train = world.pairs.rows_of("train")
    n = len(np.unique(np.concatenate([world.hidden.chosen_rows[train], world.hidden.rejected_rows[train]])))
    assert measured.effect is not None
    rare = measured.n_active < 0.2 * n
    assert rare.any() and (measured.effect[rare] == 0).all() and (measured.effect[~rare] != 0).any()


@pytest.mark.parametrize("config", [CONFIG, EFFECT])
def test_activity_that_was_kept_counts_as_if_it_were_encoded(config: SelectionConfig) -> None:
    """The same activations, once encoded from z and once given sparse, as where whole responses are read."""
    world = uneven_world()
    f = activities(world).astype(np.float32)
    latents, rows = np.nonzero(f.T)
    starts = np.concatenate([[0], np.cumsum((f > 0).sum(axis=0))])
    values = f.T[latents, rows]
    sparse = LatentActivity(latent_starts=starts, rows=rows.astype(np.int32), mean=values, peak=values, peak_token=np.zeros_like(rows))
    encoded = latent_frequencies(world.hidden, world.pairs, world.sae, config, keep=6)
    world.sae.seen.clear()
    given = latent_frequencies(replace(world.hidden, activity=sparse), world.pairs, world.sae, config, keep=6)
    assert not world.sae.seen, "nothing is encoded again"
    for mine, other in zip(encoded, given, strict=True):
        for name, value in vars(mine).items():
            if value is not None:
                np.testing.assert_allclose(getattr(other, name), value, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(response_activations(replace(world.hidden, activity=sparse), np.array([3, 0]), world.sae), f[:, [3, 0]], atol=1e-5)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = uneven_world()
    whole = latent_frequencies(world.hidden, world.pairs, world.sae, CONFIG, keep=6)
    monkeypatch.setattr(selection, "BLOCK", 8)
    monkeypatch.setattr(selection, "CHUNK_BYTES", 1)
    monkeypatch.setattr(selection, "COUNT_BYTES", 16 * len(world.pairs) * 3)
    monkeypatch.setattr(selection, "BATCH_BYTES", 4 * 16 * 10)
    parts = latent_frequencies(world.hidden, world.pairs, world.sae, CONFIG, keep=6)
    assert max(latents.stop - latents.start for _, latents in world.sae.seen[1:]) == 8
    for one, other in zip(whole, parts, strict=True):
        for name, value in vars(one).items():
            np.testing.assert_array_equal(value, getattr(other, name), err_msg=name)


def test_each_response_is_encoded_once_and_test_pairs_never() -> None:
    world = uneven_world()
    test = world.pairs.rows_of("test")
    used = np.setdiff1d(np.arange(len(world.pairs)), test)
    distinct = np.unique(np.concatenate([world.hidden.chosen_rows[used], world.hidden.rejected_rows[used]]))
    unread = np.setdiff1d(np.arange(len(world.hidden.states)), distinct)
    world.hidden.states[unread] = np.nan
    found, _ = latent_frequencies(world.hidden, world.pairs, world.sae, CONFIG, keep=6)
    assert sum(rows for rows, _ in world.sae.seen) == len(distinct) < 2 * len(used)
    assert np.isfinite(found.chosen).all()


def test_topk_activity_counts_against_all_latents() -> None:
    world = uneven_world()
    world.sae.k = 5
    found, _ = latent_frequencies(world.hidden, world.pairs, world.sae, CONFIG, keep=6)
    rows = world.hidden.chosen_rows[world.pairs.rows_of("train")]
    pre = world.hidden.states[rows] @ world.sae.rows.T
    active = (pre >= np.sort(pre, axis=1)[:, [-5]]) & (pre > 0)
    np.testing.assert_allclose(found.chosen, active.mean(axis=0), atol=1e-9)


def test_half_precision_memory_maps_are_encoded_as_float32(tmp_path: Path) -> None:
    world = uneven_world()
    half = world.hidden.states.astype(np.float16)
    np.save(tmp_path / "z.npy", half)
    mapped = replace(world.hidden, states=np.load(tmp_path / "z.npy", mmap_mode="r"))
    found, _ = latent_frequencies(mapped, world.pairs, world.sae, CONFIG, keep=6)
    wide = replace(world.hidden, states=half.astype(np.float32))
    np.testing.assert_array_equal(found.chosen, latent_frequencies(wide, world.pairs, world.sae, CONFIG, keep=6)[0].chosen)


# By hand: nabla of six latents.
SEPARATION = np.array([0.1, 0.3, -0.2, 0.3, 0.0, -0.2])


@pytest.mark.parametrize(
    ("k", "ids", "side"),
    [
        (1, [1, 2], [1, -1]),
        (2, [1, 3, 2, 5], [1, 1, -1, -1]),
        (3, [1, 3, 0, 2, 5], [1, 1, 1, -1, -1]),
        (6, [1, 3, 0, 2, 5], [1, 1, 1, -1, -1]),
    ],
)
def test_selection_by_hand(k: int, ids: list[int], side: list[int]) -> None:
    found, sides = select(SEPARATION, k)
    assert (found.tolist(), sides.tolist()) == (ids, side)


def test_equal_separations_are_equal_numbers() -> None:
    """3/7 - 2/7 and 2/7 - 1/7 differ in their last bit; as separations they tie."""
    n = 7
    counts = np.array([[3, 2], [2, 1], [1, 0], [7, 6]]).T / n
    nothing = {name: np.zeros(4, dtype=np.int64) for name in ("n_active", "prompts_for", "prompts_against")}
    floats = {name: np.zeros(4) for name in ("p_value", "q_value", "held_out", "low", "high")}
    found = LatentFrequencies(chosen=counts[0], rejected=counts[1], **nothing, **floats, n_pairs=n, n_prompts=n, n_pairs_held_out=0)
    assert len(set((counts[0] - counts[1]).tolist())) > 1
    assert select(found.separation, 4)[0].tolist() == [0, 1, 2, 3]


def test_fewer_than_k_is_said() -> None:
    world = uneven_world()
    found, resamples = latent_frequencies(world.hidden, world.pairs, world.sae, CONFIG, keep=40)
    selected = selected_directions(found, resamples, world.sae, 40)
    assert selected.k_chosen == (found.separation > 0).sum() and selected.k_rejected == (found.separation < 0).sum()
    assert 7 not in selected.latent_ids
    summary = selection_summary(found, selected, 40)
    assert summary.note == (
        f"fewer than K = 40 latents separate the sides: {selected.k_chosen} on the chosen side and {selected.k_rejected} on the rejected side"
    )
    assert selection_summary(found, selected_directions(found, resamples, world.sae, 2), 2).note == ""
    assert summary.to_json()["note"] == summary.note


def test_summary_figures() -> None:
    world = uneven_world()
    found, resamples = latent_frequencies(world.hidden, world.pairs, world.sae, CONFIG, keep=6)
    selected = selected_directions(found, resamples, world.sae, 3)
    summary = selection_summary(found, selected, 3)
    assert summary.separation == pytest.approx(np.abs(selected.separation).mean())
    assert summary.separation_held_out == pytest.approx((found.held_out[selected.latent_ids] * selected.side).mean())
    kept = [len(set(row[:3]) & set(selected.latent_ids[selected.side > 0].tolist())) for row in resamples.chosen.tolist()]
    kept += [len(set(row[:3]) & set(selected.latent_ids[selected.side < 0].tolist())) for row in resamples.rejected.tolist()]
    assert summary.overlap == pytest.approx(sum(kept) / (len(selected.latent_ids) * CONFIG.resamples))
    assert summary.n_live == (found.n_active >= 10).sum()
    assert summary.n_discoveries == (found.q_value < 0.05).sum()


def test_stability_by_hand() -> None:
    resamples = Resamples(chosen=np.array([[4, 2], [2, 9], [4, -1]]), rejected=np.array([[1, 5], [5, 4], [5, 1]]))
    ids, side = np.array([4, 2, 5]), np.array([1, 1, -1])
    np.testing.assert_allclose(stability(resamples, ids, side, 1), [2 / 3, 1 / 3, 2 / 3])
    np.testing.assert_allclose(stability(resamples, ids, side, 2), [2 / 3, 2 / 3, 1])
    with pytest.raises(ValueError, match="kept up to K = 2, and K = 3"):
        stability(resamples, ids, side, 3)


def test_nothing_to_select_says_what_to_do() -> None:
    world = noise_world(n_prompts=20)
    silent = FakeSAE(world.sae.rows, threshold=1e6)
    found, resamples = latent_frequencies(world.hidden, world.pairs, silent, CONFIG, keep=6)
    with pytest.raises(DataError, match="nothing to select") as error:
        selected_directions(found, resamples, silent, 6)
    assert "0 latents ever active" in str(error.value) and "another layer" in str(error.value)


def test_training_pairs_are_required_validation_pairs_are_not() -> None:
    world = noise_world(n_prompts=20)
    everything = PreferencePairs(pairs=world.pairs.pairs, split=("test",) * len(world.pairs))
    with pytest.raises(DataError, match="no training pairs"):
        latent_frequencies(world.hidden, everything, world.sae, CONFIG, keep=6)
    trained = PreferencePairs(pairs=world.pairs.pairs, split=("train",) * len(world.pairs))
    found, resamples = latent_frequencies(world.hidden, trained, world.sae, CONFIG, keep=6)
    assert np.isnan(found.held_out).all() and found.n_pairs_held_out == 0
    assert selection_summary(found, selected_directions(found, resamples, world.sae, 6), 6).separation_held_out is None


def test_progress_reports_and_can_cancel() -> None:
    world, seen = noise_world(n_prompts=20), []

    def watch(step: str, done: float, total: float, **figures: object) -> None:
        seen.append((step, done, total))
        if len(seen) == 2:
            raise Cancelled

    latent_frequencies(world.hidden, world.pairs, world.sae, CONFIG, 6, lambda *a, **b: seen.append(a))
    assert seen[-1] == ("selection", 200, 200)
    seen[1:] = []
    with pytest.raises(Cancelled):
        latent_frequencies(world.hidden, world.pairs, world.sae, CONFIG, 6, watch)


def test_sign_test_equals_binomtest_and_exact_mcnemar() -> None:
    votes = np.array([(a, b) for a in range(12) for b in range(12)] + [(300, 250), (1000, 0)])
    p_value = sign_test(votes[:, 0], votes[:, 1])
    for (a, b), p in zip(votes.tolist(), p_value, strict=True):
        assert p == pytest.approx(binomtest(a, a + b).pvalue if a + b else 1.0, abs=1e-12)
        assert p == pytest.approx(mcnemar([[5, a], [b, 7]], exact=True).pvalue if a + b else 1.0, abs=1e-12)


def test_benjamini_hochberg_is_statsmodels() -> None:
    rng = np.random.default_rng(0)
    p_value, live = rng.beta(0.3, 1, size=500), rng.random(500) < 0.7
    q_value = benjamini_hochberg(p_value, live)
    np.testing.assert_allclose(q_value[live], multipletests(p_value[live], method="fdr_bh")[1], atol=1e-12)
    assert np.isnan(q_value[~live]).all()
    assert np.isnan(benjamini_hochberg(p_value, np.zeros(500, dtype=bool))).all()


def test_prompt_sums_and_resampling(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = prompt_sums(np.array([[1], [2], [-4], [100]], dtype=np.int8), np.array([1, 0, 1, 2]))
    assert sums.dtype == np.int32 and sums.tolist() == [[2], [-3], [100]]
    weights = np.concatenate(list(resample_weights(9, 50, seed=1)))
    assert weights.shape == (50, 9) and (weights.sum(axis=1) == 9).all() and weights.std() > 0.5
    monkeypatch.setattr("core.statistics.bootstrap.REMEMBERED", 0, raising=False)  # or the answer above is only given again
    monkeypatch.setattr("core.statistics.bootstrap.WEIGHT_BYTES", 8 * 9 * 3)
    blocks = list(resample_weights(9, 50, seed=1))
    assert len(blocks) == 17
    np.testing.assert_array_equal(np.concatenate(blocks), weights)


def test_projections_and_activations_agree_with_loops() -> None:
    world = uneven_world()
    ids = np.array([11, 0, 39])
    v, f = project(world.hidden.states, world.sae.rows[ids]), activations(world.hidden.states, ids, world.sae)
    for row in range(0, len(v), 7):
        for column, latent in enumerate(ids):
            pre = sum(float(z) * float(w) for z, w in zip(world.hidden.states[row], world.sae.rows[latent], strict=True))
            assert v[row, column] == pytest.approx(pre, abs=1e-5)
            assert f[row, column] == pytest.approx(max(0.0, pre - world.sae.threshold), abs=1e-5)
    assert v.dtype == f.dtype == np.float32


def test_activations_of_topk_know_the_other_latents() -> None:
    world = uneven_world()
    world.sae.k = 4
    all_of_them = world.sae.encode_chunk(
        torch.from_numpy(world.hidden.states), slice(0, 40), world.sae.kth_value(torch.from_numpy(world.hidden.states))
    ).numpy()
    ids = np.array([3, 1, 20])
    np.testing.assert_allclose(activations(world.hidden.states, ids, world.sae), all_of_them[:, ids], atol=1e-5)
    assert ((all_of_them > 0).sum(axis=1) <= 4).all()


def test_random_directions_are_prefixes_of_one_draw_a_seed() -> None:
    rows = isotropic_directions(64, 16, seed=2)
    np.testing.assert_array_equal(isotropic_directions(10, 16, seed=2), rows[:10])
    assert not np.allclose(isotropic_directions(10, 16, seed=3), rows[:10])
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    found, _ = latent_frequencies(*_parts(uneven_world()), CONFIG, keep=6)
    live = np.flatnonzero(found.n_active >= CONFIG.min_active)
    drawn = random_live_latents(found, 8, seed=2)
    assert len(set(drawn.tolist())) == 8 and set(drawn.tolist()) <= set(live.tolist())
    np.testing.assert_array_equal(random_live_latents(found, 3, seed=2), drawn[:3])
    assert sorted(random_live_latents(found, 1000, seed=1)) == live.tolist()
    dead = replace(found, q_value=np.full_like(found.q_value, np.nan))
    assert sorted(random_live_latents(dead, 1000, seed=1)) == np.flatnonzero(found.n_active).tolist()


def _parts(world: World) -> tuple[object, PreferencePairs, FakeSAE]:
    return world.hidden, world.pairs, world.sae


def test_smaller_k_is_a_part_of_larger_k() -> None:
    world = uneven_world()
    found, resamples = latent_frequencies(world.hidden, world.pairs, world.sae, CONFIG, keep=20)
    large = selected_directions(found, resamples, world.sae, 20)
    for k in (1, 5, 20):
        small = selected_directions(found, resamples, world.sae, k)
        np.testing.assert_array_equal(large.latent_ids[top_columns(large, k)], small.latent_ids)
        np.testing.assert_array_equal(large.directions[top_columns(large, k)], small.directions)


def test_detection_auroc_is_sklearns() -> None:
    rng = np.random.default_rng(0)
    active = rng.random((80, 4)) < [0.5, 0.2, 0.05, 1.1]
    projections = np.round(rng.normal(size=(80, 4)) + active, 1).astype(np.float32)
    assert 0 < active[:, 2].sum() < 10 and active[:, 3].all()
    area = detection_auroc(projections, active)
    for column in (0, 1):
        assert area[column] == pytest.approx(roc_auc_score(active[:, column], projections[:, column]))
    assert np.isnan(area[2:]).all(), "too rare to say; never off"


SCALED = """
import resource, sys, numpy as np, torch
torch.set_num_threads(1)
from pathlib import Path
sys.path.insert(0, "tests")
from reward_helpers import FakeSAE, make_hidden, make_pairs
from core.config import SelectionConfig
from core.reward.selection import latent_frequencies
n, d_model, d_sae = int(sys.argv[1]), 8, 2048
rng = np.random.default_rng(0)
states = np.lib.format.open_memmap(sys.argv[2], mode="w+", dtype=np.float16, shape=(2 * n, d_model))
for start in range(0, 2 * n, 4096):
    states[start : start + 4096] = rng.normal(size=states[start : start + 4096].shape)
pairs = make_pairs([2] * (n // 2), ["train" if g % 5 else "validation" for g in range(n // 2)])
hidden = make_hidden(np.load(sys.argv[2], mmap_mode="r"), np.arange(n), np.arange(n, 2 * n))
sae = FakeSAE(rng.normal(size=(d_sae, d_model)).astype(np.float32), threshold=6.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
latent_frequencies(hidden, pairs, sae, SelectionConfig(resamples=50), keep=256)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def _extra_megabytes(n: int, folder: Path) -> float:
    done = subprocess.run([sys.executable, "-c", SCALED, str(n), str(folder / "z.npy")], capture_output=True, text=True, cwd=ROOT, check=True)
    assert resource.RUSAGE_SELF == 0
    return int(done.stdout) / 1024


@pytest.mark.slow
def test_memory_is_bounded_by_the_chunk_size(tmp_path: Path) -> None:
    """40,000 pairs x 2,048 latents would be 1.3 GB counted at once; here the parts named in core.reward.selection come to about 500 MB."""
    assert _extra_megabytes(40_000, tmp_path) < 700
