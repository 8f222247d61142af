"""What the Doctor page shows of a report: its checks by what they are about, worst first, as words and rows. Values only; no engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.doctor.report import FAIL, PASS, STEP, WARN, Check, Report, load_report
from core.runs.store import Artefact
from workbench.frame.models import ID_LENGTH, FittedModel

WORST_FIRST = (FAIL, WARN, PASS)
VERDICTS = {
    FAIL: "Don't believe this model's figures until what failed is mended.",
    WARN: "Usable. Read the warnings before trusting what they are about.",
    PASS: "Every check keeps its bound.",
}


def made(model: FittedModel) -> dict[str, Artefact]:
    """The reports on this model, newest first, by the beginning of their fingerprint."""
    return {report.fingerprint[:ID_LENGTH]: report for report in model.results(STEP)}


def how(examined: Artefact) -> str:
    """What tells one report from another."""
    config = examined.manifest["config"]
    return f"{config['swaps']} swaps, {config['responses']} responses, seed {config['seed']}"


def report_of(examined: Artefact) -> Report:
    """The report. Raises StoreError where it is damaged."""
    return _report(examined.path)


@lru_cache(maxsize=8)
def _report(folder: Path) -> Report:
    return load_report(folder)


def ordered(report: Report, status: str = "") -> list[Check]:
    """The checks, worst first, else in the doctor's order; of one status, if that is given."""
    return [check for wanted in WORST_FIRST for check in report.checks if check.status == wanted and status in ("", wanted)]


def rows(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """The checks as a table."""
    return [{name: value for name, value in check.to_json().items() if name != "details"} | {"details": dict(check.details)} for check in checks]


def flat(details: Mapping[str, Any], most: int = 60) -> list[dict[str, str]]:
    """A check's further figures as name and value, nested ones by their path."""
    found = list(_flat(details, ""))
    return [{"figure": name, "value": value} for name, value in found[:most]]


def _flat(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _flat(one, f"{name} · {key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        yield name, ", ".join(_short(one) for one in value[:12]) + (f" and {len(value) - 12} more" if len(value) > 12 else "")
    else:
        yield name, _short(value)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)[:200]
