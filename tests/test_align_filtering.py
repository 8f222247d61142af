"""The filter's decisions: margins and latents by hand, the arms compared, and every reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_helpers import FakeReader, make_parts

from core.align.filtering import (
    AT_RANDOM,
    MARGIN,
    TOP,
    UNREAD,
    ScoredCandidates,
    check_arm,
    counts_of,
    decide,
    judge_folder,
    latents_against,
    score_pairs,
)
from core.align.values import Candidate, Decision
from core.errors import ConfigError
from core.reward.head import Head
from core.reward.model import SparseRM


def candidate(number: int, chosen: str = "", rejected: str = "", **more: Any) -> Candidate:
    prompt = ({"role": "user", "content": f"Question {number}?"},)
    chosen, rejected = chosen or f"good {number}", rejected or f"bad {number}"
    return Candidate(candidate_id=f"c{number:02d}", prompt=prompt, chosen=chosen, rejected=rejected, **more)


def scored(margins: Sequence[float], d_model: int = 6) -> ScoredCandidates:
    z = np.random.default_rng(0).normal(size=(len(margins), 2, d_model)).astype(np.float32)
    return ScoredCandidates(rewards=np.array([[margin, 0.0] for margin in margins]), z=z)


def run(margins: Sequence[float], *, refused: dict[str, str] | None = None, kind: str = "sparserm", **options: Any) -> list[Decision]:
    options = {"arm": "sparserm", "min_margin": 0.0, "seed": 0, **options}
    return decide([candidate(n) for n in range(len(margins))], scored(margins), refused or {}, parts=make_parts(kind), **options)


def kept(decisions: Sequence[Decision]) -> list[str]:
    return [decision.candidate_id for decision in decisions if decision.kept]


# --- decisions --------------------------------------------------------------------------------------------------------


def test_the_winner_must_score_higher_and_a_tie_is_none() -> None:
    decisions = run([0.5, 0.0, -0.5, 1e-9])
    assert kept(decisions) == ["c00", "c03"]
    assert [decision.reason for decision in decisions] == ["", MARGIN, MARGIN, ""]
    assert [decision.margin for decision in decisions] == [0.5, 0.0, -0.5, 1e-9]
    assert kept(run([0.5, 0.3, 0.2], min_margin=0.3)) == ["c00"], "the margin must exceed the minimum"


def test_no_filter_keeps_all_that_dpo_can_use() -> None:
    decisions = run([0.5, -2.0, np.nan], arm="none", refused={"c00": "answers equal"})
    assert kept(decisions) == ["c01", "c02"] and decisions[0].reason == "answers equal"
    assert decisions[2].margin is None and all(not decision.latents for decision in decisions)


def test_unreadable_pairs_are_dropped_with_a_reason() -> None:
    assert [(decision.kept, decision.reason, decision.margin) for decision in run([np.nan, 1.0])] == [(False, UNREAD, None), (True, "", 1.0)]


def test_random_drops_as_many_as_the_reward_model_and_others() -> None:
    margins = np.random.default_rng(3).normal(size=40)
    refused = {"c00": "too long: 900 tokens, at most 512"}
    by_reward, random = run(margins, refused=refused), run(margins, refused=refused, arm="random")
    assert len(kept(random)) == len(kept(by_reward)) and set(kept(random)) != set(kept(by_reward))
    assert (
        Counter(decision.reason for decision in random if not decision.kept)[AT_RANDOM]
        == Counter(decision.reason for decision in by_reward if not decision.kept)[MARGIN]
    )
    assert random[0].reason == refused["c00"] and "c00" not in kept(by_reward)
    assert kept(run(margins, refused=refused, arm="random")) == kept(random), "equal seeds draw equally"
    assert kept(run(margins, refused=refused, arm="random", seed=1)) != kept(random)


def test_random_drops_do_not_depend_on_the_margin() -> None:
    """Over many seeds every pair is dropped equally often: three of ten fail, so each in three tenths of the draws."""
    margins = [-1.0] * 3 + [1.0] * 7
    dropped = Counter(decision.candidate_id for seed in range(400) for decision in run(margins, arm="random", seed=seed) if not decision.kept)
    shares = np.array([dropped[f"c{n:02d}"] / 400 for n in range(10)])
    assert np.abs(shares - 0.3).max() < 4 * np.sqrt(0.3 * 0.7 / 400)


def test_counts_add_up_and_name_the_reasons() -> None:
    candidates = [candidate(n) for n in range(4)] + [candidate(9, refused="no answer could be found")]
    decisions = run([1.0, -1.0, 1.0, 1.0], refused={"c02": "too long: 900 tokens, at most 512", "c03": "too long: 800 tokens, at most 512"})
    counts = counts_of(candidates, decisions)
    assert counts == {"generated": 5, "parsed": 4, "kept": 1, "dropped": 3, "reasons": {MARGIN: 1, "too long": 2}}
    assert counts["kept"] + counts["dropped"] == counts["parsed"] <= counts["generated"]


# --- latents ----------------------------------------------------------------------------------------------------------


def linear_head(weights: Sequence[float]) -> Head:
    """s = sum w_i v_i + 100, as an MLP that stays on one side of its ReLU."""
    w = np.array([weights], dtype=np.float32)
    return Head(
        weight_1=w, bias_1=np.array([100.0], dtype=np.float32), weight_2=np.array([[1.0]], dtype=np.float32), bias_2=np.zeros(1, dtype=np.float32)
    )


def test_the_latents_that_lower_a_margin_by_hand() -> None:
    """Projections are the coordinates of z and the head is linear: contribution_i = w_i (v_w,i - v_l,i)."""
    heads = linear_head([1.0, -2.0, 0.5]), linear_head([1.0, 2.0, 0.5])
    parts = make_parts(
        d_model=3, k=3, head=heads[0], heads=heads, seeds=(0, 1), directions=np.eye(3, dtype=np.float32), latent_ids=np.array([7, 8, 9])
    )
    table = tuple({"latent_id": i, "side": "chosen", "detection_auroc": 0.9} for i in (7, 8, 9))
    parts = make_parts(**{**vars(parts), "selection": table, "d_model": 3, "k": 3, "kind": "sparserm"})
    z = np.array([[[1.0, 3.0, 0.0], [2.0, 1.0, 4.0]]], dtype=np.float32)
    (latents,) = latents_against(parts, z)
    # 1 * (1 - 2) = -1;  -2 * (3 - 1) = -4, of the other head +4;  0.5 * (0 - 4) = -2
    assert [(row["latent_id"], row["contribution"], row["agreed"]) for row in latents] == [(8, -4.0, False), (9, -2.0, True), (7, -1.0, True)]
    assert latents[0]["deviation"] == pytest.approx(np.std([-4.0, 4.0], ddof=1)) and latents[1]["deviation"] == 0.0
    assert latents[0]["side"] == "chosen" and latents[0]["detection_auroc"] == 0.9


def test_only_pairs_dropped_by_their_margin_have_latents() -> None:
    parts = make_parts(k=4)
    model = SparseRM(parts, FakeReader(6))
    candidates = [candidate(n) for n in range(30)]
    scores = score_pairs(model, candidates)
    decisions = decide(candidates, scores, {"c00": "answers equal"}, arm="sparserm", min_margin=0.0, seed=0, parts=parts)
    for row, decision in enumerate(decisions):
        assert bool(decision.latents) == (decision.reason == MARGIN and scores.margins[row] < 0), "a tie may have no latent below zero"
        assert len(decision.latents) <= TOP and all(latent["contribution"] < 0 for latent in decision.latents)
        # Since k = 4 <= TOP, all negative contributions are listed, and the others can only raise the margin.
        if decision.latents:
            assert sum(latent["contribution"] for latent in decision.latents) <= scores.margins[row] + 1e-9
    assert sum(bool(decision.latents) for decision in decisions) > 5 and sum(decision.kept for decision in decisions) > 5


@pytest.mark.parametrize("kind", ["dense", "random-isotropic"])
def test_a_control_without_latents_names_none(kind: str) -> None:
    decisions = run([-1.0, 1.0], kind=kind)
    assert [(decision.kept, list(decision.latents)) for decision in decisions] == [(False, []), (True, [])]


def test_a_control_of_random_rows_has_latents() -> None:
    parts = make_parts("random-rows")
    decisions = decide([candidate(0)], scored([-1.0]), {}, arm="random-rows", min_margin=0.0, seed=0, parts=parts)
    assert {latent["latent_id"] for latent in decisions[0].latents} <= set(parts.latent_ids.tolist()) and decisions[0].latents


# --- rewards ----------------------------------------------------------------------------------------------------------


def test_rewards_are_those_of_the_reward_model_side_by_side() -> None:
    model = SparseRM(make_parts(), FakeReader(6))
    candidates = [candidate(n) for n in range(300)]
    scores = score_pairs(model, candidates)
    chosen, rejected = model.score_pairs([candidate.pair() for candidate in candidates])
    assert np.array_equal(scores.rewards, np.stack([chosen, rejected], axis=1)) and np.array_equal(scores.margins, chosen - rejected)
    assert np.allclose(model.rewards_of(scores.z[:, 1]), rejected)


def test_a_text_that_cannot_be_read_spoils_its_pair_only() -> None:
    """An empty text is refused before the language model reads it, a text without tokens by the reader."""
    model = SparseRM(make_parts(), Picky(6))
    scores = score_pairs(model, [candidate(0), candidate(1, chosen="mute"), candidate(2, rejected=" "), candidate(3)])
    assert np.isnan(scores.rewards).tolist() == [[False, False], [True, False], [False, True], [False, False]]
    alone = model.score([candidate(3).prompt[0]["content"]], ["bad 3"])
    assert scores.rewards[3, 1] == alone[0]


class Picky(FakeReader):
    def __call__(self, items: Sequence[Any]) -> tuple[np.ndarray, dict[int, str]]:
        mute = {n for n, (_, text) in enumerate(items) if text == "mute"}
        z, _ = super().__call__([item for n, item in enumerate(items) if n not in mute])
        return z, dict.fromkeys(sorted(mute), "no token")


def test_scoring_reports_progress_and_can_be_cancelled() -> None:
    seen: list[tuple[float, float]] = []
    score_pairs(SparseRM(make_parts(), FakeReader(6)), [candidate(n) for n in range(300)], lambda step, done, total, **_: seen.append((done, total)))
    assert seen[0] == (0, 300) and seen[-1] == (300, 300) and len(seen) > 3

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_pairs(SparseRM(make_parts(), FakeReader(6)), [candidate(0)], stop)


# --- arms -------------------------------------------------------------------------------------------------------------


def test_an_arm_is_a_control_beside_the_model_or_a_folder(tmp_path: Path) -> None:
    for folder in (tmp_path / "model", tmp_path / "model/controls/dense", tmp_path / "other"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    model = tmp_path / "model"
    assert {judge_folder(arm, model) for arm in ("sparserm", "none", "random")} == {model}
    assert judge_folder("dense", model) == model / "controls/dense"
    assert judge_folder(str(tmp_path / "other"), model) == tmp_path / "other"
    with pytest.raises(ConfigError, match=r"(?s)there is no such arm.*sparserm \| none \| random \| dense.*'denser'"):
        judge_folder("denser", model)


@pytest.mark.parametrize("arm", ["none", "random"])
def test_best_of_n_has_no_arm_without_the_reward(arm: str) -> None:
    with pytest.raises(ConfigError, match="best_of_n selects by the reward itself"):
        check_arm(arm, "best_of_n")
    check_arm(arm, "two_prompts")
    check_arm("sparserm", "best_of_n")
