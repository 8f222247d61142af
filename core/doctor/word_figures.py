"""The doctor's figures on the split over words, which terminal and pages show beside every explanation. Loads no torch."""

from __future__ import annotations

from core.doctor.report import STEP, Check, interval_text, load_report
from core.explain.trust import TrustRow
from core.reward.folder import ModelFolder
from core.reward.hidden_states import WHOLE

CAUSES, STABLE = "words against deletions", "words' stability"
NAMES = {CAUSES: "Agreement of sentences' contributions with deleting them", STABLE: "Rank correlation of words over resampled refits"}
EXPECTED = {CAUSES: "above random order (0)", STABLE: "near 1; 0 is chance"}
NOT_MEASURED = "not measured yet: run `sparserm doctor`"


def word_checks(folder: ModelFolder) -> dict[str, Check]:
    """Both checks by name, from the newest doctor's report on this reward model; empty where there is none."""
    for artefact in folder.results(STEP):
        return {check.name: check for check in load_report(artefact.path).checks if check.name in NAMES}
    return {}


def word_trust_rows(folder: ModelFolder) -> list[TrustRow]:
    """Rows for the table of core.explain.trust; none for a reward model that does not read whole responses."""
    if folder.config["position"] != WHOLE:
        return []
    checks = word_checks(folder)
    return [TrustRow(name=name, value=_value(checks.get(key)), expected=EXPECTED[key]) for key, name in NAMES.items()]


def _value(check: Check | None) -> str:
    if check is None:
        return NOT_MEASURED
    if check.value is None:
        return check.figure
    return f"{check.value:.2f}{interval_text(check.low, check.high, '.2f')}, n = {check.n:,} held-out responses"
