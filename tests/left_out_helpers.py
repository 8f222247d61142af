"""Unreadable pairs made by hand: their counts, and pairs that are lost by length or by one side."""

from __future__ import annotations

from typing import Any

from core.reward.pair_counts import LostPair, pair_counts
from core.types import PreferencePair, PreferencePairs

READING = {"max_length": 128, "over_length": "drop_turns", "control_tokens": "refuse", "think": "keep"}


def pair(number: int, *, prompt: str = "", chosen: str = "a", rejected: str = "b", **meta: Any) -> PreferencePair:
    """Pair `number`, which has a prompt that no other pair has."""
    messages = ({"role": "user", "content": f"{prompt}{number}"},)
    return PreferencePair(pair_id=f"p{number}", prompt=messages, chosen=chosen, rejected=rejected, meta={"row": number + 1, **meta})


def counts_of(*, n: int = 100, refused: int = 0, cut: int = 0, rows: int = 0, split: str = "test") -> dict[str, Any]:
    """`pair_counts` of n pairs of one split, the first of which are refused and the next read with a cut prompt; `rows`
    more were unusable.
    """
    pairs = PreferencePairs(pairs=tuple(pair(i) for i in range(n)), split=(split,) * n)
    report = {
        "refused": [{"row": i, "field": "chosen", "reason": "140 tokens, at most 128 are read"} for i in range(refused)],
        "refused_sides": ["chosen"] * refused,
        "shortened_pairs": list(range(refused, refused + cut)),
        "closing_tokens_cut": 0,
        "closing_tokens": [],
        "thinking": {},
    }
    bad = [{"row": n + i, "field": "chosen", "reason": "empty"} for i in range(rows)]
    duplicates = {f"n_{name}_extra": 0 for name in ("exact", "contradictory", "near")}
    data = {"n_rows": n + rows, "refused": bad, "refused_by_reason": {"chosen: empty": rows}, "duplicates": duplicates}
    return pair_counts(pairs, data, report, READING)


def lost(preference_pair: PreferencePair, side: str = "both", split: str = "test") -> LostPair:
    return LostPair(index=0, pair=preference_pair, split=split, side=side, reason="140 tokens, at most 128 are read")


def lost_by_side(side: str) -> tuple[PreferencePairs, list[LostPair]]:
    """70 kept pairs, and 30 of which this side alone was unreadable; they do not differ otherwise."""
    kept = PreferencePairs(pairs=tuple(pair(i) for i in range(100, 170)), split=("test",) * 70)
    return kept, [lost(pair(number), side) for number in range(100, 400, 10)]
