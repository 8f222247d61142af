"""The choice of what the Response page looks at: a pair of the fit by rank, by search or from a filter, or own texts of
the person.
"""

from __future__ import annotations

import streamlit as st

from core.types import sha256_of
from workbench.frame import layout, state
from workbench.frame.model_client import live_model
from workbench.frame.models import OWN, FittedModel
from workbench.frame.pair_filter import chosen_pairs
from workbench.response.response_view import LONGEST_TEXT
from workbench.response.values import ORDERS, Subject, kept_subject, listed, pair_rows, subject_of

MOST_LISTED = 200


def choose_subject(model: FittedModel) -> Subject | None:
    """Draws the choice and returns what is looked at; None, with a hint what to do, where there is nothing yet."""
    only = chosen_pairs()
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="response choice"):
        has_pairs = model.has_texts
        numbers = _lists(model, None if only is None else only.pair_ids) if has_pairs else []
        if st.button("Paste your own", icon=":material/edit_note:", key="response own"):
            _own_texts(model)
    wanted = state.get("pair")
    if wanted:
        subject = subject_of(model, wanted)
        if subject is None:
            layout.empty("This pair is not of this reward model.", "Choose one above, or clear it.")
            st.button("Show the first of the list", type="primary", on_click=state.clear, args=("pair",))
        return subject
    if numbers:
        state.shows(pair=model.pair(numbers[0]).pair_id)
        return kept_subject(model, numbers[0])
    if not has_pairs:
        layout.empty("This reward model keeps no pairs.", "Paste a prompt and one or two answers of your own: it needs no data set.")
    else:
        layout.empty("No pair matches.", "Search for something else, look beyond the held-out pairs, or clear the filter.")
    return None


def _lists(model: FittedModel, only: frozenset[str] | None) -> list[int]:
    """Order, search and place in the list; the numbers of the pairs in it."""
    with st.container(width=190):
        order = state.pick("Order", list(ORDERS), "response_order", show=lambda name: ORDERS[name])
    with st.container(width=150):
        scope = state.pick("Among", ["heldout", "all"], "response_among", show=lambda name: {"heldout": "held-out pairs", "all": "all pairs"}[name])
    with st.container(width=220):
        search = _search()
    numbers = listed(model, order=order, held_out=scope == "heldout", search=search, only=only)
    ids = [model.pair(number).pair_id for number in numbers]
    chosen = state.get("pair") or (ids[0] if ids else "")
    at = ids.index(chosen) if chosen in ids else -1
    with st.container(horizontal=True, wrap=False, width="content", gap="xsmall"):
        _step("Back", "Previous pair", "chevron_left", ids, at - 1 if at > 0 else -1)
        with st.popover(f"{at + 1:,} of {len(ids):,}" if at >= 0 else f"{len(ids):,} pairs", icon=":material/list:", disabled=not ids):
            _table(model, numbers[:MOST_LISTED], len(ids), f"{order}{scope}{search}{sorted(only or ())[:3]}")
        _step("Next", "Next pair", "chevron_right", ids, at + 1 if at + 1 < len(ids) else -1)
    return numbers


def _search() -> str:
    widget = state.url_widget("response search", state.get("response_search"), lambda words: state.choose(response_search=words))
    st.text_input("Search", placeholder="words in any text", max_chars=200, **widget)
    return state.get("response_search")


def _step(word: str, label: str, icon: str, ids: list[str], to: int) -> None:
    ids_to = {"pair": ids[to] if 0 <= to < len(ids) else None}
    st.button(word, key=f"response {label}", icon=f":material/{icon}:", help=label, disabled=to < 0, on_click=state.choose, kwargs=ids_to)


def _table(model: FittedModel, numbers: list[int], total: int, list_name: str) -> None:
    rows = pair_rows(model, numbers)
    key = f"response list {model.id} {sha256_of(list_name)[:8]}"

    def opened() -> None:
        picked = st.session_state[key]["selection"]["rows"]
        if picked:
            state.choose(pair=rows[picked[0]]["pair"])

    shown = {name: [row[name] for row in rows] for name in (rows[0] if rows else {}) if name != "pair"}
    numbers_shown = {name: st.column_config.NumberColumn(format="%.3f") for name in ("margin", "chosen reward", "rejected reward")}
    st.dataframe(shown, key=key, on_select=opened, selection_mode="single-row", hide_index=True, width=980, height=360, column_config=numbers_shown)
    more = f", the first {len(rows):,} of {total:,}; search for others" if total > len(rows) else ""
    st.caption(f"Choose a row to open the pair{more}.")


@st.dialog("Your own prompt and answers", width="large")
def _own_texts(model: FittedModel) -> None:
    live = live_model(str(model.path), model.root)
    held = {"prompt": "", "chosen": "", "rejected": ""}
    subject = subject_of(model, state.get("pair")) if state.get("pair").startswith(OWN) else None
    if subject is not None:
        texts = dict(subject.texts)
        held = {
            "prompt": subject.prompt[-1]["content"],
            "chosen": texts.get("response", texts.get("chosen", "")),
            "rejected": texts.get("rejected", ""),
        }
    with st.form("response own texts", border=False):
        prompt = st.text_area("Prompt", held["prompt"], height=90, max_chars=LONGEST_TEXT, key="own prompt")
        left, right = st.columns(2)
        chosen = left.text_area("Answer, the one you prefer", held["chosen"], height=180, max_chars=LONGEST_TEXT, key="own chosen")
        rejected = right.text_area("Another answer (may stay empty)", held["rejected"], height=180, max_chars=LONGEST_TEXT, key="own rejected")
        sent = st.form_submit_button("Explain", type="primary", icon=":material/troubleshoot:")
    if sent and prompt.strip() and chosen.strip():
        state.choose(pair=OWN + live.texts.keep_pair(prompt.strip(), chosen.strip(), rejected.strip()))
        st.rerun()
    elif sent:
        st.warning("A prompt and at least one answer are needed.")
