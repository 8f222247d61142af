"""Preferences: the pairs of a reward model, side by side, with what could be learnt from them by accident; and pairs of
one's own.
"""

import streamlit as st

from core.reward.head_words import mean_of
from workbench.frame import layout, models, state
from workbench.preferences import view as pairs_view

model = layout.need_model() if models.models() else None
sources = {"model": "This reward model's pairs", "own": "Bring your own"}
source = "own"
if model is not None:
    source = state.get("preferences_source") if state.get("preferences_source") in sources else "model"
    widget = state.url_widget("pairs source", source, lambda chosen: state.choose(preferences_source=chosen if chosen != "model" else None))
    st.segmented_control("Which pairs", list(sources), required=True, format_func=sources.__getitem__, label_visibility="collapsed", **widget)
if source == "own" or model is None:
    pairs_view.bring()
else:
    table = model.evaluation
    shortcuts = {kind: table["controls"][kind]["mean"] for kind in ("wording-only", "length-only") if kind in table["controls"]}
    pairs_view.report(model.data_report, shortcuts, table["sparserm"]["mean"], mean_of(len(table["sparserm"]["heads"])))
    pairs_view.refused(model.data_report["data"])
    pairs_view.browse(pairs_view.of_model(model), model.id)
