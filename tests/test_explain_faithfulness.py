"""Curves, agreement, residual and the length audit against plain loops; a faithful order beats chance, a shuffled one does not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from explain_helpers import hand_made, real_head
from scipy.stats import rankdata, spearmanr

from core.explain.attribution import contributions
from core.explain.cues import centred, correlations, length_cue
from core.explain.curves import FEWEST, STEPS
from core.explain.explanation_builder import ExplanationBuilder
from core.explain.faithfulness import DRAWS, faithfulness
from core.explain.features import ResponseFeatures
from core.reward.fit_responses import FitResponses
from core.reward.head import Head
from core.reward.parts import RewardParts


def world(seed: int = 0, n_prompts: int = 30, share_active: float = 0.6) -> tuple[RewardParts, FitResponses]:
    """Twelve latents on sixteen dimensions, a real-sized head, and responses in which each latent is active now and then."""
    rng = np.random.default_rng(seed)
    parts, known = hand_made(n_prompts=n_prompts, seed=seed)
    k, n = 12, len(known)
    heads = tuple(real_head(rng, k=k, hidden=40, scale=1.0) for _ in range(3))
    f = np.where(rng.random((n, k)) < share_active, rng.exponential(1.0, (n, k)), 0.0).astype(np.float32)
    rows = tuple({"latent_id": i, "stability": 0.9} for i in range(k))
    directions = (rng.normal(size=(k, 16)) / 4).astype(np.float32)
    fields = {"head": heads[1], "heads": heads, "directions": directions, "latent_ids": np.arange(k), "selection": rows}
    fields |= {"projection_mean": np.zeros(k, dtype=np.float32), "projection_std": np.ones(k, dtype=np.float32)}
    # What is active is on top of what the other latents and dimensions put there.
    v = (f @ (directions @ directions.T) + 0.3 * rng.normal(size=(n, k))).astype(np.float32)
    return replace(parts, **fields), replace(known, projections=v, activations=f)


def margin_without(parts: RewardParts, known: FitResponses, pair: int, removed: set[int]) -> float:
    """By loops: every projection loses f_j <d_i, d_j> of each removed latent j, in both responses."""
    assert parts.directions is not None
    rewards = []
    for row in (known.chosen_rows[pair], known.rejected_rows[pair]):
        v = known.projections[row].astype(np.float64)
        for j in removed:
            for i in range(len(v)):
                v[i] -= float(known.activations[row, j]) * float(parts.directions[i].astype(np.float64) @ parts.directions[j].astype(np.float64))
        rewards.append(float(parts.head.reward(v[None])[0]))
    return rewards[0] - rewards[1]


def active(known: FitResponses, pair: int) -> list[int]:
    rows = known.activations[[known.chosen_rows[pair], known.rejected_rows[pair]]]
    return [int(j) for j in np.flatnonzero((rows > 0).any(axis=0))]


def share_of(parts: RewardParts, known: FitResponses, pair: int) -> np.ndarray:
    ends = (known.projections[[rows[pair]]] for rows in (known.rejected_rows, known.chosen_rows))
    return contributions(parts.head, *ends)[0]


def ordered_way(parts: RewardParts, known: FitResponses, pair: int, insertion: bool) -> np.ndarray:
    latents = active(known, pair)
    order = sorted(latents, key=lambda j: -abs(share_of(parts, known, pair)[j]))
    sets = [set(order[:m]) for m in range(len(order) + 1)]
    margins = [margin_without(parts, known, pair, set(order) - one if insertion else one) for one in sets]
    way = np.abs(np.array(margins) - margins[0])
    return np.interp(np.arange(STEPS + 1) / STEPS, np.arange(len(way)) / (len(way) - 1), way)


def test_curves_against_loops() -> None:
    parts, known = world()
    found = faithfulness(parts, known)
    pairs = [int(i) for i in known.held_out_pairs if len(active(known, int(i))) >= FEWEST]
    assert found.n_pairs == len(pairs) and found.n_prompts == 10 and found.n_left_out == len(known.held_out_pairs) - len(pairs)
    for curve, insertion in ((found.deletion, False), (found.insertion, True)):
        assert curve is not None
        way = sum(ordered_way(parts, known, pair, insertion) for pair in pairs)
        np.testing.assert_allclose([point.mean for point in curve.ordered], way / way[-1], atol=1e-9)
        assert curve.ordered[0].mean == 0 == curve.random[0].mean
        assert curve.ordered[-1].mean == pytest.approx(1) == curve.random[-1].mean
        above = np.mean([a.mean - b.mean for a, b in zip(curve.ordered, curve.random, strict=True)])
        assert curve.area.mean == pytest.approx(above) and curve.area.low <= above <= curve.area.high
        assert all(point.low <= point.mean <= point.high for point in (*curve.ordered, *curve.random))


def test_contributions_beat_chance_and_agree_with_removals() -> None:
    parts, known = world(n_prompts=60)
    found = faithfulness(parts, known)
    assert found.deletion is not None and found.insertion is not None and found.agreement is not None
    assert found.deletion.area.low > 0.02 and found.insertion.area.low > 0.02 and found.agreement.low > 0.2
    assert found.residual < 1e-9


def test_an_order_that_knows_nothing_is_no_better_than_chance() -> None:
    """The head reads only what is not active: contributions then say nothing of removals along orthogonal directions."""
    parts, known = world(n_prompts=60)
    rng = np.random.default_rng(5)
    orthogonal = np.linalg.qr(rng.normal(size=(16, 16)))[0][:12].astype(np.float32)
    noise = rng.normal(size=known.projections.shape).astype(np.float32) * 50
    found = faithfulness(replace(parts, directions=orthogonal), replace(known, projections=noise, activations=known.activations))
    assert found.deletion is not None
    informed = faithfulness(parts, known).deletion
    assert informed is not None and abs(found.deletion.area.mean) < informed.area.mean / 2


def test_agreement_against_scipy() -> None:
    parts, known = world(seed=2)
    values = []
    for pair in known.held_out_pairs.tolist():
        latents = active(known, pair)
        if len(latents) >= FEWEST:
            lost = [margin_without(parts, known, pair, set()) - margin_without(parts, known, pair, {j}) for j in latents]
            values.append(spearmanr(share_of(parts, known, pair)[latents], lost).statistic)
    found = faithfulness(parts, known).agreement
    assert found is not None and found.mean == pytest.approx(np.mean(values))


def test_pairs_with_too_little_active_are_left_out_and_counted() -> None:
    parts, known = world(share_active=0.02)
    found = faithfulness(parts, known)
    enough = [pair for pair in known.held_out_pairs.tolist() if len(active(known, pair)) >= FEWEST]
    assert found.n_left_out == len(known.held_out_pairs) - len(enough) > 0
    nothing = faithfulness(parts, replace(known, activations=np.zeros_like(known.activations)))
    assert nothing.deletion is None and nothing.insertion is None and nothing.agreement is None and nothing.n_pairs == 0
    said = json.loads(json.dumps(nothing.to_json(), allow_nan=False))
    assert said["deletion"] is None and said["cues"]["n"] == len(known.held_out)


def test_json_and_progress() -> None:
    parts, known = world()
    steps: list[tuple[str, float, float]] = []
    found = faithfulness(parts, known, lambda step, done, total, **_: steps.append((step, done, total)))
    said = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert said["share"][0] == 0 and said["share"][-1] == 1 and len(said["share"]) == len(said["deletion"]["ordered"]) == STEPS + 1
    assert set(said["deletion"]["area"]) == {"mean", "low", "high"} and DRAWS > 1
    assert steps[0] == ("faithfulness", 0, found.n_pairs) and steps[-1] == ("faithfulness", found.n_pairs, found.n_pairs)
    assert found == faithfulness(parts, known)


# --- length --------------------------------------------------------------------------------------------------------


def test_correlations_against_scipy_with_intervals_over_prompts() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(80), 4)
    length = rng.integers(3, 30, 320).astype(np.float64)
    values = np.column_stack([length + rng.normal(size=320) * 8, rng.normal(size=320), np.full(320, 7.0)])
    found = correlations(values, length, groups)
    for column in (0, 1):
        assert found[column].value == pytest.approx(spearmanr(values[:, column], length).statistic)
        assert found[column].low < found[column].value < found[column].high
    assert found[0].low > 0.3 and found[1].low < 0 < found[1].high
    assert (found[2].value, found[2].low, found[2].high) == (0.0, 0.0, 0.0)


def test_intervals_count_prompts_not_responses() -> None:
    """Ten copies of each response to a prompt say no more than one."""
    rng = np.random.default_rng(1)
    length, value, groups = rng.random(60), rng.random(60), np.arange(60)
    once = correlations(value[:, None], length, groups)[0]
    tenfold = correlations(np.tile(value, 10)[:, None], np.tile(length, 10), np.tile(groups, 10))[0]
    assert tenfold.high - tenfold.low == pytest.approx(once.high - once.low, rel=0.02)


def test_the_audit_of_a_model() -> None:
    parts, known = hand_made(n_prompts=24)
    found = length_cue(parts, known)
    assert found is not None and found.n == len(known.held_out) and found.latent_ids == (10, 11, 12, 13, 14)
    rewards, length = parts.head.reward(known.projections[known.held_out]), known.n_tokens[known.held_out]
    assert found.reward.value == pytest.approx(spearmanr(rewards, length).statistic)
    assert found.projections[2].value == pytest.approx(spearmanr(known.projections[known.held_out, 2], length).statistic)
    groups = known.groups[known.held_out]
    within = [values - np.array([values[groups == g].mean() for g in groups]) for values in (rewards, length.astype(float))]
    assert found.reward_within.value == pytest.approx(spearmanr(*within).statistic)
    np.testing.assert_allclose(centred(rewards[:, None], groups)[:, 0], within[0])
    assert length_cue(parts, replace(known, split=np.full_like(known.split, 3))) is None


def test_a_reward_that_only_counts_tokens_is_seen() -> None:
    parts, known = hand_made(n_prompts=24)
    counting = Head(
        weight_1=np.eye(1, 5, dtype=np.float32),
        bias_1=np.zeros(1, dtype=np.float32),
        weight_2=np.ones((1, 1), dtype=np.float32),
        bias_2=np.zeros(1, dtype=np.float32),
    )
    v = known.projections.copy()
    v[:, 0] = known.n_tokens
    found = length_cue(replace(parts, head=counting), replace(known, projections=v))
    assert found is not None and found.reward.value == pytest.approx(1.0) and found.reward_within.value == pytest.approx(1.0)
    assert rankdata([1, 1]).tolist() == [1.5, 1.5]


# --- the curves of one explanation ---------------------------------------------------------------------------------


def test_an_explanations_own_curves_against_loops() -> None:
    parts, known = world(seed=3)
    builder = ExplanationBuilder(parts, known)
    pair = next(int(i) for i in known.held_out_pairs if len(active(known, int(i))) >= 6)
    seen = [
        ResponseFeatures(item=(known.texts(row)), v=known.projections[row].astype(np.float64), f=known.activations[row].astype(np.float64))  # type: ignore[arg-type]
        for row in (int(known.chosen_rows[pair]), int(known.rejected_rows[pair]))
    ]
    found = builder.pair(*seen, {}).curves
    assert found is not None and found.n_latents == len(active(known, pair))
    np.testing.assert_allclose(found.deletion[0], ordered_way(parts, known, pair, False), atol=1e-9)
    np.testing.assert_allclose(found.insertion[0], ordered_way(parts, known, pair, True), atol=1e-9)
    assert found.deletion[1][-1] == pytest.approx(found.deletion[0][-1]) and found.deletion[1][0] == 0
    said = found.to_json()
    assert said["share"][-1] == 1 and len(said["insertion"]["random"]) == STEPS + 1
    alone = builder.response(seen[0], {}).curves
    assert alone is not None and alone.n_latents == int((known.activations[known.chosen_rows[pair]] > 0).sum())
    without = parts.head.reward(seen[0].v[None] - seen[0].f @ builder.overlaps)[0]  # type: ignore[operator]
    assert alone.deletion[0][-1] == pytest.approx(abs(parts.head.reward(seen[0].v[None])[0] - without))
    assert builder.response(replace(seen[0], f=np.zeros(12)), {}).curves is None
    assert builder.response(replace(seen[0], f=None), {}).curves is None
