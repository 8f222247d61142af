"""Values of a round of alignment: prompts, generated candidate pairs, the filter's decisions (METHOD.md section 5).

Counts are in pairs. `generated` counts all candidates, `parsed` those with two usable texts; every parsed candidate is
kept, or dropped with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from core.types import JsonFields, Message, PreferencePair, sha256_of


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt for the policy, without the project's instructions; `meta`: its source's other fields, as JSON."""

    messages: tuple[Message, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def prompt_id(self) -> str:
        """16 hex digits, the same as `PreferencePair.prompt_id` of a pair with this prompt."""
        return sha256_of(list(self.messages))[:16]


@dataclass(frozen=True, kw_only=True)
class Candidate(JsonFields):
    """One generated pair: `chosen` is the intended winner, `rejected` the other text.

    In best_of_n the winner is the sample with the higher reward. `refused` is the reason why there is no pair (unparsed
    output, too few usable samples), empty for a pair; `raw` holds the texts as generated.
    """

    candidate_id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    refused: str = ""
    raw: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parsed(self) -> bool:
        return not self.refused

    def pair(self) -> PreferencePair:
        """The candidate as DPO reads it: the plain prompt, without an instruction."""
        return PreferencePair(pair_id=self.candidate_id, prompt=self.prompt, chosen=self.chosen, rejected=self.rejected, meta=dict(self.meta))

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Candidate:
        return cls(**{**row, "prompt": tuple(row["prompt"]), "raw": tuple(row["raw"])})


@dataclass(frozen=True, kw_only=True)
class Decision(JsonFields):
    """The filter's decision on a candidate; `reason` is empty if kept; `latents` lowered its margin most."""

    candidate_id: str
    kept: bool
    margin: float | None = None
    reason: str = ""
    latents: Sequence[Mapping[str, Any]] = ()
