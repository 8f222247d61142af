"""The doctor's report: a `Check` for each question, and the `Report` of all of them. Plain values, which a page reads
without torch.

pass   the figure keeps its bound
warn   read the remedy before you trust what the figure is about; also if a figure can't be measured
fail   do not trust rewards, accuracies or explanations of this fit before the problem is mended
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.config import DoctorConfig
from core.errors import StoreError
from core.files import read_json, write_json
from core.reward.folder import ModelFolder
from core.types import JsonFields, json_value

PASS, WARN, FAIL = "pass", "warn", "fail"
STATUSES = (PASS, WARN, FAIL)
STEP = "doctor"
FILE = "report.json"


@dataclass(frozen=True, kw_only=True)
class Check(JsonFields):
    """The answer to one question: a figure, and the bound that it must keep.

    `figure` is a text for a person; `value` is the number that is compared with the bound, with its 95 % interval
    (`low`, `high`) if it comes from a sample, and `n`, how many things it was measured on. They are None if nothing can
    be measured. `remedy` is empty if the check passes. `details` holds further figures, JSON values.
    """

    name: str
    status: str
    figure: str
    bound: str
    reason: str
    remedy: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Report:
    """All checks of one reward model, in the doctor's order. `about` names what was examined; `seconds` is the time of
    each part.
    """

    checks: tuple[Check, ...]
    about: Mapping[str, Any]
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """How many checks have each status."""
        return {status: sum(check.status == status for check in self.checks) for status in STATUSES}

    @property
    def status(self) -> str:
        """The worst status of any check."""
        return max((check.status for check in self.checks), key=STATUSES.index, default=PASS)

    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == FAIL)

    def to_json(self) -> dict[str, Any]:
        return {name: json_value(getattr(self, name)) for name in ("status", "counts", "checks", "about", "seconds")}


def save_report(folder: Path, report: Report) -> None:
    """Writes `report.json`."""
    write_json(folder / FILE, report.to_json())


def load_report(folder: Path) -> Report:
    """The report that `save_report` wrote. Raises StoreError if it can't be read."""
    path = folder / FILE
    try:
        content = read_json(path)
        return Report(checks=tuple(Check(**check) for check in content["checks"]), about=content["about"], seconds=content["seconds"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} can't be read", found=f"{type(error).__name__}: {error}", remedy="sparserm cache verify") from error


def find_report(folder: ModelFolder, config: DoctorConfig) -> Report | None:
    """The report on a reward model that was made with this config; None if there is none."""
    artefact = folder.find_result(STEP, config)
    return None if artefact is None else load_report(artefact.path)


def judge(*verdicts: tuple[bool, str]) -> str:
    """The worst of the statuses whose condition holds; pass if none does."""
    return max((status for holds, status in verdicts if holds), key=STATUSES.index, default=PASS)


def listed(parts: Sequence[str]) -> str:
    """`a; b; c`, empty parts left out."""
    return "; ".join(part for part in parts if part)


def interval_text(low: float | None, high: float | None, form: str = ".3f") -> str:
    """` (0.812 to 0.871)`; empty without an interval."""
    return "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"
