"""A label is a readable name of a latent, with its origin and its scores.

On disk a label is a row in Neuronpedia's explanation format, with further fields of ours:

    modelId, layer, index       of the latent; `index` is a string
    description                 the label's text
    typeName                    by what method it was made
    explanationModelName        the language model that wrote it; empty or null if none did
    scores                      a list of explanationScoreTypeName, explanationScoreModelName, value; ours: low, high, n,
                                windows, createdAt
    source, author, createdAt   our fields: one of SOURCES, who wrote it, and when
    saeSha256                   our field: the SAE whose latent it is (`identity["sha256"]`)
    madeFor                     our field: the SAE that the label was made for, if another one or not known (NOT_STATED)

Texts come from files, people and models and are not trusted: each becomes one line without hidden characters
(core/text_safety.py) when it is read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from core.text_safety import without_hidden

PERSON = "person"
# Best first: a latent is named by the first source that has a label. People also wrote `shipped` (ours) and `written`
# (imported from a file) labels.
SHIPPED, WRITTEN, NEURONPEDIA, ENDPOINT, AUTOMATIC = "shipped", "written", "neuronpedia", "endpoint", "automatic"
SOURCES = (PERSON, SHIPPED, WRITTEN, NEURONPEDIA, ENDPOINT, AUTOMATIC)
BY_HAND = (PERSON, SHIPPED, WRITTEN)
# Scores that are shown with a label, the better one first: whether somebody who saw the label alone could tell at which
# tokens the latent is active, and the AUROC of its similarity to texts (core.latents.label_scores), which sees no tokens:
# a right label about commas scores low there.
TOKENS, EMBEDDING = "blind reading of tokens", "embedding"
SHOWN = (TOKENS, EMBEDDING)
POOR = 0.7  # a label that detects its latent's activity no better than this is poorly scored (our choice; 0.5 is chance)
NOT_STATED = "not stated"  # `madeFor` of a label whose file names no SAE
LONGEST = 300  # characters of a label that are kept
LONGEST_NAME = 80  # of a method's, model's or author's name


@dataclass(frozen=True, kw_only=True)
class Score:
    """A scorer's result: `value` from 0 to 1, its 95 % interval if it has one, from `n` texts, named by `windows`."""

    value: float
    method: str
    model: str = ""
    low: float | None = None
    high: float | None = None
    n: int | None = None
    windows: str = ""
    date: str = ""

    def to_row(self) -> dict[str, Any]:
        """The score in Neuronpedia's field names, without empty figures."""
        figures = {"low": self.low, "high": self.high, "n": self.n, "windows": self.windows or None, "createdAt": self.date or None}
        named = {"explanationScoreTypeName": self.method, "explanationScoreModelName": self.model, "value": self.value}
        return {**named, **{name: value for name, value in figures.items() if value is not None}}

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> Score:
        """Raises ValueError if a figure is no number from 0 to 1."""
        low, high, n = row.get("low"), row.get("high"), row.get("n")
        return Score(
            value=_share(row.get("value")),
            method=one_line(row.get("explanationScoreTypeName"), LONGEST_NAME),
            model=one_line(row.get("explanationScoreModelName"), LONGEST_NAME),
            low=None if low is None else _share(low),
            high=None if high is None else _share(high),
            n=n if type(n) is int else None,
            windows=one_line(row.get("windows"), LONGEST_NAME),
            date=one_line(row.get("createdAt"), LONGEST_NAME),
        )


