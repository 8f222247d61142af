"""Checks of the preference pairs: whether training has seen the test split, and whether pairs contradict each other.

Every pair that the language model could read is counted, so these figures have no interval.
core/doctor/checks_left_out.py checks the other pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from core.data.duplicates import Duplicates, find_duplicates, fold_prompt
from core.doctor.report import FAIL, WARN, Check, judge
from core.types import SPLITS, PreferencePairs

# [C] Shares of pairs. A near-duplicate across splits is a leak of one pair; one in a hundred moves an accuracy by less
# than its interval.
NEAR_FAIL = 0.01
CONTRADICTORY_FAIL = 0.01
EXACT_WARN = 0.05


@dataclass(frozen=True, kw_only=True)
class Leak:
    """What two splits share, by their names: prompts, and pairs of the later split that have a duplicate in the earlier
    one.
    """

    prompts: Mapping[str, int]
    pairs: Mapping[str, int]
    n_test_pairs: int

    @property
    def test_share(self) -> float:
        """Share of the test pairs that have an exact or near duplicate among the training or validation pairs."""
        return max(self.pairs.get("train/test", 0), self.pairs.get("validation/test", 0)) / max(self.n_test_pairs, 1)


def split_leakage(pairs: PreferencePairs, duplicates: Duplicates | None = None) -> Check:
    """Whether two splits share a prompt or near-duplicate pairs. Pairs in no split (`unused`) don't count."""
    leak = find_leak(pairs, duplicates or find_duplicates(pairs))
    n_prompts, n_near = sum(leak.prompts.values()), sum(leak.pairs.values())
    shared = ", ".join(f"{n} in {sides}" for sides, n in leak.prompts.items()) or "no prompt"
    near = ", ".join(f"{n} in {sides}" for sides, n in leak.pairs.items()) or "no pair"
    status = judge((n_near > 0, WARN), (n_prompts > 0, FAIL), (leak.test_share > NEAR_FAIL, FAIL))
    remedy = {
        True: "split by prompt (--split-by prompt), and give one prompt one wording: letter case and white space don't make two prompts",
        False: "leave near-duplicate pairs out of the data, or read the test accuracy as a little too high",
    }[n_prompts > 0]
    return Check(
        name="split leakage",
        status=status,
        figure=f"on two sides: {shared}; with a near-duplicate on another side: {near} ({leak.test_share:.1%} of test pairs)",
        bound=f"no prompt on two sides; near-duplicates warn, above {NEAR_FAIL:.0%} of the test pairs they fail",
        reason="what a head has seen in training it need not understand: accuracy on such pairs says nothing about new prompts",
        remedy=remedy if status != "pass" else "",
        value=float(n_prompts),
        n=len(pairs),
        details={"prompts": dict(leak.prompts), "pairs": dict(leak.pairs), "n_test_pairs": leak.n_test_pairs, "test_share": leak.test_share},
    )


def find_leak(pairs: PreferencePairs, duplicates: Duplicates) -> Leak:
    """Counts the prompts and pairs that two of train, validation and test share."""
    split_of = {pair.pair_id: name for pair, name in zip(pairs, pairs.split, strict=True) if name in SPLITS}
    prompts: dict[str, list[str]] = {}
    for pair in pairs:
        if pair.pair_id in split_of:
            prompts.setdefault(fold_prompt(pair), []).append(split_of[pair.pair_id])
    groups = [[split_of[name] for name in group if name in split_of] for group in (*duplicates.exact, *duplicates.near)]
    return Leak(
        prompts=_on_two_sides(prompts.values(), count_things=True),
        pairs=_on_two_sides(groups, count_things=False),
        n_test_pairs=pairs.split.count("test"),
    )


def _on_two_sides(things: Iterable[Sequence[str]], *, count_things: bool) -> dict[str, int]:
    """For each two splits the number of things in both, or the number of those things' members in the later split."""
    counts: dict[str, int] = {}
    for sides in things:
        for number, first in enumerate(SPLITS):
            for second in SPLITS[number + 1 :]:
                if first in sides and second in sides:
                    counts[f"{first}/{second}"] = counts.get(f"{first}/{second}", 0) + (1 if count_things else sides.count(second))
    return counts


def duplicate_pairs(pairs: PreferencePairs, duplicates: Duplicates | None = None) -> Check:
    """Pairs that occur twice, and pairs that occur twice with opposite labels."""
    copies = duplicates or find_duplicates(pairs)
    n = max(len(pairs), 1)
    against, again, near = (sum(map(len, groups)) / n for groups in (copies.contradictory, copies.exact, copies.near))
    extra = sum(len(group) - 1 for group in copies.exact) / n
    status = judge((bool(copies.contradictory), WARN), (extra > EXACT_WARN, WARN), (against > CONTRADICTORY_FAIL, FAIL))
    return Check(
        name="duplicates",
        status=status,
        figure=f"{against:.1%} of pairs contradict a copy of themselves, {extra:.1%} are repeated, {near:.1%} have a near-duplicate",
        bound=f"contradictory pairs warn, above {CONTRADICTORY_FAIL:.0%} they fail; above {EXACT_WARN:.0%} repeated pairs warn",
        reason="a pair that also stands there with its answers exchanged can't be learnt and caps the accuracy; repeated pairs weigh more",
        remedy="" if status == "pass" else "take the pairs listed in `details` out of the file, or settle which label holds",
        value=against,
        n=len(pairs),
        details={
            "contradictory": [list(group) for group in copies.contradictory[:20]],
            "exact_share": again,
            "extra": extra,
            "near_share": near,
        },
    )
