"""Cosine similarities of generated to training responses: by hand, against scipy and scikit-learn, on planted shifts, and the controls' draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_helpers import FakeReader, make_parts
from reward_helpers import FakeSAE, make_hidden, make_pairs
from scipy.spatial.distance import cosine as cosine_distance
from sklearn.metrics.pairwise import cosine_similarity

from core.config import SpacesConfig
from core.errors import Cancelled, StoreError
from core.explain.shift import (
    CENTRED,
    CENTROID,
    DENSE,
    ISOTROPIC,
    LIKE_FREQUENT,
    MATCHED,
    MEASURES,
    NEAREST,
    PAIRWISE,
    RAW,
    ROWS,
    SCALES,
    SPARSE,
    STANDARDISED,
    Cosine,
    GeneratedPairs,
    Shift,
    compare_shift,
    frequency_matched,
    load_shift,
    save_shift,
    shift_spaces,
    similarities,
    training_rows,
)
from core.explain.spaces import principal_components
from core.reward.fit_responses import FitResponses, collect_responses, prompt_id
from core.reward.model import SparseRM
from core.types import LatentFrequencies

CONFIG = SpacesConfig(points=40, perplexity=5, random_draws=2)
D, K = 12, 5


def world(n_prompts: int = 12, per_prompt: int = 2, seed: int = 0) -> tuple[FitResponses, np.ndarray, np.random.Generator]:
    """Known responses of which two thirds of the prompts are training ones, and their hidden states."""
    rng = np.random.default_rng(seed)
    pairs = make_pairs([per_prompt] * n_prompts, [("train", "train", "test")[i % 3] for i in range(n_prompts)])
    n = len(pairs)
    states = (rng.normal(size=(2 * n, D)) + 1.0).astype(np.float32)
    hidden = make_hidden(states, np.arange(0, 2 * n, 2), np.arange(1, 2 * n, 2))
    nothing = np.zeros((2 * n, K), dtype=np.float32)
    return collect_responses(hidden, pairs, nothing, nothing), states, rng


def spaces_of(rng: np.random.Generator, draws: int = 2) -> dict[str, list[np.ndarray]]:
    return {name: [rng.normal(size=(K, D)).astype(np.float32) for _ in range(1 if name == SPARSE else draws)] for name in (SPARSE, ISOTROPIC, ROWS)}


def generated_for(known: FitResponses, rng: np.random.Generator, prompts: Sequence[int]) -> GeneratedPairs:
    """A generated pair for each of these prompts, by number."""
    ids = np.array([prompt_id([{"role": "user", "content": f"Question {number}"}]) for number in prompts], dtype=np.int64)
    z = (rng.normal(size=(len(prompts), 2, D)) + 0.5).astype(np.float32)
    return GeneratedPairs(z=z, prompt_ids=ids, ids=tuple(f"c{number}" for number in range(len(prompts))))


def found_in(shift: Shift) -> dict[tuple[str, str, str], Cosine]:
    return {(one.space, one.scale, one.measure): one for one in shift.rows}


@pytest.fixture
def plain_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Principal components in place of t-SNE, for tests of figures alone."""
    monkeypatch.setattr("core.explain.shift.picture", lambda values, _config: principal_components(values))


# --- one answer ----------------------------------------------------------------------------------------------------


def test_four_measures_by_hand() -> None:
    """The answer (1, 1) against (2, 0) and (0, 3) of its own prompt and (-1, -1) of another: cosines 1/sqrt 2, 1/sqrt 2 and -1."""
    training = np.array([[2.0, 0.0], [0.0, 3.0], [-1.0, -1.0]])
    matched, centroid, pairwise, nearest = similarities(np.array([[1.0, 1.0]]), training, np.array([4]), np.array([4, 4, 9]))[:, 0]
    assert matched == pytest.approx(np.sqrt(0.5)) and nearest == pytest.approx(np.sqrt(0.5))
    assert pairwise == pytest.approx((2 * np.sqrt(0.5) - 1) / 3)
    assert centroid == pytest.approx(3 / np.sqrt(2 * 5)), "the mean is (1, 2) / 3"


