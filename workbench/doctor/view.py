"""The Doctor page, drawn: the verdict, and each check with its figure, its bound and what to do."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.config import DoctorConfig, DoctorRunConfig
from core.doctor.report import FAIL, PASS, STATUSES, WARN, Check, Report
from core.reward.hidden_states import WHOLE
from core.runs.progress import duration
from workbench.doctor import values as doctor
from workbench.frame import layout, run_panel, state
from workbench.frame.downloads import download_rows, show_rows
from workbench.frame.models import FittedModel

LOOKS: dict[str, tuple[str, Any]] = {
    PASS: (":material/check_circle:", "green"),
    WARN: (":material/warning:", "orange"),
    FAIL: (":material/error:", "red"),
}
WORDS = {PASS: "Pass", WARN: "Warn", FAIL: "Fail"}
SHOWN = {"": "All checks", FAIL: "Failed", WARN: "Warnings", PASS: "Passed"}
OFFER = "Reads responses again alone, padded and shuffled, measures the SAE on their tokens, swaps labels. Takes about a minute; go on meanwhile."


def need_report(model: FittedModel) -> Report:
    """The chosen report, else the newest. Where there is none, offers the run that makes it and ends the page."""
    artefacts = doctor.artefacts(model)
    run = run_panel.find_id(state.get("doctor_run"))
    if run is not None and run.status().state != "succeeded":
        run_panel.show(run)
    if not artefacts:
        config = DoctorRunConfig(model=str(model.path))
        layout.absent("doctor", config, "This reward model has not been examined yet.", "The doctor's report is being prepared.")
        run_panel.start_button_or_progress("doctor", config, "Examine this reward model", sentence=OFFER)
        st.stop()
    chosen = state.get("doctor_made") if state.get("doctor_made") in artefacts else next(iter(artefacts))
    state.shows(doctor_made=chosen)
    return doctor.report_of(artefacts[chosen])


def verdict(model: FittedModel, report: Report) -> None:
    """The worst status in a sentence, the counts, and another examination."""
    icon, colour = LOOKS[report.status]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.badge(WORDS[report.status], icon=icon, color=colour)
        st.markdown(f"**{doctor.VERDICTS[report.status]}**")
        st.space("stretch")
        for status in reversed(STATUSES):
            st.badge(f"{report.counts[status]} {WORDS[status].lower()}", icon=LOOKS[status][0], color=LOOKS[status][1])
        _again(model)
    seconds = sum(report.seconds.values())
    st.caption(f"Examined in {duration(seconds)}." if seconds else "")


def _again(model: FittedModel) -> None:
    with st.popover("Examine again", icon=":material/refresh:"), st.form("doctor again", border=False):
        usual = DoctorConfig()
        swaps = st.number_input("Label swaps", 3, 1000, usual.swaps, key="doctor swaps", help="100 take ten times as long, and say it more surely")
        responses = st.number_input("Responses scored again", 4, 10_000, usual.responses, key="doctor responses")
        words = {}
        if model.config["position"] == WHOLE:
            help_ = "Sentences are deleted one by one and the rest is scored again; those with fewer than three sentences don't count"
            words["deleted"] = st.number_input("Responses with deletions", 2, 10_000, usual.deleted, key="doctor deleted", help=help_)
            help_ = "Selection and head made anew on resampled prompts, to compare the words that each would mark"
            words["refits"] = st.number_input("Refits for words", 2, 100, usual.refits, key="doctor refits", help=help_)
        seed = st.number_input("Seed", 0, 10**6, usual.seed, key="doctor seed")
        if st.form_submit_button("Start"):
            asked = DoctorConfig(swaps=int(swaps), responses=int(responses), seed=int(seed), **{name: int(n) for name, n in words.items()})
            state.choose(doctor_run=run_panel.start("doctor", DoctorRunConfig(model=str(model.path), doctor=asked)), doctor_made=None)
            st.rerun()


def checks(model: FittedModel, report: Report) -> None:
    """Each check, the worst first: with its bound and remedy where something is to be done, on a line where it passes."""
    artefacts = doctor.artefacts(model)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        with st.container(width=200):
            status = state.pick("Show", [status for status in SHOWN if not status or report.counts[status]], "doctor_show", show=SHOWN.__getitem__)
        if len(artefacts) > 1:
            with st.container(width=300):
                state.pick("Report", list(artefacts), "doctor_made", show=lambda name: doctor.settings_text(artefacts[name]))
        st.space("stretch")
        download_rows(doctor.rows(report.checks), name=model.name, what="doctor", key="doctor")
    for number, check in enumerate(doctor.ordered(report, status)):
        with st.container(border=bool(check.remedy), key=f"check {number}"):
            _check(check, number)


def _check(check: Check, number: int) -> None:
    icon, colour = LOOKS[check.status]
    name, figure, more = st.columns([5, 12, 2], gap="medium", vertical_alignment="top")
    with name, st.container(horizontal=True, vertical_alignment="center"):
        st.badge(WORDS[check.status], icon=icon, color=colour)
        st.text(check.name[:1].upper() + check.name[1:])
    with figure:
        st.text(check.figure)
        if check.remedy:
            st.text(f"Bound: {check.bound}")
            st.text(f"To do: {check.remedy}")
    with more:
        _why(check, number)


@st.fragment
def _why(check: Check, number: int) -> None:
    """The reason for the check and its further figures; sent to the browser when opened."""
    behind = st.popover("Why", type="tertiary", key=f"check {number} why", on_change="rerun")
    if behind.open:
        with behind:
            st.text(check.reason)
            st.text(f"Bound: {check.bound}")
            details = doctor.detail_rows(check.details)
            if details:
                show_rows(details, key=f"check {number} details")
