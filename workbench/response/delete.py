"""The section Delete: what each sentence adds, and what any marked span does. The response is scored again without it."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from core.explain.token_values import Span
from core.explain.word_rows import agreement_with_deletion, deletion_bars, span_of, word_rows
from core.text_safety import visible
from workbench.frame import state
from workbench.frame.downloads import show_chart
from workbench.frame.tokens import TokenRow, show_tokens
from workbench.response.charts import contribution_bars
from workbench.response.edit_chain import keep_edit
from workbench.response.readings import deletions_of, tokens_of
from workbench.response.response_view import TITLES, ResponseView, live_ready
from workbench.response.texts import WORDS_NEED
from workbench.response.values import one_line


def draw(view: ResponseView) -> None:
    if not live_ready(view, WORDS_NEED, key="delete"):
        return
    item = view.item(view.response_name)
    deletions = deletions_of(view.model, item)
    bars = [replace(bar, label=_quoted(bar.label), note=_quoted(bar.note, 300)) for bar in deletion_bars(deletions)]
    whose = TITLES[view.response_name].lower()
    st.caption(f"What each sentence (of one sentence, each word) of the {whose} adds: the reward less the reward without it. This is causal.")
    words = view.response.words
    agreement = None if words is None else agreement_with_deletion(words, deletions)
    if agreement is not None:
        st.caption(f"Rank agreement with where the reward is read, over these {len(deletions)} parts: {agreement:+.2f} (1 is the same order).")
    if bars:
        show_chart(contribution_bars(bars, x="Reward that it adds"), key=f"response sentences {view.key}", name=view.model.name)
    tokens = word_rows(tokens_of(view.model, item), None)
    row = TokenRow(texts=[token.text for token in tokens], values=[None] * len(tokens), caption="Drag over words to take them out")
    pick = show_tokens([row], key=f"response mark {view.key}", selectable=True, unit="", height=220)
    if pick is not None:
        _marked(view, span_of(tokens, item[1], pick.first, pick.last))


def _marked(view: ResponseView, span: Span | None) -> None:
    """What the marked span adds, and a button that keeps the text without it as an edit."""
    if span is None:
        st.caption("These words can't be found in the text: the tokenizer changes it.")
        return
    (deletion,) = deletions_of(view.model, view.item(view.response_name), (span,))
    st.text(f"Without {_quoted(deletion.text, 120)}")
    if deletion.effect is None:
        st.caption("Nothing would be left to score.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.metric("Reward without it", f"{view.response.reward - deletion.effect:.3f}", f"{-deletion.effect:+.3f}", border=True, width=220)
        st.button("Keep as an edit", icon=":material/edit:", key="response keep deletion", on_click=_keep, args=(view, span))


def _keep(view: ResponseView, span: Span) -> None:
    item = view.item(view.response_name)
    parent_id = view.edits[-1].edit_id if view.response_name == "edited" else ""
    rest = (item[1][: span[0]] + item[1][span[1] :]).strip()
    edit_id = keep_edit(view.model, item, rest, parent_id)
    state.choose(pair=view.pair_id, response_edit=edit_id, response_tab="edit", response_view="edited")


def _quoted(text: str, longest: int = 44) -> str:
    return f"“{one_line(visible(text), longest)}”"
