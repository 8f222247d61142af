"""The section Trust: can this explanation be believed."""

from __future__ import annotations

import streamlit as st

from core.doctor.word_figures import word_trust_rows
from core.explain.trust import trust_rows
from workbench.frame.downloads import show_chart
from workbench.response.charts import removal_curves
from workbench.response.response_view import ResponseView

VERDICTS = {"stable": ("check_circle", "stable"), "unstable": ("warning", "unstable")}


def draw(view: ResponseView) -> None:
    """The verdict, the figures behind it, and what removing latents one by one does."""
    explanation = view.explanation
    icon, verdict = VERDICTS.get(view.response.figures.stability.verdict, ("help", "of unknown stability"))
    st.markdown(f":material/{icon}: Explanations of this reward model are **{verdict}**.")
    figures = (*trust_rows(explanation), *word_trust_rows(view.model))
    rows = [f"| {row.name} | {row.value} | {row.expected or '–'} |" for row in figures]
    st.markdown("\n".join(["| Figure | Here | Should be |", "|---|---|---|", *rows]))
    if explanation.curves is None:
        st.caption("Fewer than three selected latents are active here, so there is nothing to remove one by one.")
        return
    st.caption("If the explanation is right, its order moves the reward faster than a random order.")
    show_chart(removal_curves(explanation.curves.to_json()), key=f"response curves {view.pair_id} {view.name}", name=view.model.name)
