"""The section of dropped pairs: the pairs of a round that DPO does not learn from, and the marked one in full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import streamlit as st

from core.align.records import RoundRecord
from core.explain.drop_reasons import drop_latent_name
from core.latents.labels import Labels
from core.text_safety import visible
from workbench.align import values as align
from workbench.align.choice import choose_round
from workbench.align.pair_view import labels_of, pair_card
from workbench.align.pairs import GeneratedPair, pairs_of, reason_words, row_of
from workbench.align.values import OpenAlignment
from workbench.frame import state
from workbench.frame.downloads import download_rows
from workbench.preferences.values import excerpt, prompt_text

MOST_ROWS = 500
LEFT, RIGHT = 480, 610  # pixels: side by side from about 1,400 on, below one another on narrower screens


def draw(opened: OpenAlignment) -> None:
    """The whole section."""
    if not opened.filtered:
        st.caption("Pairs are dropped by the filter, and no round has come to it yet.")
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        round = choose_round(opened.filtered)
        dropped = [pair for pair in pairs_of(round) if pair.fate != "kept"]
        reason = _choose_reason(dropped)
    shown = sorted((pair for pair in dropped if reason in ("", pair.fate)), key=lambda pair: (pair.margin is None, pair.margin or 0.0))
    if not shown:
        st.caption("Every pair of this round was kept.")
        return
    with st.container(horizontal=True, gap="medium", key="align drop halves"):
        with st.container(width=LEFT):
            marked = _table(opened, round, shown, reason)
        with st.container(width=RIGHT):
            pair_card(marked, align.judge_model(opened.entry), key=f"drop {round.round}")


def _choose_reason(dropped: Sequence[GeneratedPair]) -> str:
    counts = Counter(pair.fate for pair in dropped)

    def title(fate: str) -> str:
        return f"{reason_words(fate).capitalize()} ({counts[fate]:,})" if fate else f"All {len(dropped):,} pairs that were not kept"

    with st.container(width=300):
        return state.pick("Reason", ["", *counts], "align_reason", show=title, label_visibility="collapsed")


def _table(opened: OpenAlignment, round: RoundRecord, shown: Sequence[GeneratedPair], reason: str) -> GeneratedPair:
    """The table of pairs, the lowest margin first. Returns the marked pair, else the first."""
    ids = [pair.candidate.candidate_id for pair in shown[:MOST_ROWS]]
    wanted = state.get("align_drop")
    marked = ids.index(wanted) if wanted in ids else 0
    labels = labels_of(align.judge_model(opened.entry))
    name = f"align drops {opened.entry.id} {round.round} {reason} {len(ids)}"
    key = state.table_key(name, ids[marked])

    def mark() -> None:
        picked = st.session_state[key]["selection"]["rows"]
        if picked and picked[0] < len(ids) and state.table_shows(name, key, ids[picked[0]]):
            state.choose(align_drop=ids[picked[0]])

    st.dataframe(
        [_row(pair, labels) for pair in shown[:MOST_ROWS]],
        key=key,
        on_select=mark,
        selection_mode="single-row",
        selection_default={"selection": {"rows": [marked]}},
        hide_index=True,
        height=min(38 + 35 * len(ids), 470),
        column_config={
            "Margin": st.column_config.NumberColumn(format="%+.2f", width=70, help="Reward of the intended winner less that of the other answer"),
            "Prompt": st.column_config.TextColumn(width=200),
            "Why": st.column_config.TextColumn(width=190, help="Of a drop by margin, the latent that took most from it"),
        },
        alt="Pairs that were not kept",
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        more = f"The first {MOST_ROWS:,} of {len(shown):,}; the files hold all." if len(shown) > MOST_ROWS else "Mark a row to read the pair."
        st.caption(more, width="content")
        download_rows([row_of(pair) for pair in shown], name=opened.entry.id, what=f"round-{round.round}-dropped", key="align drops files")
    return shown[marked]


def _row(pair: GeneratedPair, labels: Labels) -> dict[str, Any]:
    by_latents = pair.decision is not None and bool(pair.decision.latents)
    why = f"{visible(drop_latent_name(pair.decision.latents[0], labels))} against it" if pair.decision and by_latents else visible(pair.why, 120)
    return {"Margin": pair.margin, "Prompt": excerpt(prompt_text(pair.candidate.prompt)), "Why": why}