def test_many_answers_against_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.explain.shift.ROWS_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    answers, training = rng.normal(size=(30, 6)), rng.normal(size=(50, 6))
    asked, answered = rng.integers(8, size=30), rng.integers(6, size=50)
    matched, centroid, pairwise, nearest = similarities(answers, training, asked, answered)
    whole = cosine_similarity(answers, training)
    np.testing.assert_allclose(pairwise, whole.mean(axis=1))
    np.testing.assert_allclose(nearest, whole.max(axis=1))
    np.testing.assert_allclose(centroid, [1 - cosine_distance(answer, training.mean(axis=0)) for answer in answers])
    for row in range(30):
        own = whole[row, answered == asked[row]]
        assert np.isnan(matched[row]) if asked[row] >= 6 else matched[row] == pytest.approx(own.mean())


def test_a_vector_without_length_has_no_cosine() -> None:
    found = similarities(np.array([[0.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([1, 1]), np.array([1, 1]))
    assert np.isnan(found[:, 0]).all() and found[0, 1] == found[2, 1] == found[3, 1] == pytest.approx(0.6), "the zero training vector is left out"
    assert np.isnan(similarities(np.ones((1, 2)), np.zeros((0, 2)), np.array([1]), np.zeros(0, dtype=np.int64))).all()


# --- a round -------------------------------------------------------------------------------------------------------


def slow(
    space: np.ndarray | None, scale: str, measure: str, generated: GeneratedPairs, known: FitResponses, states: np.ndarray
) -> dict[int, list[float]]:
    """Every answer's cosine by loops, in lists by prompt: project, centre, scale, compare one by one."""
    to = (lambda z: z.astype(np.float64)) if space is None else (lambda z: z.astype(np.float64) @ space.T.astype(np.float64))
    train = [i for i, split in enumerate(known.split) if split == 0]
    roles = [sorted({int(rows[i]) for i in train}) for rows in (known.chosen_rows, known.rejected_rows)]
    seen = to(states[roles[0] + roles[1]])
    centre = 0.0 if scale == RAW else seen.mean(axis=0)
    spread = seen.std(axis=0) if scale == STANDARDISED else 1.0
    found: dict[int, list[float]] = {}
    for i, prompt in enumerate(generated.prompt_ids.tolist()):
        for role in (0, 1):
            own = (to(generated.z[i, role]) - centre) / spread
            others = {row: (to(states[row]) - centre) / spread for row in roles[role]}
            if measure == MATCHED:
                values = [1 - cosine_distance(own, v) for row, v in others.items() if known.prompt_ids[row] == prompt]
            elif measure == CENTROID:
                values = [1 - cosine_distance(own, np.mean(list(others.values()), axis=0))]
            else:
                values = [1 - cosine_distance(own, v) for v in others.values()]
            if values:
                found.setdefault(prompt, []).append(max(values) if measure == NEAREST else float(np.mean(values)))
    return found


@pytest.fixture(scope="module")
def round_one() -> tuple[Shift, GeneratedPairs, FitResponses, np.ndarray, Mapping[str, Sequence[np.ndarray]]]:
    known, states, rng = world()
    generated, spaces = generated_for(known, rng, [0, 1, 2, 3, 3, 50]), spaces_of(rng)
    return compare_shift(generated, known, states, spaces, CONFIG), generated, known, states, spaces


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("measure", MEASURES)
def test_every_mean_by_loops(round_one: Any, scale: str, measure: str) -> None:
    shift, generated, known, states, spaces = round_one
    found = found_in(shift)
    by_space = {name: [slow(draw, scale, measure, generated, known, states) for draw in draws] for name, draws in {DENSE: [None], **spaces}.items()}
    flat = {name: np.mean([np.concatenate([draw[prompt] for prompt in draw]) for draw in draws], axis=0) for name, draws in by_space.items()}
    for name, values in flat.items():
        one = found[name, scale, measure]
        assert one.figure is not None and one.figure.value == pytest.approx(values.mean(), abs=1e-9)
        assert one.figure.n == len(values) == (12 if measure != MATCHED else 8), "prompt 2 is a test prompt, 50 is unknown: nothing to match"
        assert one.figure.low <= one.figure.value <= one.figure.high
        if name == SPARSE:
            assert one.lead is None
        else:
            assert one.lead is not None and one.lead.value == pytest.approx((flat[SPARSE] - values).mean(), abs=1e-9)


def test_all_rows_are_there(round_one: Any) -> None:
    shift = round_one[0]
    assert len(found_in(shift)) == len(shift.rows) == 4 * len(SCALES) * len(MEASURES)
    assert shift.made["draws"] == {SPARSE: 1, ISOTROPIC: 2, ROWS: 2}


def test_the_prompts_are_the_unit(round_one: Any) -> None:
    figure = found_in(round_one[0])[DENSE, RAW, PAIRWISE].figure
    assert figure is not None and (figure.n, figure.n_prompts) == (12, 5), "prompt 3 was answered twice"


@pytest.mark.usefixtures("plain_pictures")
def test_training_answers_are_matched_and_nearest_at_one() -> None:
    """GeneratedPairs answers that are the training responses: their own cosine is 1 in every space, with one pair a prompt."""
    known, states, rng = world(per_prompt=1)
    train = known.pairs_of_split("train")
    z = np.stack([states[known.chosen_rows[train]], states[known.rejected_rows[train]]], axis=1)
    generated = GeneratedPairs(z=z, prompt_ids=known.prompt_ids[known.chosen_rows[train]], ids=tuple(map(str, train)))
    found = found_in(compare_shift(generated, known, states, spaces_of(rng), CONFIG))
    for space in (DENSE, SPARSE, ISOTROPIC, ROWS):
        for scale in SCALES:
            for measure in (MATCHED, NEAREST):
                figure = found[space, scale, measure].figure
                assert figure is not None and (figure.value, figure.low) == pytest.approx((1.0, 1.0), abs=1e-6)
            pairwise = found[space, scale, PAIRWISE].figure
            assert pairwise is not None and pairwise.value < 0.9


@pytest.mark.usefixtures("plain_pictures")
def test_centring_takes_away_what_all_share() -> None:
    """A component of a hundred in every state: raw cosines are near 1 whatever is generated, centred ones see that it has nothing in common."""
    known, states, rng = world(n_prompts=60)
    states[:, 0] += 100
    generated = generated_for(known, rng, range(60))
    generated.z[:, :, 0] += 100
    found = found_in(compare_shift(generated, known, states, spaces_of(rng), CONFIG))
    raw, centred = found[DENSE, RAW, PAIRWISE].figure, found[DENSE, CENTRED, PAIRWISE].figure
    assert raw is not None and raw.low > 0.99 and centred is not None and abs(centred.value) < 0.1


@pytest.mark.usefixtures("plain_pictures")
def test_a_planted_shift_shows_in_the_space_that_holds_it_alone() -> None:
    """GeneratedPairs = the matched training response, but anything outside the span of the sparse directions: v stays, z does not."""
    known, states, rng = world(n_prompts=60, per_prompt=1)
    spaces = {SPARSE: [np.eye(K, D, dtype=np.float32)], ISOTROPIC: spaces_of(rng)[ISOTROPIC]}
    train = known.pairs_of_split("train")
    z = np.stack([states[known.chosen_rows[train]], states[known.rejected_rows[train]]], axis=1)
    z[:, :, K:] = rng.normal(size=z[:, :, K:].shape)
    generated = GeneratedPairs(z=z, prompt_ids=known.prompt_ids[known.chosen_rows[train]], ids=tuple(map(str, train)))
    found = found_in(compare_shift(generated, known, states, spaces, CONFIG))
    sparse, dense, random = (found[space, CENTRED, MATCHED] for space in (SPARSE, DENSE, ISOTROPIC))
    assert sparse.figure is not None and sparse.figure.value == pytest.approx(1.0)
    assert dense.lead is not None and dense.lead.low > 0.2 and random.lead is not None and random.lead.low > 0.2


# --- points --------------------------------------------------------------------------------------------------------


def test_points_are_training_and_generated_together(round_one: Any) -> None:
    shift, generated, known, *_ = round_one
    assert shift.dense.shape == shift.sparse.shape == (len(shift.kind), 2) and np.isfinite(shift.dense).all()
    assert shift.ids == generated.ids and shift.made["n_generated"] == 6
    chosen, rejected = training_rows(known)
    assert sorted(shift.row[shift.kind == 0]) == chosen.tolist() and sorted(shift.row[shift.kind == 1]) == rejected.tolist()
    assert sorted(shift.row[shift.kind == 2]) == sorted(shift.row[shift.kind == 3]) == list(range(6))
    assert shift.made["n_shown"] == (shift.kind < 2).sum() == 32


@pytest.mark.usefixtures("plain_pictures")
def test_many_training_points_are_drawn_by_prompts() -> None:
    known, states, rng = world(n_prompts=30)
    shift = compare_shift(generated_for(known, rng, [0, 1]), known, states, spaces_of(rng), CONFIG)
    shown = shift.row[shift.kind < 2]
    assert len(shown) == 40 and len(set(known.prompt_ids[shown])) == 10, "ten whole prompts of four responses"


def test_points_that_lie_together_are_shown_together() -> None:
    """GeneratedPairs answers far from the training data in z: further from it in the picture than from one another."""
    known, states, rng = world(n_prompts=30)
    generated = generated_for(known, rng, range(15))
    generated.z[:] += 30
    shift = compare_shift(generated, known, states, spaces_of(rng), SpacesConfig(points=80, perplexity=8))
    for picture in (shift.dense, shift.sparse):
        own, other = picture[shift.kind >= 2], picture[shift.kind < 2]
        nearest = np.linalg.norm(own[:, None] - np.concatenate([own, other])[None], axis=2).argsort(axis=1)[:, 1]
        assert (nearest < len(own)).mean() > 0.9


def test_what_is_kept_is_read_again(round_one: Any, tmp_path: Path) -> None:
    shift = round_one[0]
    save_shift(tmp_path, shift)
    found = load_shift(tmp_path)
    assert found.rows == shift.rows and found.ids == shift.ids and found.to_json() == shift.to_json()
    np.testing.assert_array_equal(found.sparse, shift.sparse)
    np.testing.assert_array_equal(found.kind, shift.kind)
    (tmp_path / "shift.safetensors").write_bytes(b"x")
    with pytest.raises(StoreError, match="can't be read"):
        load_shift(tmp_path)


@pytest.mark.usefixtures("plain_pictures")
def test_one_pair_has_figures_of_none() -> None:
    known, states, rng = world()
    shift = compare_shift(generated_for(known, rng, [0]), known, states, spaces_of(rng), CONFIG)
    assert all(one.figure is None and one.lead is None for one in shift.rows), "no interval can be had of one prompt"
    assert shift.rows[0].to_json()["figure"] is None


def test_it_can_be_cancelled() -> None:
    known, states, rng = world()

    def progress(step: str, done: float, total: float, **_figures: Any) -> None:
        if step == "t-SNE":
            raise Cancelled

    with pytest.raises(Cancelled):
        compare_shift(generated_for(known, rng, [0, 1]), known, states, spaces_of(rng), CONFIG, progress)


# --- controls ------------------------------------------------------------------------------------------------------


def frequencies(n_active: np.ndarray, live: int = 10) -> LatentFrequencies:
    n = len(n_active)
    share, votes = n_active / 2000, np.zeros(n, dtype=np.int64)
    q = np.where(n_active >= live, 0.5, np.nan)
    return LatentFrequencies(
        chosen=share,
        rejected=share,
        n_active=n_active,
        prompts_for=votes,
        prompts_against=votes,
        p_value=q,
        q_value=q,
        held_out=q,
        low=q,
        high=q,
        n_pairs=1000,
        n_prompts=1000,
        n_pairs_held_out=10,
    )


def test_matched_latents_are_live_others_of_like_frequency() -> None:
    rng = np.random.default_rng(0)
    counts = np.exp(rng.uniform(0, 7.5, size=2000)).astype(np.int64)
    selected = rng.choice(np.flatnonzero(counts >= 10), size=64, replace=False)
    drawn = np.array([frequency_matched(frequencies(counts), selected, seed) for seed in range(20)])
    for one in drawn:
        assert len(set(one.tolist())) == 64 and not set(one.tolist()) & set(selected.tolist()) and (counts[one] >= 10).all()
        assert np.abs(np.log(counts[one] / counts[selected])).max() < 0.5, "within a factor of 1.65 each"
    assert len({tuple(one) for one in drawn}) == 20 and (drawn[3] == frequency_matched(frequencies(counts), selected, 3)).all()
    alike = np.array([len(set(column.tolist())) for column in drawn.T])
    assert alike.min() > 3, "drawn among the nearest, not always the same one"
    free = np.array([count if i not in set(selected.tolist()) else -1 for i, count in enumerate(counts)])
    gap = np.abs(np.log(np.maximum(free, 1e-9)) - np.log(counts[selected[0]]))
    assert set(drawn[:, 0].tolist()) <= set(np.argsort(gap, kind="stable")[: LIKE_FREQUENT + 63].tolist())


def test_unmatched_draws_would_differ_in_frequency() -> None:
    """The control that this replaces: live latents at random are far rarer than selected ones, so matching is what the test above sees."""
    rng = np.random.default_rng(0)
    counts = np.exp(rng.uniform(2.5, 7.5, size=500)).astype(np.int64)
    selected = np.argsort(-counts)[:32]
    matched, random = frequency_matched(frequencies(counts), selected, 0), rng.permutation(500)[:32]
    assert np.median(counts[random]) < np.median(counts[matched]) / 3


def test_few_others_are_made_up_for() -> None:
    """Six latents, four selected: first those that are active but not live, then the selected ones themselves."""
    counts = np.array([50, 60, 70, 80, 3, 4, 5, 6, 0])
    assert sorted(frequency_matched(frequencies(counts), np.arange(4), 0).tolist()) == [4, 5, 6, 7]
    counts = np.array([50, 60, 70, 80, 3, 0])
    found = frequency_matched(frequencies(counts), np.arange(4), 0)
    assert len(set(found.tolist())) == 4 and set(found.tolist()) <= set(range(5))


def test_the_spaces_of_a_model() -> None:
    parts = make_parts(d_model=D, k=K)
    assert parts.latent_ids is not None and parts.directions is not None
    model = SparseRM(parts, FakeReader(D))
    rows = np.random.default_rng(1).normal(size=(1000, D)).astype(np.float32)
    vars(model)["sae"] = FakeSAE(rows)
    counts = frequencies(np.random.default_rng(2).integers(10, 900, size=1000))
    spaces = shift_spaces(model, counts, 3)
    assert {name: [one.shape for one in draws] for name, draws in spaces.items()} == {SPARSE: [(K, D)], ISOTROPIC: [(K, D)] * 3, ROWS: [(K, D)] * 3}
    np.testing.assert_array_equal(spaces[SPARSE][0], parts.directions)
    np.testing.assert_array_equal(spaces[ROWS][1], rows[frequency_matched(counts, parts.latent_ids, 1)])
    np.testing.assert_allclose(np.linalg.norm(spaces[ISOTROPIC][2], axis=1), 1.0, rtol=1e-6)
    assert all(len({one.tobytes() for one in spaces[name]}) == 3 for name in (ISOTROPIC, ROWS)), "three draws"
    assert set(shift_spaces(model, None, 3)) == {SPARSE, ISOTROPIC}, "without the fit's frequencies there is nothing to match"
