"""Was it right to drop them? A seeded sample of the pairs that a reward model dropped, judged by a person who does not see which answer was to win.

    <cache>/alignments/<key>/audit.jsonl      one line a judgement: candidate_id, verdict, judge, time_judged; the newest of a pair counts

Each pair's two answers are shown in an order drawn by seed. The person says which is better, that neither is, or that they can't tell; the filter was
right where the intended winner is not the better one. The agreement is that share, with its Wilson interval: a pair where no answer is better agrees,
for DPO would have learned from a difference that is not there. Who can't tell is counted apart. Nothing heavy is imported.
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
    """A dropped pair to be judged: its answers `first` and `second`, of which `first_is_intended` tells (not the person) whose side they are on."""

    candidate_id: str
    round: int
    prompt: tuple[Message, ...]
    first: str
    second: str
    first_is_intended: bool
    margin: float
    latents: Sequence[Mapping[str, Any]]

    def verdict(self, better: str) -> str:
        """What `better` (`first`, `second`, `neither` or `unsure`) says of the intended winner. Raises ConfigError for anything else."""
        if better in (NEITHER, UNSURE):
            return better
        if better not in ("first", "second"):
            raise ConfigError("this is no judgement of a pair", expected="first | second | neither | unsure", found=repr(better))
        return INTENDED if (better == "first") == self.first_is_intended else OTHER


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What a person said of a case. `time_judged` in seconds since 1970."""

    candidate_id: str
    round: int
    verdict: str
    judge: str = ""
    time_judged: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How often the person agrees with the filter: the share of n judged pairs whose intended winner is not the better answer, 95 % interval.

    Where the person was `unsure`, the pair is judged and not among the n.
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
    """At most n of a round's pairs that were dropped by their margin, in an order drawn by seed: a longer sample begins with the shorter one."""
    by_id = {one.candidate_id: one for one in candidates}
    dropped = sorted((one for one in decisions if one.reason == MARGIN), key=lambda one: one.candidate_id)
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
    """Keeps what a person said of a case in the alignment's folder, in place of what was said of it before. Raises ConfigError as `Case.verdict`."""
    said = Judgement(candidate_id=case.candidate_id, round=case.round, verdict=case.verdict(better), judge=by.strip(), time_judged=time.time())
    folder.mkdir(parents=True, exist_ok=True)
    with make_lock(folder / ".audit.lock"):
        kept = [one for one in judgements(folder) if (one.round, one.candidate_id) != (said.round, said.candidate_id)]
        write_json_lines(folder / FILE, [asdict(one) for one in (*kept, said)])
    return said


def judgements(folder: Path) -> list[Judgement]:
    """Everything that was said, the newest of each pair, oldest first. Raises StoreError for a damaged file."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        found = [Judgement(**row) for row in read_json_lines(path)]
    except (StoreError, TypeError) as error:
        raise StoreError(f"{path} is damaged", expected="one judgement a line", found=str(error), remedy="mend or remove the file") from error
    return list({(one.round, one.candidate_id): one for one in found if one.verdict in VERDICTS}.values())


def agreement(found: Iterable[Judgement]) -> Agreement:
    """The running agreement of these judgements with the filter."""
    counts = dict.fromkeys(VERDICTS, 0)
    for one in found:
        counts[one.verdict] += 1
    n, right = sum(counts.values()) - counts[UNSURE], counts[OTHER] + counts[NEITHER]
    low, high = wilson(right, n)
    return Agreement(accuracy=right / n if n else None, low=low, high=high, n=n, **counts)
