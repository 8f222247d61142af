"""Editing a response: the new reward beside the old one, what each latent did to it, and the chain of edits so far."""

from __future__ import annotations

import numpy as np
import streamlit as st

from core.explain.explanation import Explanation
from core.latents.label_book import labels_of
from core.text_safety import visible
from workbench.frame import state
from workbench.frame.downloads import download_rows, show_chart
from workbench.frame.marked_text import Pane, show_marked
from workbench.response.charts import contribution_bars
from workbench.response.edit_chain import EditStep, change_bars, keep_edit
from workbench.response.readings import change_of
from workbench.response.response_view import LONGEST_TEXT, TITLES, ResponseView, choose_clicked_latent
from workbench.response.splits import latent_names, scale_of, unit_readers
from workbench.response.values import one_line


def draw(view: ResponseView) -> None:
    """The text to change, and once it has been changed what that did."""
    last = view.chain[-1] if view.chain else None
    before = last.response if last is not None else view.explained.subject.texts[view.side]
    key = f"response edit {view.pair_id} {last.edit_id if last else view.side}"
    with st.form(f"{key} form", border=False):
        whose = f"{TITLES[view.side].lower()}, as edited so far" if last is not None else TITLES[view.side].lower()
        text = st.text_area(f"Change the {whose}", before, height=170, max_chars=LONGEST_TEXT, key=key)
        sent = st.form_submit_button("Score again", type="primary", icon=":material/refresh:")
    if sent and text.strip() and text.strip() != before.strip():
        item = (view.explained.subject.prompt, before)
        edit_id = keep_edit(view.model, item, text, last.edit_id if last is not None else "")
        state.choose(pair=view.pair_id, response_edit=edit_id, response_tab="edit")
        st.rerun()
    elif sent:
        st.caption("Nothing was changed." if text.strip() else "An empty response has no reward.")
    if last is not None:
        _result(view)


def _result(view: ResponseView) -> None:
    against = _compared(view.edits)
    before, after = against.explanation, view.edits[-1].explanation
    with st.container(horizontal=True, gap="small", key="response edit figures"):
        st.metric("New reward", f"{after.reward:.3f}", f"{after.reward - before.reward:+.3f}", border=True)
        st.metric("Percentile", f"{after.percentile:.0f}", f"{after.percentile - before.percentile:+.0f}", border=True)
        st.metric("Before", f"{before.reward:.3f}", f"percentile {before.percentile:.0f}", delta_color="off", delta_arrow="off", border=True)
    _by_word(view, before, after)
    steps = change_bars(view.model, before, after)
    key = f"response change {view.edits[-1].edit_id} {against.edit_id}"
    choose_clicked_latent(key, show_chart(contribution_bars(steps), key=key, name=view.model.name, select=("points",)))
    _chain(view)


def _by_word(view: ResponseView, before: Explanation, after: Explanation) -> None:
    """The change by word, where the whole response is read: both texts, coloured by what each word adds to it."""
    words = change_of(view.model, (before.prompt, before.response), (after.prompt, after.response))
    if words is None:
        return
    st.caption("The change by word: words of both texts together sum to it. Blue raised the reward, orange lowered it.")
    latent_ids, panes = after.attribution.latent_ids, []
    for name, title, table in (("before", "Before", words.rejected), ("after", "After the edit", words.chosen)):
        units = table.units("word")
        readers = unit_readers(units, latent_ids)
        panes.append(Pane(name=name, title=title, text=table.text, spans=units.spans, values=units.values.tolist(), readers=readers))
    scale = scale_of({pane.name: np.array(pane.values) for pane in panes})
    show_marked(
        panes,
        key=f"response change words {view.key}",
        place=f"change {view.key}",
        on_point=lambda point: None,
        scale=scale,
        legend=("lowered the reward", "raised it"),
        names=latent_names(latent_ids, labels_of(view.model)),
        height=220,
    )


def _compared(edits: list[EditStep]) -> EditStep:
    """What the last edit is compared with: its parent, or any text before it."""
    names = {step.edit_id: _name(place, len(edits)) for place, step in enumerate(edits[:-1])}
    if len(names) < 2:
        return edits[-2] if len(edits) > 1 else edits[-1]
    chosen = state.pick("Compared with", list(names), "response_against", show=lambda name: names[name], default=edits[-2].edit_id)
    return next(step for step in edits if step.edit_id == chosen)


def _name(place: int, total: int) -> str:
    return "the original" if place == 0 else f"edit {place}" + (", the one before" if place == total - 2 else "")


def _chain(view: ResponseView) -> None:
    """All texts from the original to this one; each can be opened again, and edited further from there."""
    rows = [
        {"text": "Original" if place == 0 else f"Edit {place}", "reward": step.explanation.reward, "response": step.response}
        for place, step in enumerate(view.edits)
    ]
    key = f"response chain {view.edits[-1].edit_id}"

    def opened() -> None:
        picked = st.session_state[key]["selection"]["rows"]
        if picked:
            state.choose(response_edit=view.edits[picked[0]].edit_id if picked[0] else None)

    shown = {"text": [row["text"] for row in rows], "reward": [row["reward"] for row in rows]}
    shown["response"] = [one_line(visible(str(row["response"])), 120) for row in rows]
    reward = {"reward": st.column_config.NumberColumn(format="%.3f")}
    st.caption("Choose a row to go back to that text; editing it begins another branch.")
    st.dataframe(shown, key=key, on_select=opened, selection_mode="single-row", hide_index=True, height="auto", column_config=reward)
    with st.container(horizontal=True):
        st.button("Close the edits", icon=":material/close:", key="response edits close", on_click=state.clear, args=("response_edit",))
        download_rows(rows, name=view.model.name, what="edits", key="response edits")
    last = view.edits[-1].edit
    st.caption(f"{last.n_computed:,} of {last.n_tokens:,} tokens recomputed.")
