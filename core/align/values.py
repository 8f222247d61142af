"""What flows through a round of alignment: prompts, generated candidate pairs, and what the filter decided about each (METHOD.md section 5).

Counts are in pairs. `generated` are all candidates, `parsed` those with two usable texts; every parsed one is kept or dropped, with its reasons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from core.types import Message, PreferencePair, sha256_of


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a policy is asked, without any instruction of ours. `meta` holds what the source said beside it, JSON values only."""

    messages: tuple[Message, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def prompt_id(self) -> str:
        """16 hex digits, the same as `PreferencePair.prompt_id` of a pair with this prompt."""
        return sha256_of(list(self.messages))[:16]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One generated pair. `chosen` is the intended winner (two_prompts, contrastive) or the higher-scored sample (best_of_n), `rejected` the other.

    `refused` says why it is no pair (unparsed output, nothing left to choose among) and is empty for a pair; `raw` keeps the texts as generated.
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
        """The candidate as DPO sees it: the plain prompt, no instruction."""
        return PreferencePair(pair_id=self.candidate_id, prompt=self.prompt, chosen=self.chosen, rejected=self.rejected, meta=dict(self.meta))

    def to_json(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in ("candidate_id", "chosen", "rejected", "refused")}
        return {**values, "prompt": list(self.prompt), "raw": list(self.raw), "meta": dict(self.meta)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Candidate:
        return cls(**{**row, "prompt": tuple(row["prompt"]), "raw": tuple(row["raw"])})


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the filter did with a parsed candidate. `reason` is empty for a kept one; `latents` spoke most against the intended winner."""

    candidate_id: str
    kept: bool
    margin: float | None = None
    reason: str = ""
    latents: Sequence[Mapping[str, Any]] = ()

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "latents": [dict(one) for one in self.latents]}
