"""The audit of the filter: a person judges a seeded sample of dropped pairs, blind to the intended winner.

    <cache>/alignments/<key>/audit.jsonl   candidate_id, verdict, judge, time_judged a line; the newest counts

Each pair's two answers are shown in an order drawn by seed. The person judges which is better, that neither is, or is
unsure. The filter was right where the intended winner is not the better answer. The agreement is the share of such
pairs, with its Wilson interval; a pair without a better answer counts as agreement, since DPO would have learned from a
difference that does not exist. Unsure judgements are counted separately.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.align.filtering import MARGIN
from core.align.values import Candidate, Decision
from core.errors import ConfigError, StoreError
from core.files import read_json_lines, write_json_lines
from core.runs.locks import make_lock
from core.statistics.intervals import wilson
from core.types import Message

FILE = "audit.jsonl"
INTENDED, OTHER, NEITHER, UNSURE = VERDICTS = ("intended", "other", "neither", "unsure")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A dropped pair to be judged, as `first` and `second` answer. `first_is_intended` is not shown to the person."""

    candidate_id: str
    round: int
    prompt: tuple[Message, ...]
    first: str
    second: str
    first_is_intended: bool
    margin: float
    latents: Sequence[Mapping[str, Any]]

    def verdict(self, better: str) -> str:
        """The verdict on the intended winner. ConfigError: not `first`, `second`, `neither` or `unsure`."""
        if better in (NEITHER, UNSURE):
            return better
        if better not in ("first", "second"):
            raise ConfigError("this is no judgement of a pair", expected="first | second | neither | unsure", found=repr(better))
        return INTENDED if (better == "first") == self.first_is_intended else OTHER


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A person's judgement of a case. `time_judged` is in seconds since 1970."""

    candidate_id: str
    round: int
    verdict: str
    judge: str = ""
    time_judged: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The person's agreement with the filter, with its 95 % interval.

    It is the share of the n judged pairs (without `unsure` ones) whose intended winner is not the better answer.
    """

    accuracy: float | None
    low: float
    high: float
    n: int
    intended: int
    other: int
    neither: int
    unsure: int


def cases(round: int, candidates: Iterable[Candidate], decisions: Iterable[Decision], *, n: int, seed: int) -> list[Case]:
    """At most n of a round's pairs dropped by margin, in a drawn order: a larger sample begins with the smaller."""
    by_id = {candidate.candidate_id: candidate for candidate in candidates}
    dropped = sorted((decision for decision in decisions if decision.reason == MARGIN), key=lambda decision: decision.candidate_id)
    rng = np.random.default_rng([seed, round])
    order, sides = rng.permutation(len(dropped)), rng.integers(2, size=len(dropped))
    return [_case(round, by_id[dropped[int(i)].candidate_id], dropped[int(i)], bool(sides[i])) for i in order[:n]]


def _case(round: int, candidate: Candidate, decision: Decision, intended_first: bool) -> Case:
    first, second = (candidate.chosen, candidate.rejected) if intended_first else (candidate.rejected, candidate.chosen)
    return Case(
        candidate_id=candidate.candidate_id,
        round=round,
        prompt=candidate.prompt,
        first=first,
        second=second,
        first_is_intended=intended_first,
        margin=float(decision.margin or 0.0),
        latents=decision.latents,
    )


def judge(folder: Path, case: Case, better: str, *, by: str = "") -> Judgement:
    """Keeps a judgement of a case, replacing an earlier one of it. Raises ConfigError as `Case.verdict`."""
    new = Judgement(candidate_id=case.candidate_id, round=case.round, verdict=case.verdict(better), judge=by.strip(), time_judged=time.time())
    folder.mkdir(parents=True, exist_ok=True)
    with make_lock(folder / ".audit.lock"):
        others = [old for old in judgements(folder) if (old.round, old.candidate_id) != (new.round, new.candidate_id)]
        write_json_lines(folder / FILE, [asdict(judgement) for judgement in (*others, new)])
    return new


def judgements(folder: Path) -> list[Judgement]:
    """The newest judgement of each pair, oldest first. Raises StoreError for a damaged file."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        rows = [Judgement(**row) for row in read_json_lines(path)]
    except (StoreError, TypeError) as error:
        raise StoreError(f"{path} is damaged", expected="one judgement a line", found=str(error), remedy="mend or remove the file") from error
    return list({(row.round, row.candidate_id): row for row in rows if row.verdict in VERDICTS}.values())


def agreement(judged: Iterable[Judgement]) -> Agreement:
    """The agreement of these judgements with the filter."""
    counts = dict.fromkeys(VERDICTS, 0)
    for judgement in judged:
        counts[judgement.verdict] += 1
    n, right = sum(counts.values()) - counts[UNSURE], counts[OTHER] + counts[NEITHER]
    low, high = wilson(right, n)
    return Agreement(accuracy=right / n if n else None, low=low, high=high, n=n, **counts)
