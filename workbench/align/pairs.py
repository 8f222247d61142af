"""The generated pairs of a round with their rewards and what the filter decided. No Streamlit here; no engine is
loaded.

Artefacts never change, so what is read of them is cached: never write into it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from core.align.filtering import MARGIN
from core.align.records import STEPS, RoundRecord
from core.align.values import Candidate, Decision
from core.files import read_json_lines
from core.statistics.estimates import Estimate, mean_over_prompts
from core.statistics.intervals import wilson
from core.types import Accuracy

UNPARSED = "not parsed"
REASON_WORDS = {MARGIN: "intended winner scores lower", "at random": "dropped at random", UNPARSED: UNPARSED}


@dataclass(frozen=True, kw_only=True)
class GeneratedPair:
    """A generated pair: its two rewards (intended winner, other answer) if it was scored, the filter's decision if it
    was filtered.
    """

    candidate: Candidate
    rewards: tuple[float, float] | None
    decision: Decision | None

    @property
    def fate(self) -> str:
        """`kept`, the kind of the reason for which it was dropped, `not parsed`, or empty before the filter."""
        if not self.candidate.parsed:
            return UNPARSED
        return "" if self.decision is None else "kept" if self.decision.kept else self.decision.reason.partition(":")[0]

    @property
    def why(self) -> str:
        """The whole reason why DPO does not learn from the pair; empty where it does."""
        reason = self.candidate.refused or ("" if self.decision is None else self.decision.reason)
        return f"{UNPARSED}: {reason}" if self.candidate.refused else reason

    @property
    def margin(self) -> float | None:
        """Reward of the intended winner less that of the other answer; None where one of them is missing or not finite."""
        return None if self.rewards is None or not np.isfinite(self.rewards).all() else self.rewards[0] - self.rewards[1]


def reason_words(reason: str) -> str:
    """The reason of a drop as pages show it; what follows the colon is the engine's text."""
    kind, colon, more = reason.partition(":")
    return REASON_WORDS.get(kind, kind) + colon + more


def pairs_of(round: RoundRecord) -> tuple[GeneratedPair, ...]:
    """Every pair that was generated in a round, in the order of generation."""
    folders = tuple(round.steps.get(step) for step in STEPS[:3])
    return () if folders[0] is None else _pairs(folders[0], *folders[1:])


@lru_cache(maxsize=24)
def _pairs(candidates: Path, rewards: Path | None, filtered: Path | None) -> tuple[GeneratedPair, ...]:
    scored = {row["candidate_id"]: (_number(row["reward_chosen"]), _number(row["reward_rejected"])) for row in _rows(rewards, "rewards.jsonl")}
    decided = {row["candidate_id"]: Decision(**row) for row in _rows(filtered, "decisions.jsonl")}
    parsed = (Candidate.from_json(row) for row in _rows(candidates, "candidates.jsonl"))
    return tuple(GeneratedPair(candidate=c, rewards=scored.get(c.candidate_id), decision=decided.get(c.candidate_id)) for c in parsed)


def _rows(folder: Path | None, name: str) -> list[Any]:
    return [] if folder is None else read_json_lines(folder / name)


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def groups(pairs: Sequence[GeneratedPair]) -> np.ndarray:
    """The number of each pair's prompt [n pairs]; pairs with the same prompt have the same number."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(json.dumps(pair.candidate.prompt), len(numbers)) for pair in pairs], dtype=np.int64)


def mean_of(values: Sequence[float | None], pairs: Sequence[GeneratedPair]) -> Estimate | None:
    """The mean over pairs with its 95 % bootstrap interval over prompts; None for fewer than two prompts."""
    numbers = np.array([np.nan if value is None else value for value in values], dtype=float)
    return mean_over_prompts(numbers, groups(pairs)) if len(numbers) else None


def share_kept(counts: Mapping[str, Any]) -> Accuracy | None:
    """The share of the parsed pairs that was kept, with its Wilson interval; None before the filter."""
    if "kept" not in counts:
        return None
    n, kept = int(counts["parsed"]), int(counts["kept"])
    low, high = wilson(kept, n)
    return Accuracy(accuracy=kept / n if n else float("nan"), low=low, high=high, n=n)


def flow(round: RoundRecord) -> dict[str, Any]:
    """A round's numbers of pairs: generated, parsed, not parsed, kept, dropped, and dropped for each reason.

    Before the filter `kept` and `dropped` are None.
    """
    counts = round.counts or {}
    generated, parsed = int(counts.get("generated", 0)), int(counts.get("parsed", 0))
    known = {"round": round.round, "generated": generated, "parsed": parsed, UNPARSED: generated - parsed}
    return {**known, "kept": counts.get("kept"), "dropped": counts.get("dropped"), "reasons": dict(counts.get("reasons") or {})}


def row_of(pair: GeneratedPair) -> dict[str, Any]:
    """A pair as a row of a downloaded file."""
    rewards = pair.rewards or (None, None)
    return {
        "candidate": pair.candidate.candidate_id,
        "fate": pair.fate,
        "why": pair.why,
        "margin": pair.margin,
        "reward intended": rewards[0],
        "reward other": rewards[1],
        "prompt": list(pair.candidate.prompt),
        "intended": pair.candidate.chosen,
        "other": pair.candidate.rejected,
        "latents": [] if pair.decision is None else [dict(latent) for latent in pair.decision.latents],
        "raw": list(pair.candidate.raw) if not pair.candidate.parsed else [],
    }
