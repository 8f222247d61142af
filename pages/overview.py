"""Overview: how good the reward model is, and beside what; with an empty cache, the button that builds the demo."""

import streamlit as st

from core.text_safety import visible
from workbench.frame import layout
from workbench.frame.downloads import show_chart
from workbench.latents import view as latents_view
from workbench.overview import charts, preparation
from workbench.overview import values as overview

model = layout.need_model()

columns = st.columns(4)
for column, headline in zip(columns, overview.headline(model), strict=False):
    with column, st.container(border=True, key=f"figure {headline.name}", height="stretch"):
        st.metric(headline.name, headline.value, help=headline.help)
        st.caption(headline.beside)
st.markdown(overview.verdict(model))
preparation.being_prepared(model)

left, right = st.columns(2, gap="medium")
with left, st.container(border=True, height="stretch"):
    st.markdown("##### Beside its controls")
    paper = overview.as_the_paper_reads(model)
    show_chart(charts.accuracy_bars(model.evaluation, [paper.row] if paper else []), key="accuracy", name=model.id)
    if paper:
        st.caption(paper.sentence)
with right, st.container(border=True, height="stretch"):
    st.markdown("##### More or fewer latents")
    latents_view.curve(model, int(model.about["selection"]["k"]))

rows = overview.kinds(model)
left, right = st.columns(2, gap="medium") if rows else (st.container(), None)
with left, st.container(border=True, height="stretch"):
    st.markdown("##### Made of")
    for name, value in overview.facts(model):
        label, text = st.columns([1, 3], gap="small")
        label.caption(name)
        text.text(visible(value, 300))
if rows:
    with right, st.container(border=True, height="stretch"):
        st.markdown("##### By kind of pair")
        show_chart(charts.accuracy_kinds(rows), key="kinds", name=model.id)

st.markdown("##### Look further")
layout.cards("overview")
