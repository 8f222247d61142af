"""A human-readable name of a latent, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PERSON = "person"
POOR = 0.7  # a label that detects its latent's activity no better than this is poorly scored (our choice; 0.5 is chance)


@dataclass(frozen=True, kw_only=True)
class Label:
    """`text` names what the latent is active on; `source` says who wrote it (`person`, or a machine's name), `score` how well it detects (0 to 1)."""

    text: str
    source: str
    score: float | None = None

    @property
    def weakness(self) -> str:
        """What to say against it; empty where a person wrote it and its score, if it has one, is good."""
        automatic = "" if self.source == PERSON else f"was written automatically ({self.source})"
        poor = f"scores {self.score:.2f} only" if self.score is not None and self.score < POOR else ""
        return " and ".join(part for part in (automatic, poor) if part)


Labels = Mapping[int, Label]
