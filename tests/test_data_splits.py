"""Splits: no prompt on two sides, exact shares, the same on every machine; the paper's protocols."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from data_helpers import pair
from hypothesis import given, settings
from hypothesis import strategies as st
from real_data import real_data

from core.config import DataConfig
from core.data.duplicates import find_duplicates
from core.data.pairs import DataReport, load_pairs
from core.data.splits import NAMES, PROTOCOLS, Protocol, apportion, protocol_scale, split_pairs, split_report
from core.errors import DataError
from core.types import PreferencePairs


def numbered_pairs(n_prompts: int, *, a_prompt: int = 1) -> PreferencePairs:
    return PreferencePairs(pairs=tuple(pair(i, f"prompt {i // a_prompt}", f"yes {i}", f"no {i}") for i in range(n_prompts * a_prompt)))


def prompts_of(pairs: PreferencePairs, split: str) -> set[str]:
    return {pairs[int(i)].prompt_id for i in pairs.rows_of(split)}


def prompt_counts(pairs: PreferencePairs) -> list[int]:
    return [len(prompts_of(pairs, name)) for name in NAMES]


def test_no_prompt_stands_on_two_sides_and_shares_are_met() -> None:
    pairs = split_pairs(numbered_pairs(100, a_prompt=3), DataConfig(ratios=(0.4, 0.1, 0.5)))
    assert prompt_counts(pairs) == [40, 10, 50, 0]
    assert sum(prompt_counts(pairs)) == len({p.prompt_id for p in pairs})
    assert Counter(pairs.split) == {"train": 120, "validation": 30, "test": 150}


def test_what_the_ratios_leave_is_unused() -> None:
    assert prompt_counts(split_pairs(numbered_pairs(10), DataConfig(ratios=(0.5, 0.1, 0.2)))) == [5, 1, 2, 2]
    assert prompt_counts(split_pairs(numbered_pairs(10), DataConfig(ratios=(0.7, 0.0, 0.3)))) == [7, 0, 3, 0]


def test_the_split_depends_on_seed_and_prompts_alone() -> None:
    pairs = numbered_pairs(60, a_prompt=2)
    rows = list(range(len(pairs)))
    random.Random(0).shuffle(rows)
    first, shuffled, other = (split_pairs(p, DataConfig(seed=s)) for p, s in ((pairs, 0), (pairs.take(rows), 0), (pairs, 1)))
    assert dict(zip((p.pair_id for p in first), first.split, strict=True)) == dict(zip((p.pair_id for p in shuffled), shuffled.split, strict=True))
    assert first.split != other.split
    assert first.pairs == pairs.pairs
    golden = hashlib.sha256(json.dumps(first.split).encode()).hexdigest()[:16]
    assert golden == "bd85a8e894e900c9"  # on every machine, in every version


def test_split_by_pair_shows_the_leak() -> None:
    pairs = numbered_pairs(50, a_prompt=4)
    config = DataConfig(split_by="pair")
    split = split_pairs(pairs, config)
    assert Counter(split.split) == {"train": 80, "validation": 20, "test": 100}
    report = split_report(split, config)
    both = prompts_of(split, "train") & prompts_of(split, "test")
    assert report.shared_prompts["train/test"] == len(both) > 10
    assert "split by pair" in report.notes[0]
    assert split_report(split_pairs(pairs, DataConfig()), DataConfig()).shared_prompts == {}


@given(st.integers(1, 400), st.lists(st.integers(0, 20), min_size=2, max_size=5).filter(any))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_largest_remainder_is_as_near_as_whole_numbers_can_be(n: int, weights: list[int]) -> None:
    shares = [w / sum(weights) for w in weights]
    counts = apportion(n, shares)
    assert sum(counts) == n
    assert all(abs(c - n * s) < 1 for c, s in zip(counts, shares, strict=True))
    # No other whole numbers are nearer: moving one unit from any part to any other never lowers the squared error.
    error = [c - n * s for c, s in zip(counts, shares, strict=True)]
    assert all(error[i] - error[j] <= 1 + 1e-6 for i in range(len(error)) for j in range(len(error)))


def test_no_split_that_is_asked_for_is_empty() -> None:
    assert prompt_counts(split_pairs(numbered_pairs(3), DataConfig())) == [1, 1, 1, 0]
    assert prompt_counts(split_pairs(numbered_pairs(4), DataConfig(ratios=(0.98, 0.01, 0.01)))) == [2, 1, 1, 0]
    with pytest.raises(DataError, match=r"(?s)too few prompts to split.*at least 3.*found: 2"):
        split_pairs(numbered_pairs(2, a_prompt=5), DataConfig())


def test_the_truthfulqa_protocol_is_4_1_5() -> None:
    pairs = split_pairs(numbered_pairs(817, a_prompt=2), DataConfig(protocol="truthfulqa", ratios=(1.0, 0.0, 0.0)))
    assert prompt_counts(pairs) == [327, 82, 408, 0]


@pytest.mark.parametrize("name", ["safe-rlhf", "red-teaming"])
def test_the_safety_protocols_count_pairs(name: str) -> None:
    config = DataConfig(protocol=name)
    pairs = split_pairs(numbered_pairs(7000), config)
    assert Counter(pairs.split) == {"train": 1000, "validation": 1000, "test": 1000, "unused": 4000}
    (note,) = split_report(pairs, config).notes
    assert note == f"protocol {name}: train, validation, test aim at 1,000, 1,000, 1,000 pairs; unused keeps 2,000 prompts for DPO"


def test_a_protocol_never_divides_a_prompt() -> None:
    pairs = split_pairs(numbered_pairs(4000, a_prompt=3), DataConfig(protocol="safe-rlhf"))
    counts = Counter(pairs.split)
    assert [counts[name] for name in ("train", "validation", "test")] == [1002, 999, 999]  # up to 1,000, 2,000 and 3,000 in whole threes
    assert sum(prompt_counts(pairs)) == 4000


def test_a_small_set_is_scaled_in_proportion_and_said() -> None:
    config = DataConfig(protocol="red-teaming")
    pairs = split_pairs(numbered_pairs(500), config)
    assert Counter(pairs.split) == {"train": 100, "validation": 100, "test": 100, "unused": 200}
    (note,) = split_report(pairs, config).notes
    assert note.endswith("unused keeps 200 prompts for DPO; the set is smaller than its protocol, whose numbers are scaled by 0.100")


def test_the_scale_of_a_protocol() -> None:
    protocol = PROTOCOLS["red-teaming"]
    assert protocol_scale(protocol, 5000, 5000) == 1.0
    assert protocol_scale(protocol, 2500, 2500) == 0.5
    # Two pairs a prompt: 3,000 pairs stand on 1,500 prompts, 2,000 more for DPO make 3,500.
    assert protocol_scale(protocol, 7000, 3500) == 1.0
    assert protocol_scale(protocol, 3500, 1750) == pytest.approx(0.5)
    assert protocol_scale(Protocol(ratios=(0.4, 0.1, 0.5)), 10, 10) == 1.0


def test_duplicates_in_two_splits_are_reported_and_left() -> None:
    twins = [
        pair(2 * i + j, f"A rather long question number {i} about the weather" + "?" * j, f"yes {i}", f"no {i}") for i in range(40) for j in (0, 1)
    ]
    pairs = PreferencePairs(pairs=tuple(twins))
    split = split_pairs(pairs, DataConfig())
    duplicates = find_duplicates(pairs)
    where = {p.pair_id: name for p, name in zip(split, split.split, strict=True)}
    expected = sum({where[i] for i in group} >= {"train", "test"} for group in duplicates.near)
    report = split_report(split, DataConfig(), duplicates)
    assert report.shared_duplicates["train/test"] == expected > 0
    assert json.loads(json.dumps(report.to_json()))["shared_duplicates"]["train/test"] == expected


def test_prompts_that_differ_in_case_only_are_reported_as_shared() -> None:
    made_pairs = PreferencePairs(pairs=tuple(pair(2 * i + j, f"prompt {i}" if j else f"PROMPT {i}", "yes", "no") for i in range(30) for j in (0, 1)))
    split = split_pairs(made_pairs, DataConfig())
    assert sum(split_report(split, DataConfig()).shared_prompts.values()) > 0


@cache
def loaded(path: Path) -> tuple[PreferencePairs, DataReport]:
    return load_pairs(DataConfig(pairs=str(path)))


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("truthfulqa/TruthfulQA.csv", {"protocol": "truthfulqa"}, {"train": 327, "validation": 82, "test": 408, "unused": 0}),
        ("hh_rlhf/harmless-base_test.jsonl.gz", {"protocol": "red-teaming"}, {"train": 460, "validation": 461, "test": 460, "unused": 920}),
        ("hh_rlhf/harmless-base_test.jsonl.gz", {}, {"train": 920, "validation": 230, "test": 1151, "unused": 0}),
    ],
)
def test_real_sets(name: str, config: dict[str, Any], expected: dict[str, int]) -> None:
    pairs, report = loaded(real_data(name))
    data = DataConfig(**config)
    split = split_report(split_pairs(pairs, data), data, report.duplicates)
    assert split.n_prompts == expected
    assert split.shared_prompts == {}
