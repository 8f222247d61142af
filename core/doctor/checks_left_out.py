"""Checks of the pairs that no figure includes: how many they are, and whether they differ from the pairs that were
read.

A pair that the language model can't read (too long, a control token in a text, a dialogue that its template refuses) is
left out of training and of every accuracy. core.reward.pair_counts counts them; shares are counted over all pairs
and have no interval. Whether the lost pairs differ is tested with the prompt as the unit, since pairs of one prompt
share its length and its kind: a bootstrap over prompts for lengths, a permutation of prompts for kinds of pairs, the
exact sign test over prompts for the two sides. The four comparisons share one error of 5 % (Bonferroni), so a fit whose
lost pairs are like the others warns once in twenty times at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import stats

from core.doctor.report import FAIL, PASS, WARN, Check, judge, listed
from core.reward.evaluation import subset_names
from core.reward.pair_counts import LostPair
from core.statistics.bootstrap import RESAMPLES, SEED, prompt_sums, resampled_sums
from core.types import SPLITS, JsonFields, PreferencePairs

# [C] If a share q of a split is lost and the lost pairs' accuracy lies d away from the kept ones', the accuracy over
# all pairs lies q * d away from the one that is shown. At q = 0.01 that is one point at most (d = 1), which is half the
# width of the interval of 8,000 test pairs at an accuracy of 0.7. At q = 0.2, lost pairs that are no better than chance
# (d = 0.25 where the kept ones have 0.75) take five points: more than SparseRM's lead over most controls in the paper's
# tables.
SHARE_WARN, SHARE_FAIL = 0.01, 0.20
# [C] A prompt without its first turns still asks the same last question, so a cut costs less than a loss: it warns
# later and never fails.
CUT_WARN = 0.05
# [C] Where the two sides are lost unequally, being lost goes with the label. Where fewer than one pair in twenty is
# lost, that moves no figure by more than its interval.
SIDES_FAIL = 0.05
FEWEST = 10  # prompts with a lost pair under which a comparison says nothing, as in core.reward.evaluation
COMPARISONS = 4
LEVEL = 0.05 / COMPARISONS
NAME_LOST, NAME_DIFFER = "pairs left out", "pairs left out differ"
REMEDY = (
    "a larger --max-length, or --over-length drop_turns for long prompts; mend the texts that hold control tokens; "
    "else report the figures as those of the pairs that were read, with this count beside them"
)
BOUND_LOST = (
    f"above {SHARE_WARN:.0%} of a split's pairs warns, above {SHARE_FAIL:.0%} fails; above {CUT_WARN:.0%} of prompts cut, "
    f"or above {SHARE_WARN:.0%} of the source's rows unusable, warns"
)
REASON_LOST = "an accuracy is that of the pairs that were read: lost ones can move it by their share times how much harder they are"
BOUND_DIFFER = (
    f"lengths whose interval holds 0, kinds and sides with p at least {LEVEL:.2g}: else it warns; sides that are lost "
    f"unequally fail where more than {SIDES_FAIL:.0%} of a split's pairs are lost"
)
REASON_DIFFER = (
    "pairs that are lost by length are longer ones, so figures hold for shorter pairs only; where one side is lost more "
    "often, being kept depends on the label, and length against preference is measured on a selected sample"
)


def lost_share(counts: Mapping[str, Any] | None) -> float:
    """The largest share of lost pairs of train, validation or test; 0 where nothing was counted. `counts`:
    `pair_counts`.
    """
    return max(_shares(counts, "n_refused", "n_pairs").values()) if counts else 0.0


def pairs_left_out(counts: Mapping[str, Any] | None) -> Check:
    """The share of each split's pairs that can't be read, of prompts cut, and of rows that could not be used.

    `counts` is the fit's `pair_counts`; None where an older version made it.
    """
    if counts is None:
        figure = "this fit did not count the pairs that it could not read"
        remedy = "fit it again with this version"
        return Check(name=NAME_LOST, status=WARN, figure=figure, bound=BOUND_LOST, reason=REASON_LOST, remedy=remedy)
    shares, cuts = _shares(counts, "n_refused", "n_pairs"), _shares(counts, "n_shortened", "n_kept")
    worst = max(shares, key=lambda name: (shares[name], counts["splits"][name]["n_pairs"]))
    rows = counts["n_rows_refused"] / max(counts["n_rows"], 1)
    status = judge(
        (shares[worst] > SHARE_WARN, WARN),
        (max(cuts.values()) > CUT_WARN, WARN),
        (rows > SHARE_WARN, WARN),
        (shares[worst] > SHARE_FAIL, FAIL),
    )
    return Check(
        name=NAME_LOST,
        status=status,
        figure=listed([*_lost_figure(counts), *_cut_figure(counts), *_row_figure(counts)]),
        bound=BOUND_LOST,
        reason=REASON_LOST,
        remedy="" if status == PASS else REMEDY,
        value=shares[worst],
        n=counts["splits"][worst]["n_pairs"],
        details={
            "share_refused": shares,
            "share_shortened": cuts,
            "by_reason": counts["by_reason"],
            "first_pairs": counts["first_pairs"],
        },
    )


def _shares(counts: Mapping[str, Any], part: str, whole: str) -> dict[str, float]:
    splits = {name: counts["splits"][name] for name in SPLITS}
    return {name: numbers[part] / numbers[whole] if numbers[whole] else 0.0 for name, numbers in splits.items()}


def _by_split(counts: Mapping[str, Any], part: str, whole: str) -> str:
    """`21 of 49 test pairs (42.9%)`, for each split that has pairs."""
    shares, splits = _shares(counts, part, whole), {name: counts["splits"][name] for name in SPLITS}
    return ", ".join(
        f"{numbers[part]:,} of {numbers[whole]:,} {name} pairs ({shares[name]:.1%})" for name, numbers in splits.items() if numbers[whole]
    )


def _lost_figure(counts: Mapping[str, Any]) -> list[str]:
    if not counts["n_pairs_refused"]:
        return [f"all {counts['n_pairs']:,} pairs were read"]
    reasons = ", ".join(f"{reason}: {n:,}" for reason, n in counts["by_reason"].items())
    return [f"not read: {_by_split(counts, 'n_refused', 'n_pairs')}", reasons]


def _cut_figure(counts: Mapping[str, Any]) -> list[str]:
    return [f"prompts cut: {_by_split(counts, 'n_shortened', 'n_kept')}"] if counts["n_shortened"] else []


def _row_figure(counts: Mapping[str, Any]) -> list[str]:
    return [f"{counts['n_rows_refused']:,} of {counts['n_rows']:,} rows unusable"] if counts["n_rows_refused"] else []


# --- are the lost pairs like the others? -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LengthDifference(JsonFields):
    """Mean characters of the kept and of the lost pairs, and the second less the first.

    `low`, `high`: interval of a bootstrap over prompts at level 1 - LEVEL.
    """

    kept: float
    lost: float
    difference: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        interval = f"{self.low:+,.0f} to {self.high:+,.0f}"
        return f"{self.lost:,.0f} against {self.kept:,.0f} characters, {self.difference:+,.0f} ({interval})"


def left_out_differ(kept: PreferencePairs, left_out: Sequence[LostPair] | None, share: float) -> Check:
    """Whether the lost pairs of train, validation and test differ from the kept ones in length, kind or side.

    `left_out` is None where the cache does not hold them any more. `share` of the worst split's pairs was lost.
    """
    if left_out is None:
        figure = "can't be told: this cache does not hold the fit's pairs and what was not read of them"
        remedy = "fit it again with this cache"
        return Check(name=NAME_DIFFER, status=WARN, figure=figure, bound=BOUND_DIFFER, reason=REASON_DIFFER, remedy=remedy)
    used = [pair for pair in left_out if pair.split in SPLITS]
    n_prompts = len({pair.pair.prompt_id for pair in used})
    if n_prompts >= FEWEST:
        return _compared(kept.take(np.flatnonzero(np.isin(np.array(kept.split), SPLITS))), used, share)
    few = f"{len(used):,} pairs of {n_prompts:,} prompts were not read: too few to tell (at least {FEWEST} prompts)"
    status = WARN if share > SHARE_WARN else PASS
    return Check(
        name=NAME_DIFFER,
        status=status,
        figure=few if used else "no pair was lost",
        bound=BOUND_DIFFER,
        reason=REASON_DIFFER,
        remedy="" if status == PASS else REMEDY,
        n=len(used),
    )


def _compared(kept: PreferencePairs, left_out: Sequence[LostPair], share: float) -> Check:
    both = PreferencePairs(pairs=(*kept.pairs, *(lost_pair.pair for lost_pair in left_out)))
    lost, groups = np.arange(len(both)) >= len(kept), both.prompt_groups()
    answers = length_difference(np.array([(len(pair.chosen) + len(pair.rejected)) / 2 for pair in both]), lost, groups)
    prompts = length_difference(np.array([float(sum(len(m["content"]) for m in pair.prompt)) for pair in both]), lost, groups)
    field, names = subset_names(both, np.arange(len(both)))
    kinds = kinds_p_value(names, lost, groups) if field else None
    chosen, rejected, sides = sides_sign_test(left_out)
    status = judge(
        (answers.clear or prompts.clear, WARN),
        (kinds is not None and kinds < LEVEL, WARN),
        (sides < LEVEL, WARN),
        (sides < LEVEL and share > SIDES_FAIL, FAIL),
    )
    figures = [
        f"answers {answers}",
        f"prompts {prompts}",
        f"kinds of pairs ({field}): p = {kinds:.2g}" if kinds is not None else "the pairs name no kinds",
        f"the chosen answer alone is lost more often in {chosen:,} prompts, the rejected one in {rejected:,}: p = {sides:.2g}",
    ]
    return Check(
        name=NAME_DIFFER,
        status=status,
        figure=f"lost against kept pairs: {listed(figures)}; n = {len(left_out):,} lost and {len(kept):,} kept pairs",
        bound=BOUND_DIFFER,
        reason=REASON_DIFFER,
        remedy="" if status == PASS else REMEDY,
        value=answers.difference,
        low=answers.low,
        high=answers.high,
        n=len(both),
        details={
            "answers": answers.to_json(),
            "prompts": prompts.to_json(),
            "kinds": {"field": field, "p_value": kinds},
            "sides": {"chosen": chosen, "rejected": rejected, "p_value": sides},
            "n_lost": len(left_out),
            "n_kept": len(kept),
            "level": LEVEL,
        },
    )


def length_difference(
    lengths: Float[np.ndarray, " n_pairs"], lost: Bool[np.ndarray, " n_pairs"], groups: Int[np.ndarray, " n_pairs"]
) -> LengthDifference:
    """Mean length of the lost pairs less that of the kept ones.

    Resamples of prompts without a lost or without a kept pair say nothing and are left out.
    """
    columns = np.column_stack([lost, lost * lengths, ~lost, ~lost * lengths]).astype(np.float64)
    sums = prompt_sums(columns, groups)
    drawn = resampled_sums(sums)
    drawn = drawn[(drawn[:, 0] > 0) & (drawn[:, 2] > 0)]
    differences = drawn[:, 1] / drawn[:, 0] - drawn[:, 3] / drawn[:, 2]
    mean_lost, mean_kept = (float(lengths[rows].mean()) if rows.any() else 0.0 for rows in (lost, ~lost))
    low, high = np.quantile(differences, [LEVEL / 2, 1 - LEVEL / 2]) if len(differences) else (0.0, 0.0)
    return LengthDifference(kept=mean_kept, lost=mean_lost, difference=mean_lost - mean_kept, low=float(low), high=float(high))


def kinds_p_value(names: Sequence[str], lost: Bool[np.ndarray, " n_pairs"], groups: Int[np.ndarray, " n_pairs"]) -> float:
    """Permutation test over prompts that being lost does not depend on the kind of pair; 1 where there is one kind
    only.

    A prompt's kind is that of its first pair, and it is lost where any of its pairs is. The statistic is chi-square's;
    the kinds are dealt anew to the prompts RESAMPLES times.
    """
    first = np.unique(groups, return_index=True)[1]
    kinds = np.unique(np.array(names)[first], return_inverse=True)[1]
    gone = prompt_sums(lost.astype(np.int32), groups) > 0
    expected = np.bincount(kinds) * gone.mean()
    if len(expected) < 2 or gone.all() or not gone.any():
        return 1.0

    def statistic(dealt: np.ndarray) -> float:
        # The kept prompts' terms are a constant times these, so they change no order.
        return float((np.square(np.bincount(dealt[gone], minlength=len(expected)) - expected) / expected).sum())

    rng, of_data = np.random.default_rng(SEED), statistic(kinds)
    reached = sum(statistic(rng.permutation(kinds)) >= of_data - 1e-9 for _ in range(RESAMPLES))
    return (1 + reached) / (1 + RESAMPLES)


def sides_sign_test(left_out: Sequence[LostPair]) -> tuple[int, int, float]:
    """Prompts of which more pairs lost the chosen answer alone than the rejected one alone, prompts the other way
    round, and the exact two-sided p-value."""
    votes: dict[str, int] = {}
    for lost_pair in left_out:
        votes[lost_pair.pair.prompt_id] = votes.get(lost_pair.pair.prompt_id, 0) + {"chosen": 1, "rejected": -1}.get(lost_pair.side, 0)
    chosen, rejected = (sum(vote * sign > 0 for vote in votes.values()) for sign in (1, -1))
    p_value = float(stats.binomtest(chosen, chosen + rejected).pvalue) if chosen + rejected else 1.0
    return chosen, rejected, p_value
