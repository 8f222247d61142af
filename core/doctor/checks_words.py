"""Checks of the split over words, where whole responses are read: do its sentences cause the reward, and would another draw
of training prompts mark the same words.
"""

from __future__ import annotations

from core.doctor.report import FAIL, PASS, WARN, Check, interval_text, judge
from core.doctor.word_figures import CAUSES, STABLE
from core.explain.word_causes import DeletionAgreement
from core.statistics.estimates import Estimate
from core.types import json_value

# [C] Measured on the embedded pairs: 0.45 at K = 32 with 560 training pairs, and rising with pairs; 0 is chance. Half of that
# is still read as information, with a warning.
WORD_STABILITY = 0.25


def word_causes(measured: DeletionAgreement | None) -> Check:
    """Whether what sentences carry ranks like what deleting each takes from the reward."""
    bound = "above random order with its whole interval, else it warns; below it with its whole interval fails"
    reason = "the split says where the reward is read; only a deletion shows that a sentence caused it"
    remedy = "read the marked words as places, not as causes; look at the deletions beside them"
    if measured is None:
        figure = "too few held-out responses of three sentences or more"
        return Check(name=CAUSES, status=WARN, figure=figure, bound=bound, reason=reason, remedy="give pairs with longer responses")
    agreement, random, lead = measured.agreement, measured.random, measured.lead
    status = judge((lead.low <= 0, WARN), (lead.high < 0, FAIL))
    return Check(
        name=CAUSES,
        status=status,
        figure=f"rank agreement {agreement.value:.2f}{interval_text(agreement.low, agreement.high, '.2f')}, in random order {random.value:+.2f}"
        f"{interval_text(random.low, random.high, '+.2f')}; the strongest sentence is the same in {measured.strongest.value:.0%} (by chance "
        f"{measured.by_chance:.0%}); n = {agreement.n:,} responses of three sentences or more, of {measured.n_asked:,} looked at",
        bound=bound,
        reason=reason,
        remedy="" if status == PASS else remedy,
        value=agreement.value,
        low=agreement.low,
        high=agreement.high,
        n=agreement.n,
        details=json_value(measured),
    )


def words_stable(measured: Estimate | None, *, refits: int, n_pairs: int, n_all: int) -> Check:
    """Whether refits on other draws of the training prompts rank the words alike. `n_pairs` of all `n_all` training pairs
    were drawn from."""
    bound = f"at least {WORD_STABILITY}, else it warns; an interval that reaches 0 fails"
    reason = "words that another draw of prompts would not mark are an accident of this fit (measured with 560 training pairs: 0.45 at K = 32)"
    remedy = "more training pairs, or a larger --k; until then trust sentences more than single words, and the deletions most"
    if measured is None:
        return Check(name=STABLE, status=WARN, figure="too few held-out responses whose tokens are kept", bound=bound, reason=reason, remedy=remedy)
    status = judge((measured.value < WORD_STABILITY, WARN), (measured.low <= 0, FAIL))
    return Check(
        name=STABLE,
        status=status,
        figure=f"rank correlation of words over {refits} refits on resampled prompts {measured.value:.2f}"
        f"{interval_text(measured.low, measured.high, '.2f')}; n = {measured.n:,} held-out responses; {n_pairs:,} of {n_all:,} training pairs",
        bound=bound,
        reason=reason,
        remedy="" if status == PASS else remedy,
        value=measured.value,
        low=measured.low,
        high=measured.high,
        n=measured.n,
        details={"refits": refits, "n_training_pairs": n_pairs},
    )
