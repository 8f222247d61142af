"""The doctor's checks of pairs that were not read: shares against bounds, and whether the lost pairs are like the others."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from left_out_helpers import counts_of, lost, lost_by_side, pair
from scipy import stats

from core.backbone.presets import preset
from core.config import DataConfig, DoctorConfig
from core.doctor.checks_left_out import (
    CUT_WARN,
    LEVEL,
    SHARE_FAIL,
    SHARE_WARN,
    kinds_p_value,
    left_out_differ,
    length_difference,
    lost_share,
    pairs_left_out,
    sides_sign_test,
)
from core.doctor.doctor import doctor_report
from core.doctor.report import Check
from core.fit.pipeline import fit
from core.reward.folder import ModelFolder
from core.runs.store import Store, cache_root
from core.types import PreferencePairs

# --- how many --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "status"),
    [
        ({"refused": 0}, "pass"),
        ({"refused": 1}, "pass"),
        ({"refused": 2}, "warn"),
        ({"refused": 20}, "warn"),
        ({"refused": 21}, "fail"),
        ({"cut": 5}, "pass"),
        ({"cut": 6}, "warn"),
        ({"cut": 100}, "warn"),
        ({"rows": 1}, "pass"),
        ({"rows": 2}, "warn"),
    ],
)
def test_shares_against_their_bounds(counts: dict[str, int], status: str) -> None:
    assert (SHARE_WARN, SHARE_FAIL, CUT_WARN) == (0.01, 0.20, 0.05)
    found = pairs_left_out(counts_of(n=100, **counts))
    assert found.status == status and bool(found.remedy) == (status != "pass")
    assert found.value == counts.get("refused", 0) / 100 and found.n == 100


def test_the_figure_says_how_many_of_which_split_and_why() -> None:
    found = pairs_left_out(counts_of(n=49, refused=21, cut=4, rows=1))
    assert "21 of 49 test pairs (42.9%)" in found.figure and "more than 128 tokens: 21" in found.figure
    assert "prompts cut: 4 of 28 test pairs (14.3%)" in found.figure and "1 of 50 rows unusable" in found.figure
    assert found.details["first_pairs"][0]["row"] == 1 and lost_share(counts_of(n=49, refused=21)) == 21 / 49


def test_pairs_of_no_split_do_not_count() -> None:
    assert pairs_left_out(counts_of(refused=50, split="unused")).status == "pass"


def test_a_fit_of_an_older_version_claims_no_absence_of_losses() -> None:
    found = pairs_left_out(None)
    assert found.status == "warn" and "did not count" in found.figure and "fit it again" in found.remedy


# --- which -----------------------------------------------------------------------------------------------------------


def differ(kept: list[Any], gone: list[Any], share: float = 0.1) -> Check:
    return left_out_differ(PreferencePairs(pairs=tuple(kept), split=("test",) * len(kept)), gone, share)


def test_nothing_or_too_little_to_compare() -> None:
    kept = [pair(i) for i in range(20)]
    assert differ(kept, [], 0.0).status == "pass" and "no pair was lost" in differ(kept, [], 0.0).figure
    few = [lost(pair(100 + i)) for i in range(9)]
    assert differ(kept, few, 0.005).status == "pass" and differ(kept, few, 0.3).status == "warn"
    assert "9 pairs of 9 prompts were not read: too few to tell" in differ(kept, few, 0.3).figure
    unused = [replace(one, split="unused") for one in [*few, *few, *few]]
    assert "no pair was lost" in differ(kept, unused, 0.0).figure
    gone = left_out_differ(PreferencePairs(pairs=(), split=()), None, 0.3)
    assert gone.status == "warn" and "does not hold" in gone.figure


def test_pairs_lost_at_random_pass() -> None:
    rng = np.random.default_rng(0)
    made = [pair(i, prompt="w" * rng.integers(10, 90), chosen="c" * rng.integers(10, 90), subset="ab"[i % 2]) for i in range(300)]
    where = set(rng.permutation(300)[:60].tolist())
    gone = [lost(one, ("chosen", "rejected")[i % 2]) for i, one in enumerate(made) if i in where]
    found = differ([one for i, one in enumerate(made) if i not in where], gone)
    assert found.status == "pass" and not found.remedy and "n = 60 lost and 240 kept pairs" in found.figure


@pytest.mark.parametrize("side", ["answers", "prompts"])
def test_longer_pairs_that_are_lost_warn(side: str) -> None:
    def of(number: int, length: int) -> Any:
        return pair(number, chosen="c" * length, rejected="r" * length) if side == "answers" else pair(number, prompt="w" * length)

    kept, gone = [of(100 + i, 20 + i % 5) for i in range(60)], [lost(of(200 + i, 300 + i % 5)) for i in range(20)]
    found = differ(kept, gone)
    assert found.status == "warn" and found.details[side]["difference"] == pytest.approx(280.0)
    assert found.details[side]["low"] > 200 and found.details[side]["low"] <= 280 <= found.details[side]["high"]
    assert "characters" in found.figure


def test_lost_kinds_of_pairs_warn() -> None:
    """Against the chi-square test of the table of kinds: as clear there as here."""
    kept = [pair(i, subset=("chat", "code")[i % 2]) for i in range(100, 160)]
    gone = [lost(pair(i, subset="code"), ("chosen", "rejected")[i % 2]) for i in range(200, 220)]
    found = differ(kept, gone)
    assert found.status == "warn" and "kinds of pairs (subset): p = " in found.figure
    assert stats.chi2_contingency([[30, 0], [30, 20]]).pvalue < LEVEL and found.details["kinds"]["p_value"] < LEVEL


def test_sides_that_are_lost_unequally_fail_where_many_are_lost() -> None:
    kept, gone = lost_by_side("rejected")
    assert left_out_differ(kept, gone, 0.3).status == "fail" and left_out_differ(kept, gone, 0.04).status == "warn"
    assert left_out_differ(kept, [replace(one, side="both") for one in gone], 0.3).status == "pass"
    assert left_out_differ(kept, gone, 0.3).details["sides"] == {"chosen": 0, "rejected": 30, "p_value": pytest.approx(2 * 0.5**30)}


def test_the_prompt_is_the_unit_of_the_sign_test() -> None:
    """Thirty pairs of one prompt are one vote."""
    same = [lost(replace(pair(i), prompt=({"role": "user", "content": "one"},)), "chosen") for i in range(30)]
    assert sides_sign_test(same) == (1, 0, 1.0)
    mixed = [lost(pair(i), "chosen" if i < 14 else "rejected") for i in range(20)]
    assert sides_sign_test(mixed) == (14, 6, pytest.approx(stats.binomtest(14, 20).pvalue))


def test_intervals_hold_under_the_null_with_clustered_pairs() -> None:
    """60 prompts of 4 pairs with a length of their own, 15 lost whole: the interval leaves 0 out in about 1.25 % of the draws, not in 20 %."""
    rng, groups = np.random.default_rng(1), np.repeat(np.arange(60), 4)
    clear = 0
    for _ in range(200):
        lengths = rng.normal(100, 20, size=60)[groups] + rng.normal(0, 2, size=240)
        clear += length_difference(lengths, np.isin(groups, rng.permutation(60)[:15]), groups).clear
    assert clear <= 12


def test_kinds_hold_their_level_with_prompts_of_several_pairs() -> None:
    rng, groups = np.random.default_rng(2), np.repeat(np.arange(40), 5)
    names = np.array(["a", "b", "c"])[rng.integers(3, size=40)][groups].tolist()
    p_values = [kinds_p_value(names, np.isin(groups, rng.permutation(40)[:12]), groups) for _ in range(60)]
    assert 0.3 < float(np.mean(p_values)) < 0.75 and sum(p < LEVEL for p in p_values) <= 4
    assert kinds_p_value(["a"] * 200, np.isin(groups, [1]), groups) == 1.0


# --- on a fit --------------------------------------------------------------------------------------------------------


@cache
def fitted() -> ModelFolder:
    """The toy model on 60 pairs; every third has a chosen answer that is too long."""
    long = "It needs patience, a table and good light. " * 12
    rows = [{"prompt": f"How do I boil egg {i}?", "chosen": (long if i % 3 == 0 else "") + f"Gladly {i}", "rejected": f"Fool {i}"} for i in range(60)]
    source = cache_root() / "left-out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = preset("tiny")
    config = replace(
        config,
        data=DataConfig(pairs=str(source)),
        backbone=replace(config.backbone, max_length=96),
        selection=replace(config.selection, resamples=10),
        head=replace(config.head, seeds=2, epochs=5),
        random_draws=1,
        curve=(4,),
    )
    store = Store(cache_root() / "left-out")
    return ModelFolder(fit(config, store).artefact, store)


def test_the_doctor_finds_it_in_a_fit() -> None:
    report, _ = doctor_report(fitted(), DoctorConfig(swaps=3, responses=8, dialogues=8))
    checks = {check.name: check for check in report.checks}
    first, second = checks["pairs left out"], checks["pairs left out differ"]
    assert first.status == "fail" and first.value is not None and first.value > SHARE_FAIL and "more than 96 tokens: 20" in first.figure
    assert second.status == "fail" and second.details["sides"]["chosen"] == 20 and second.details["n_lost"] == 20
    assert second.details["n_kept"] == 40 and second.details["answers"]["low"] > 100


def test_a_cache_without_the_pairs_says_that_it_can_not_tell(tmp_path: Any) -> None:
    import shutil

    shutil.copytree(fitted().store.root, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "artefacts" / "pairs")
    elsewhere = ModelFolder(fitted().path, Store(tmp_path / "copy"))
    assert elsewhere.lost_pairs() is None
    assert len(fitted().lost_pairs() or ()) == 20
