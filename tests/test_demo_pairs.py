"""The embedded preference pairs keep the rules that core/data/demo/README.md states, and its figures are theirs."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from core.config import DataConfig
from core.data.pairs import load_pairs
from core.fit.defaults import DEMO, DEMO_PAIRS

SUBSETS = ("truthfulness", "safety", "helpfulness")
SIDES = ("chosen", "rejected")


@cache
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in DEMO_PAIRS.read_text(encoding="utf-8").splitlines()]


def answer(row: dict[str, Any], side: str) -> str:
    (message,) = row[side]
    assert message["role"] == "assistant"
    return message["content"]


def answers() -> list[str]:
    return [answer(row, side) for row in rows() for side in SIDES]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def longer_share(subset: str) -> float:
    lengths = [[len(answer(row, side).split()) for side in SIDES] for row in rows() if row["subset"] == subset]
    return float(np.mean([(a > b) + 0.5 * (a == b) for a, b in lengths]))


@cache
def wording_only() -> float:
    """The rule of the issue, with scikit-learn: binary 1-2-grams, differences with both signs, C = 0.3, no intercept, five folds by prompt, mean."""
    binary = CountVectorizer(ngram_range=(1, 2), binary=True).fit_transform(answers()).astype(float).tocsr()
    difference = binary[0::2] - binary[1::2]
    groups = [json.dumps(row["prompt"]) for row in rows()]
    right = []
    for train, test in GroupKFold(5).split(difference, groups=groups):
        x = sparse.vstack([difference[train], -difference[train]])
        model = LogisticRegression(C=0.3, fit_intercept=False, max_iter=5000).fit(x, np.repeat([1, 0], len(train)))
        right.append(float((difference[test] @ model.coef_[0] > 0).mean()))
    return float(np.mean(right))


def test_fields_ids_and_turns() -> None:
    assert Counter(key for row in rows() for key in row) == dict.fromkeys(("id", "subset", "prompt", "chosen", "rejected", "why"), len(rows()))
    assert len({row["id"] for row in rows()}) == len(rows())
    turns = Counter(tuple(m["role"] for m in row["prompt"]) for row in rows())
    assert set(turns) == {("user",), ("user", "assistant", "user")} and turns["user", "assistant", "user"] >= 0.15 * len(rows())
    assert all(m["content"].strip() == m["content"] != "" for row in rows() for m in (*row["prompt"], *row["chosen"], *row["rejected"]))
    assert all("\n" not in row["why"] and 3 <= len(row["why"].split()) <= 30 for row in rows())


def test_subsets_and_their_sizes() -> None:
    sizes = Counter(row["subset"] for row in rows())
    assert set(sizes) == set(SUBSETS) and min(sizes.values()) >= 700 and sum(sizes.values()) >= 2400


def test_lengths() -> None:
    outside = [text for text in answers() if not 10 <= len(text.split()) <= 120]
    assert len(outside) <= 0.02 * 2 * len(rows()), outside


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_chosen_answer_is_longer_in_half_of_the_pairs(subset: str) -> None:
    assert 0.45 <= longer_share(subset) <= 0.55


def test_wording_alone_tells_little() -> None:
    assert wording_only() <= 0.75


def test_no_answer_occurs_twice_and_hardly_any_opening() -> None:
    assert len({" ".join(words(text)) for text in answers()}) == 2 * len(rows())
    openings = Counter(" ".join(words(text)[:5]) for text in answers())
    assert max(openings.values()) <= 0.02 * 2 * len(rows())
    assert sum(n > 1 for n in openings.values()) <= 0.006 * 2 * len(rows())  # far below the bound: openings are varied


def test_no_two_pairs_share_a_sentence_frame() -> None:
    """No six words in a row stand in the answers of two pairs, nor do two prompts share most of their words."""
    where: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for row in rows():
        for side in SIDES:
            text = words(answer(row, side))
            for at in range(len(text) - 5):
                where[tuple(text[at : at + 6])].add(row["id"])
    assert not {" ".join(gram): ids for gram, ids in where.items() if len(ids) > 1}
    prompts = [(row["id"], frozenset(words(row["prompt"][-1]["content"]))) for row in rows()]
    near = [(a, b) for (a, x), (b, y) in combinations(prompts, 2) if len(x & y) > 0.6 * len(x | y)]
    assert not near


def test_variety() -> None:
    """Other scripts, emoji, code and tables, on both sides of the preference alike."""
    texts = {side: [answer(row, side) for row in rows()] for side in SIDES}
    for pattern, least in ((r"[\u0370-\u1fff\u3040-\u9fff]", 8), (r"[\U0001f300-\U0001faff\u2600-\u27bf]", 15), (r"[`{}|;=]", 15)):
        chosen, rejected = (sum(bool(re.search(pattern, text)) for text in texts[side]) for side in SIDES)
        assert min(chosen, rejected) >= least and max(chosen, rejected) <= 1.5 * min(chosen, rejected)


def test_no_links_addresses_or_telephone_numbers() -> None:
    from core.sae.corpus import PERSONAL

    assert not [text for text in answers() if PERSONAL.search(text)]


def test_our_reader_takes_every_pair_and_finds_no_duplicate() -> None:
    pairs, report = load_pairs(DataConfig(pairs=str(DEMO_PAIRS)))
    assert len(pairs) == len(rows()) and not report.refused and not report.duplicates.exact and not report.duplicates.near
    assert [(p.pair_id, p.chosen, p.meta["subset"], p.meta["why"]) for p in pairs] == [
        (row["id"], answer(row, "chosen"), row["subset"], row["why"]) for row in rows()
    ]


def test_the_card_s_figures() -> None:
    card = Path(DEMO / "README.md").read_text(encoding="utf-8")
    for subset in SUBSETS:
        n = sum(row["subset"] == subset for row in rows())
        assert f"| {subset} | {n} | {longer_share(subset):.3f} |" in card
    assert f"wording-only accuracy {wording_only():.3f}" in card
