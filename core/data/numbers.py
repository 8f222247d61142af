"""Numbers beside answers: scores, and what they say about which answer won."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from core.data.texts import Refused, is_missing

# Score columns of the chosen and of the rejected answer, as data sets name them: the judgement that chose. Rewards of a model
# are none, for they may well say the contrary (`scores_chosen` of RewardBench's and our own results, `chosen_reward`).
SCORE_COLUMNS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_avg_rating", "rejected_avg_rating"),
)
RANK_COLUMNS = (("rank_chosen", "rank_rejected"), ("chosen_rank", "rejected_rank"))  # 1 is the best


def number_of(value: Any, field: str) -> float:
    """A finite number, also from text. Raises Refused."""
    try:
        number = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        raise Refused(field, "not a number") from None
    if not math.isfinite(number):
        raise Refused(field, "missing" if is_missing(value) else "not a number")
    return number


def check_scores(row: Mapping[str, Any]) -> dict[str, float]:
    """The scores of chosen and rejected, where a row has both columns and one holds something. Raises Refused on a tie or a contradiction,
    of scores or of ranks."""
    for chosen, rejected in SCORE_COLUMNS:
        if chosen in row and rejected in row and not (_absent(row[chosen]) and _absent(row[rejected])):
            better, worse = number_of(row[chosen], chosen), number_of(row[rejected], rejected)
            if better <= worse:
                raise Refused(chosen, "a tie: both scores are equal" if better == worse else "below the score of rejected")
            return {"score_chosen": better, "score_rejected": worse}
    for chosen, rejected in RANK_COLUMNS:
        if not _absent(row.get(chosen)) and not _absent(row.get(rejected)) and number_of(row[chosen], chosen) >= number_of(row[rejected], rejected):
            raise Refused(chosen, "no better than the rank of rejected")
    return {}


def _absent(value: Any) -> bool:
    return is_missing(value) or (isinstance(value, str) and not value.strip())