@dataclass(frozen=True, kw_only=True)
class Label:
    """`text` names what latent `index` is active on; `source` is its origin (one of SOURCES, or a machine's name),
    `method`, `model`, `author` and `date` state how, by whom and when it was made. `score` is how well it detects
    activity (0 to 1), `scores` holds all its scores. `made_for` is empty if it was made for the SAE whose latent it
    names, else it names the other SAE or is NOT_STATED."""

    text: str
    source: str
    score: float | None = None
    index: int | None = None
    method: str = ""
    model: str = ""
    author: str = ""
    date: str = ""
    scores: tuple[Score, ...] = field(default=())
    made_for: str = ""

    @property
    def of_another_sae(self) -> bool:
        """Whether the label is known to name a latent of another SAE."""
        return self.made_for not in ("", NOT_STATED)

    @property
    def mark(self) -> str:
        """The mark after the text of a label of another SAE; empty for other labels."""
        return " (another SAE's label)" if self.of_another_sae else ""

    @property
    def doubt(self) -> str:
        """A clause on the SAE that the label was made for; empty if it is the latent's SAE."""
        if self.of_another_sae:
            return f"was made for another SAE ({self.made_for})"
        return "comes from a file that does not say which SAE it was made for" if self.made_for else ""

    @property
    def weakness(self) -> str:
        """A clause on the reasons to doubt it; empty if a person wrote it for this SAE and it has no poor score."""
        made_by = ", ".join(part for part in (self.source, self.model) if part)
        automatic = "" if self.source in BY_HAND else f"was written automatically ({made_by})"
        poor = f"scores {self.score:.2f} only" if self.score is not None and self.score < POOR else ""
        return " and ".join(part for part in (self.doubt, automatic, poor) if part)

    @property
    def key(self) -> tuple[object, ...]:
        """Of a source's labels of one key the newer is kept: a model has one a latent, two people have two."""
        return (self.index, self.author, *((self.method, self.model) if self.method or self.model else (self.text,)))

    def to_row(self) -> dict[str, Any]:
        """The label's part of a row; its book adds whose latent it is (modelId, layer, saeSha256)."""
        return {
            "index": str(self.index),
            "description": self.text,
            "typeName": self.method,
            "explanationModelName": self.model,
            "source": self.source,
            "author": self.author,
            "createdAt": self.date,
            "scores": [score.to_row() for score in self.scores],
            **({"madeFor": self.made_for} if self.made_for else {}),
        }


Labels = Mapping[int, Label]


def label_from_row(row: Mapping[str, Any], source: str = "") -> Label:
    """The label of a row, of `source` (else of its own). ValueError, whose text starts with the field: not a label."""
    text = row.get("description")
    if not isinstance(text, str) or not one_line(text):
        raise ValueError(f"description: no text but {_shown(text)}")
    scores = row.get("scores") or []
    if not isinstance(scores, list) or not all(isinstance(score, Mapping) for score in scores):
        raise ValueError("scores: no list of objects")
    return with_scores(
        Label(
            text=one_line(text),
            source=source or one_line(row.get("source"), LONGEST_NAME),
            index=_index(row.get("index")),
            method=one_line(row.get("typeName"), LONGEST_NAME),
            model=one_line(row.get("explanationModelName"), LONGEST_NAME),
            author=one_line(row.get("author"), LONGEST_NAME),
            date=one_line(row.get("createdAt"), LONGEST_NAME),
            made_for=one_line(row.get("madeFor"), LONGEST_NAME),
        ),
        [Score.from_row(score) for score in scores],
    )


def with_scores(label: Label, scores: Sequence[Score]) -> Label:
    """The label with these scores, replacing those of the same method and model; `score`: the newest of the first of SHOWN
    that there is."""
    kept = {(score.method, score.model): score for score in (*label.scores, *scores)}
    newest = shown_score(tuple(kept.values()))
    return replace(label, scores=tuple(kept.values()), score=newest.value if newest else None)


def shown_score(scores: Sequence[Score]) -> Score | None:
    """The score that is shown with a label; None where it has none of SHOWN."""
    for method in SHOWN:
        of_method = [score for score in scores if score.method == method]
        if of_method:
            return max(of_method, key=lambda score: score.date)
    return None


def one_line(text: object, longest: int = LONGEST) -> str:
    """A text on one line without hidden characters, cut if it is long; empty for anything that is no text."""
    if not isinstance(text, str):
        return ""
    line = without_hidden(" ".join(text[: 4 * LONGEST].split())).strip()
    return line if len(line) <= longest else line[: longest - 1] + "…"


def today() -> str:
    """The time in UTC to the second, as rows hold it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _index(value: Any) -> int:
    """A latent's number. Neuronpedia writes it as a string and sorts rows by it, so a row's place does not give it."""
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        return int(value)
    raise ValueError(f"index: no latent's number but {_shown(value)}")


def _share(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or not 0 <= value <= 1:
        raise ValueError(f"scores: no number from 0 to 1 but {_shown(value)}")
    return float(value)


def _shown(value: object) -> str:
    return one_line(repr(value), LONGEST_NAME)
