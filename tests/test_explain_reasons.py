"""Parts, interventions, neighbours, percentile, stability: each against loops or a computation by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from explain_helpers import hand_made, question, tiny_explainer
from scipy.stats import spearmanr

from core.explain.attribution import contributions
from core.explain.explanation_builder import ExplanationBuilder
from core.explain.features import ResponseFeatures
from core.explain.neighbours import neighbours, percentile
from core.explain.removal import removal_effects, removed_projections
from core.explain.stability import prompt_share, spread, stability
from core.latents.labels import Label
from core.reward.fit_responses import response_id
from core.reward.head import Head

RNG = np.random.default_rng(11)


def seen(prompt: str, response: str, seed: int = 0, f: bool = True) -> ResponseFeatures:
    rng = np.random.default_rng(seed)
    return ResponseFeatures(item=(question(prompt), response), v=rng.normal(size=5), f=np.maximum(rng.normal(size=5), 0) if f else None)


def part(builder: ExplanationBuilder, head: Head, v: np.ndarray) -> np.ndarray:
    return contributions(head, builder.mean[None], v[None].astype(np.float64))[0]


def test_the_prompt_part_is_the_mean_over_all_known_responses() -> None:
    parts, known = hand_made()
    builder = ExplanationBuilder(parts, known)
    this = seen("Question 2?", "A new answer.")
    found = builder.response(this, {})
    rows = [row for row in range(len(known)) if known.texts(row)[0] == question("Question 2?")]  # type: ignore[index]
    each = [part(builder, parts.head, v) for v in (this.v, *known.projections[rows])]
    assert len(rows) == 4 and found.n_known == 5
    np.testing.assert_allclose(found.prompt_part, np.mean(each, axis=0), atol=1e-12)
    np.testing.assert_allclose(found.response_part, each[0] - np.mean(each, axis=0), atol=1e-12)
    whole = found.attribution.reward - found.attribution.baseline_reward
    assert found.prompt_part.sum() + found.response_part.sum() == pytest.approx(whole, abs=1e-9)
    assert found.attribution.baseline_reward == pytest.approx(parts.head.reward(parts.projection_mean[None])[0])
    assert abs(found.attribution.residual) < 1e-9


def test_a_known_response_counts_once_and_by_what_is_at_hand() -> None:
    parts, known = hand_made()
    builder = ExplanationBuilder(parts, known)
    this = seen("Question 2?", "Answer 1.")
    found = builder.response(this, {})
    assert found.n_known == 4
    others = [row for row in range(len(known)) if known.texts(row)[0] == question("Question 2?") and known.texts(row)[1] != "Answer 1."]  # type: ignore[index]
    expected = np.mean([part(builder, parts.head, v) for v in (this.v, *known.projections[others])], axis=0)
    np.testing.assert_allclose(found.prompt_part, expected, atol=1e-12)


def test_a_prompt_never_seen_leaves_no_response_part() -> None:
    parts, known = hand_made()
    for kept, n_known in ((known, 1), (None, 0)):
        found = ExplanationBuilder(parts, kept).response(seen("Something else?", "Yes."), {})
        assert found.n_known == n_known
        assert not found.response_part.any()
        np.testing.assert_array_equal(found.prompt_part, found.attribution.contribution)
        assert "cannot be told apart" in str(found.why)
    assert found.neighbours == () and found.figures.prompt_share is None and found.figures.stability.verdict == "unknown"


def test_the_two_responses_of_a_pair_are_known_to_one_another() -> None:
    parts, known = hand_made()
    builder = ExplanationBuilder(parts, known)
    chosen, rejected = seen("Something else?", "Yes.", 1), seen("Something else?", "No.", 2)
    found = builder.pair(chosen, rejected, {})
    assert found.chosen.n_known == found.rejected.n_known == 2
    np.testing.assert_allclose(found.chosen.response_part, -found.rejected.response_part, atol=1e-12)
    np.testing.assert_allclose(found.chosen.prompt_part, found.rejected.prompt_part, atol=1e-12)
    np.testing.assert_allclose(found.margin.contribution, contributions(parts.head, rejected.v[None], chosen.v[None])[0])
    margin = found.chosen.reward - found.rejected.reward
    assert found.margin.contribution.sum() == pytest.approx(margin, abs=1e-9)
    assert found.probability == pytest.approx(1 / (1 + np.exp(-1.25 * margin)))
    for number, head in enumerate(parts.heads):
        np.testing.assert_allclose(found.margin.by_head[number], contributions(head, rejected.v[None], chosen.v[None])[0])


def test_an_explanation_is_json() -> None:
    parts, known = hand_made()
    builder = ExplanationBuilder(parts, known, {"residual": 0.0})
    found = builder.response(seen("Question 2?", "A new answer.", f=False), {10: Label(text="x", source="person")})
    said = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert said["latents"][0]["removed"] is None and said["latents"][0]["removal"] == "the SAE is not at hand"
    assert said["prompt_part"] == pytest.approx(found.prompt_part.sum()) and said["model"]["faithfulness"] == {"residual": 0.0}
    pair = builder.pair(seen("Question 2?", "Yes.", 1), seen("Question 2?", "No.", 2), {}).to_json()
    json.dumps(pair, allow_nan=False)
    assert pair["margin"] == pytest.approx(pair["chosen"]["reward"] - pair["rejected"]["reward"])
    assert any(latent.get("removal") == "inactive: nothing to remove" for latent in pair["latents"])
    assert "model" in pair and "model" not in pair["chosen"]


# --- removal from the residual stream ------------------------------------------------------------------------------


def test_removal_equals_a_forward_written_by_hand() -> None:
    """z' = z - (decode(f_j e_j) - decode(0)) by the SAE's own decode, then projections and head by loops."""
    explainer = tiny_explainer()
    parts, sae = explainer.parts, explainer.sae
    assert sae is not None and parts.latent_ids is not None and parts.directions is not None
    prompt, response = "How do I boil an egg?", "Get the right tools first, the rest is practice, friend"
    found = explainer.explain(prompt, response)
    z = explainer.model.reader([(question(prompt), response)])[0]
    f = sae.encode(torch.from_numpy(z))
    active = 0
    for column, latent in enumerate(parts.latent_ids.tolist()):
        if f[0, latent] == 0:
            assert found.removed is not None and np.isnan(found.removed[column])
            continue
        active += 1
        alone = torch.zeros_like(f)
        alone[0, latent] = f[0, latent]
        changed = z[0] - (sae.decode(alone) - sae.decode(torch.zeros_like(f)))[0].numpy()
        rewards = []
        for state in (z[0].astype(np.float64), changed.astype(np.float64)):
            v = [sum(float(a) * float(b) for a, b in zip(row, state, strict=True)) for row in parts.directions]
            total = float(parts.head.bias_2[0])
            for unit in range(len(parts.head.bias_1)):
                pre = float(parts.head.bias_1[unit]) + float(np.dot(parts.head.weight_1[unit].astype(np.float64), v))
                total += float(parts.head.weight_2[0, unit]) * max(pre, 0.0)
            rewards.append(total)
        assert found.removed is not None
        assert found.removed[column] == pytest.approx(rewards[1] - rewards[0], abs=2e-5)
    assert active >= 2


def test_several_latents_removed_at_once() -> None:
    rng = np.random.default_rng(4)
    directions, z = rng.normal(size=(5, 9)), rng.normal(size=9)
    f = np.array([0.5, 0.0, 2.0, 1.0, 3.0])
    removed = np.array([True, True, True, False, False])
    expected = directions @ (z - sum(f[j] * directions[j] for j in range(3)))
    found = removed_projections((directions @ z)[None], f[None], directions @ directions.T, removed[None])
    np.testing.assert_allclose(found[0], expected, atol=1e-12)


def test_an_inactive_latent_has_nothing_to_remove() -> None:
    parts, _ = hand_made()
    v, f = RNG.normal(size=(2, 5)), np.array([[0.0, 1.0, 0.0, 2.0, 0.0], [0.0] * 5])
    found = removal_effects(parts.head, v, f, np.eye(5))
    assert np.isnan(found).tolist() == [[True, False, True, False, True], [True] * 5]
    changed = v[0].copy()
    changed[3] -= 2
    assert found[0, 3] == pytest.approx(parts.head.reward(changed[None])[0] - parts.head.reward(v[:1])[0])


# --- neighbours and percentile -------------------------------------------------------------------------------------


def test_neighbours_are_the_nearest_training_responses() -> None:
    parts, known = hand_made(n_prompts=12)
    v = RNG.normal(size=5)
    found = neighbours(known, parts, v, n=4)
    distance = {row: float(np.sqrt((((known.projections[row] - v) / parts.projection_std) ** 2).sum())) for row in known.train.tolist()}
    nearest = sorted(distance, key=lambda row: distance[row])[:4]
    assert [one.row for one in found] == nearest
    for one in found:
        assert one.distance == pytest.approx(distance[one.row]) and one.reward == pytest.approx(parts.head.reward(known.projections[[one.row]])[0])
        assert (one.prompt, one.response) == known.texts(one.row) and one.sides == known.sides(one.row)
    own = int(known.response_ids[nearest[0]])
    assert [one.row for one in neighbours(known, parts, v, response_id=own, n=3)] == nearest[1:]
    assert neighbours(replace(known, pairs=None), parts, v)[0].response is None
    assert neighbours(replace(known, split=np.full_like(known.split, 2)), parts, v) == ()


@pytest.mark.parametrize(("reward", "expected"), [(-5, 0), (0.0, 0.0), (0.5, 50.0), (0.505, 50.5), (1.0, 100.0), (7, 100)])
def test_percentile_between_the_quantiles(reward: float, expected: float) -> None:
    assert percentile(np.linspace(0, 1, 101), reward) == pytest.approx(expected)


def test_percentile_of_tied_rewards_is_in_the_middle() -> None:
    quantiles = np.concatenate([np.linspace(-1, 0, 41)[:-1], np.zeros(21), np.linspace(0, 1, 41)[1:]])
    assert percentile(quantiles, 0.0) == 50.0


# --- stability and prompt share ------------------------------------------------------------------------------------


def test_stability_is_the_mean_over_held_out_responses() -> None:
    parts, known = hand_made()
    found = stability(parts, known)
    each = []
    for row in known.held_out.tolist():
        by_head = [contributions(head, parts.projection_mean[None], known.projections[[row]])[0] for head in parts.heads]
        each.append(np.mean([spearmanr(a, b).statistic for a, b in combinations(by_head, 2)]))
    assert found.n == len(known.held_out) and found.rank_correlation == pytest.approx(np.mean(each))
    assert found.overlap == pytest.approx(0.95) and found.verdict == "unstable"
    assert found.low is not None and found.high is not None and min(each) <= found.low <= np.mean(each) <= found.high <= max(each)


@pytest.mark.parametrize(
    ("overlap", "correlation", "verdict"),
    [(0.94, 0.85, "stable"), (0.8, 0.8, "stable"), (0.79, 0.9, "unstable"), (0.9, 0.79, "unstable"), (None, 0.7, "unstable"), (None, 0.9, "unknown")],
)
def test_the_verdict(overlap: float | None, correlation: float | None, verdict: str) -> None:
    parts, known = hand_made()
    found = replace(stability(parts, known), overlap=overlap, rank_correlation=correlation)
    assert found.verdict == verdict == found.to_json()["verdict"]


def test_equal_heads_agree_wholly() -> None:
    parts, known = hand_made()
    assert stability(replace(parts, heads=(parts.head,) * 3), known).rank_correlation == pytest.approx(1.0)
    assert stability(replace(parts, heads=(parts.head,), seeds=(0,)), known).rank_correlation is None


@pytest.mark.parametrize("between", [0.0, 1.0, 3.0])
def test_prompt_share_finds_the_true_share(between: float) -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(400), rng.integers(1, 6, 400))
    rewards = between * rng.normal(size=400)[groups] + rng.normal(size=len(groups)) + 7
    found = prompt_share(rewards, groups)
    assert found is not None and (found.n, found.n_prompts) == (len(groups), 400)
    true = between**2 / (between**2 + 1)
    assert abs(found.share - true) < 0.06 and found.low - 1e-9 <= found.share <= found.high and found.high - found.low < 0.2


def test_prompt_share_by_hand_and_where_nothing_can_be_said() -> None:
    """Two prompts of two: mean squares between and within are 16 and 1, so the components are 7.5 and 1."""
    rewards = np.array([2 - 0.5**0.5, 2 + 0.5**0.5, -2 - 0.5**0.5, -2 + 0.5**0.5])
    found = prompt_share(rewards, np.array([0, 0, 1, 1]))
    assert found is not None and found.share == pytest.approx(7.5 / 8.5)
    assert prompt_share(rewards, np.zeros(4, dtype=np.int64)) is None
    assert prompt_share(rewards, np.arange(4)) is None
    assert prompt_share(np.zeros(0), np.zeros(0, dtype=np.int64)) is None


def test_rows_are_spread_evenly() -> None:
    assert spread(np.arange(10), 10).tolist() == list(range(10))
    assert spread(np.arange(101), 3).tolist() == [0, 50, 100]
    assert response_id(question("a"), "b") != response_id(question("ab"), "")
