"""What the Doctor page shows of a report: its checks, the worst first, as words and as rows of tables. No Streamlit
here.
"""

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
    FAIL: "Don't believe this model's figures until the failed checks are mended.",
    WARN: "Usable. Read the warnings before trusting what they are about.",
    PASS: "Every check keeps its bound.",
}


def artefacts(model: FittedModel) -> dict[str, Artefact]:
    """The artefacts with reports on this model, newest first, by the beginning of their fingerprint."""
    return {report.fingerprint[:ID_LENGTH]: report for report in model.results(STEP)}


def settings_text(artefact: Artefact) -> str:
    """The settings that distinguish this report from others."""
    config = artefact.manifest["config"]
    return f"{config['swaps']} swaps, {config['responses']} responses, seed {config['seed']}"


def report_of(artefact: Artefact) -> Report:
    """The report of an artefact. Raises StoreError where it is damaged."""
    return _report(artefact.path)


@lru_cache(maxsize=8)
def _report(folder: Path) -> Report:
    return load_report(folder)


def ordered(report: Report, status: str = "") -> list[Check]:
    """The checks, the worst first, checks of one status in the doctor's order; only those of `status`, if it is given."""
    return [check for wanted in WORST_FIRST for check in report.checks if check.status == wanted and status in ("", wanted)]


def rows(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """The checks as a table."""
    return [{name: value for name, value in check.to_json().items() if name != "details"} | {"details": dict(check.details)} for check in checks]


def detail_rows(details: Mapping[str, Any], most: int = 60) -> list[dict[str, str]]:
    """A check's further figures as rows of name and value; a nested figure's name is its path. At most `most` rows."""
    return [{"figure": name, "value": value} for name, value in list(_flat(details, ""))[:most]]


def _flat(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flat(part, f"{name} · {key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        yield name, ", ".join(_short(part) for part in value[:12]) + (f" and {len(value) - 12} more" if len(value) > 12 else "")
    else:
        yield name, _short(value)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)[:200]
