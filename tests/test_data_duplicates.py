"""Duplicates against a comparison of all with all, and against cases by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from data_helpers import pair

from core.data import duplicates
from core.data.duplicates import find_duplicates, fold, signatures
from core.types import PreferencePair, PreferencePairs


def grams(text: str) -> set[bytes]:
    data = text.encode() + b"\0\0\0\0"
    return {data[i : i + 5] for i in range(len(data) - 4)}


def jaccard(a: set[bytes], b: set[bytes]) -> float:
    return len(a & b) / len(a | b)


def near_by_brute_force(pairs: Sequence[PreferencePair]) -> set[tuple[str, str]]:
    prompts = [grams("user: " + fold(p.prompt[0]["content"])) for p in pairs]
    answers = [grams("\n".join(sorted((fold(p.chosen), fold(p.rejected))))) for p in pairs]
    near = (
        (i, j) for i, j in combinations(range(len(pairs)), 2) if jaccard(prompts[i], prompts[j]) >= 0.8 and jaccard(answers[i], answers[j]) >= 0.8
    )
    return {(pairs[i].pair_id, pairs[j].pair_id) for i, j in near}


def test_exact_duplicates_are_folded_and_swaps_contradict() -> None:
    pairs = PreferencePairs(
        pairs=(
            pair(0, "What is it?", "A house.", "A tree."),
            pair(1, "Something else entirely", "yes", "no"),
            pair(2, "what IS\n it?", "a  house.", "A TREE."),
            pair(3, "Something else entirely", "no", "yes"),
            pair(4, "What is it?", "A tree.", "A horse."),
        )
    )
    groups = find_duplicates(pairs)
    assert groups.exact == (("p0", "p2"), ("p1", "p3"))
    assert groups.contradictory == (("p1", "p3"),)
    assert groups.near == ()
    report = groups.to_json()
    assert (report["n_exact_groups"], report["n_exact_extra"], report["n_contradictory_groups"], report["n_near_groups"]) == (2, 2, 1, 0)


def test_equal_answers_to_another_prompt_or_role_are_different() -> None:
    a = pair(0, "What is it?", "A house.", "A tree.")
    b = pair(1, "Where do you live now?", "A house.", "A tree.")
    c = PreferencePair(pair_id="c", prompt=({"role": "system", "content": "What is it?"},), chosen="A house.", rejected="A tree.")
    assert find_duplicates(PreferencePairs(pairs=(a, b, c))).exact == ()


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_pairs(n: int) -> None:
    pairs = PreferencePairs(pairs=tuple(pair(i, f"{i}", "x", "y") for i in range(n)))
    assert find_duplicates(pairs).near == ()


def test_near_duplicates_equal_a_comparison_of_all_with_all() -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(500)]

    def text(n: int) -> str:
        return " ".join(rng.choices(words, k=n))

    def edited(text: str, n: int) -> str:
        parts = text.split()
        for _ in range(n):
            parts[rng.randrange(len(parts))] = rng.choice(words)
        return " ".join(parts)

    similar: list[PreferencePair] = []
    for _ in range(80):
        base = (text(rng.randint(4, 20)), text(rng.randint(5, 40)), text(rng.randint(5, 40)))
        for copy in range(3):
            prompt = base[0] + "?" * copy if rng.random() < 0.7 else edited(base[0], 1)
            similar.append(pair(len(similar), prompt, edited(base[1], rng.randint(0, 1)), edited(base[2], rng.randint(0, 1))))
    pairs = PreferencePairs(pairs=tuple(similar))
    groups = find_duplicates(pairs)
    exact_extra = {pair_id for group in groups.exact for pair_id in group[1:]}
    heads = [p for p in pairs if p.pair_id not in exact_extra]
    true = near_by_brute_force(heads)
    together = {two for group in groups.near for two in combinations(group, 2)}
    assert len(true) > 60
    assert len(true - together) <= 0.01 * len(true)  # missed: at 0.8 two in a thousand
    for group in groups.near:  # nothing is in a group without a true neighbour in it
        assert all(any((min(a, b, key=_number), max(a, b, key=_number)) in true for b in group if b != a) for a in group)


def _number(pair_id: str) -> int:
    return int(pair_id[1:])


def test_a_swapped_near_duplicate_is_found() -> None:
    a = pair(0, "How are seeds digested by a person?", "They pass through the body unharmed.", "They grow into a large plant there.")
    b = pair(1, "How are seeds digested by a person??", a.rejected, a.chosen)
    assert find_duplicates(PreferencePairs(pairs=(a, b))).near == (("p0", "p1"),)


def test_signatures_estimate_the_similarity() -> None:
    rng = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz "
    errors = []
    for _ in range(60):
        base = "".join(rng.choices(letters, k=600))
        cut = rng.randint(0, 500)
        other = base[cut:] + "".join(rng.choices(letters, k=cut))
        signature = signatures([("", base), ("", other)])
        errors.append(np.mean(signature[0] == signature[1]) - jaccard(grams(base), grams(other)))
    assert abs(np.mean(errors)) < 0.02
    assert np.std(errors) < 0.08


def test_signatures_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [(f"prompt {i} ä", "answer 🙂 " * (i % 7)) for i in range(50)]
    whole = signatures(texts)
    monkeypatch.setattr(duplicates, "BATCH_CHARACTERS", 40)
    assert np.array_equal(signatures(texts), whole)


def test_a_bucket_of_thousands_of_alike_texts_stays_cheap() -> None:
    similar = tuple(pair(i, "The same long question that everybody is asked again and again", f"Answer {i}", f"Reply {i}") for i in range(2000))
    signature = signatures([("x", p.chosen) for p in similar])
    candidates = duplicates.candidate_pairs(signature)
    assert len(candidates) <= duplicates.COMPARISONS * len(similar)
    find_duplicates(PreferencePairs(pairs=similar))
