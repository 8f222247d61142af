"""The pairs that DPO does not learn from: each with its reason, its margin, and the latents that spoke against its intended winner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import streamlit as st

from core.align.records import RoundRecord
from core.explain.latent_names import name_in_list
from core.explain.waterfall import Bar
from core.latents.label_book import labels_of as model_labels
from core.latents.labels import Labels
from core.text_safety import visible
from core.types import Message
from workbench.align import values as align
from workbench.align.choice import choose_round
from workbench.align.rounds import row_of
from workbench.align.values import Generated
from workbench.frame import state
from workbench.frame.chart_base import number
from workbench.frame.downloads import download_rows, show_chart
from workbench.frame.models import FittedModel
from workbench.latents import values as latents
from workbench.preferences.values import excerpt
from workbench.response.charts import contribution_bars
from workbench.response.why import clicked

if TYPE_CHECKING:
    from workbench.align.view import View

MOST_ROWS = 500
LEFT, RIGHT = 480, 610  # pixels: side by side from about 1,400 on, below one another on narrower screens


def draw(view: View) -> None:
    if not view.filtered:
        st.caption("Pairs are dropped by the filter, and no round has come to it yet.")
        return
    with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
        round = choose_round(view.filtered)
        pairs = [one for one in align.pairs_of(round) if one.fate != "kept"]
        reason = _reason(pairs)
    shown = sorted((one for one in pairs if reason in ("", one.fate)), key=lambda one: (one.margin is None, one.margin or 0.0))
    if not shown:
        st.caption("Every pair of this round was kept.")
        return
    with st.container(horizontal=True, gap="medium", key="align drop halves"):
        with st.container(width=LEFT):
            chosen = _table(view, round, shown, reason)
        with st.container(width=RIGHT):
            pair_card(chosen, align.judge_model(view.entry), key=f"drop {round.round}")


def _reason(pairs: Sequence[Generated]) -> str:
    counts = Counter(one.fate for one in pairs)
    with st.container(width=300):
        return state.pick(
            "Reason",
            ["", *counts],
            "align_reason",
            show=lambda one: (
                f"All {len(pairs):,} pairs that were not kept" if not one else f"{align.reason_words(one).capitalize()} ({counts[one]:,})"
            ),
            label_visibility="collapsed",
        )


def _table(view: View, round: RoundRecord, shown: Sequence[Generated], reason: str) -> Generated:
    """The pairs, the clearest drop first; the one that is marked, else the first."""
    ids = [one.candidate.candidate_id for one in shown[:MOST_ROWS]]
    wanted = state.get("align_drop")
    at = ids.index(wanted) if wanted in ids else 0
    labels = labels_of(align.judge_model(view.entry))
    name = f"align drops {view.entry.id} {round.round} {reason} {len(ids)}"
    key = state.table_key(name, ids[at])

    def opened() -> None:
        picked = st.session_state[key]["selection"]["rows"]
        if picked and picked[0] < len(ids) and state.table_shows(name, key, ids[picked[0]]):
            state.choose(align_drop=ids[picked[0]])

    st.dataframe(
        [_row(one, labels) for one in shown[:MOST_ROWS]],
        key=key,
        on_select=opened,
        selection_mode="single-row",
        selection_default={"selection": {"rows": [at]}},
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
        download_rows([row_of(one) for one in shown], name=view.entry.id, what=f"round-{round.round}-dropped", key="align drops files")
    return shown[at]


def _row(one: Generated, labels: Labels) -> dict[str, Any]:
    named = "" if one.decision is None or not one.decision.latents else _name(one.decision.latents[0], labels)
    why = "" if named else visible(one.why, 120)
    return {"Margin": one.margin, "Prompt": excerpt(align.prompt_text(one.candidate.prompt)), "Why": f"{visible(named)} against it" if named else why}


def labels_of(model: FittedModel | None) -> Labels:
    """The labels of the latents that explain drops; none where the reward model is gone or has no latents."""
    return {} if model is None else model_labels(model)


# --- one pair --------------------------------------------------------------------------------------------------------


def pair_card(one: Generated, model: FittedModel | None, *, key: str) -> None:
    """One generated pair in full: both answers, the rewards, the sentence that says why it was dropped, and the latents behind it."""
    labels = labels_of(model)
    with st.container(border=True, key=f"card {key}"):
        st.text(visible(sentence(one, labels)))
        texts_of(one.candidate.prompt)
        if one.candidate.parsed:
            rewards = one.rewards or (None, None)
            answers(
                (("Intended winner", "blue", one.candidate.chosen, rewards[0]), ("Other answer", "orange", one.candidate.rejected, rewards[1])),
            )
        else:
            st.caption("As it was written")
            for raw in one.candidate.raw:
                whole(raw, 100)
        against(one, model, labels, key=key)


def sentence(one: Generated, labels: Labels) -> str:
    """Why the pair was dropped, in one line."""
    if not one.candidate.parsed:
        return f"Not parsed: {one.candidate.refused}."
    if one.decision is None:
        return "Not filtered yet."
    if one.decision.kept:
        return f"Kept: the intended winner scores {number(one.margin, '.2f')} higher."
    if one.fate != "margin":
        beside = "" if one.margin is None else f" Its margin was {one.margin:+.2f}."
        return f"Dropped: {align.reason_words(one.decision.reason)}.{beside}"
    named = [_name(latent, labels) for latent in one.decision.latents[:3]]
    because = f" Most against it: {'; '.join(named)}." if named else ""
    return f"Dropped: the intended winner scores {abs(one.margin or 0.0):.2f} lower than the other answer.{because}"


def against(one: Generated, model: FittedModel | None, labels: Labels, *, key: str) -> None:
    """The latents that took most from the margin, with the deviation over the heads; a click opens the latent."""
    found = () if one.decision is None else one.decision.latents
    if not found:
        if one.fate == "margin":
            st.caption("This filter has no latents, so nothing more can be said of why.")
        return
    st.caption("Latents that spoke against the intended winner. Whiskers: deviation over the heads of all seeds.")
    steps = [_bar(row, labels) for row in found]
    chart = contribution_bars(steps, x="Contribution to the margin (reward)")
    at = f"against {key} {one.candidate.candidate_id}"
    clicked(at, show_chart(chart, key=at, name=one.candidate.candidate_id, select=("points",) if model is not None else ()))
    notes = [f"{step.label}: {step.note}" for step in steps if step.note]
    if notes:
        st.text(visible("\n".join(notes)))
    wanted = state.get("latent")
    if model is not None and wanted in {str(row["latent_id"]) for row in found}:
        state.link("Open the chosen latent", "latent", latent=wanted, model=model.id)


def _bar(row: Mapping[str, Any], labels: Labels) -> Bar:
    figures: dict[str, Any] = {"value": row["contribution"], "deviation": row["deviation"], "agreed": row["agreed"]}
    return Bar(label=_name(row, labels), kind="latents", latent_ids=(int(row["latent_id"]),), note=_note(row, labels), **figures)


def _name(row: Mapping[str, Any], labels: Labels) -> str:
    latent = int(row["latent_id"])
    return name_in_list(latent, labels.get(latent))


def _note(row: Mapping[str, Any], labels: Labels) -> str:
    """What weakens a latent's line: heads that disagree, and a label that the projection does not show (METHOD.md section 1)."""
    auroc = row.get("detection_auroc")
    said = [] if row["agreed"] else ["the heads disagree on its sign"]
    if int(row["latent_id"]) not in labels:
        return "; ".join(said)
    if auroc is None:
        said.append("too rare to say whether its projection shows its label")
    elif auroc < latents.AUROC_BOUND:
        said.append(f"its projection shows its label poorly (detection AUROC {auroc:.2f})")
    return "; ".join(said)


def texts_of(prompt: Sequence[Message]) -> None:
    """A prompt, every message of it, as plain text."""
    for message in prompt:
        st.caption({"user": "Prompt", "system": "System", "assistant": "Earlier answer"}.get(message["role"], "Prompt"))
        whole(message["content"], 110)


def answers(sides: Sequence[tuple[str, str, str, float | None]]) -> None:
    """Two answers side by side: name, colour of the name, text, and reward where it is known."""
    for column, (name, colour, text, reward) in zip(st.columns(len(sides)), sides, strict=True):
        with column, st.container(border=True, height="stretch"):
            with st.container(horizontal=True, vertical_alignment="center"):
                st.badge(name, color=colour)  # type: ignore[arg-type]
                if reward is not None:
                    st.caption(f"reward {number(reward, '+.2f')}", width="content")
            whole(text, 50)


def whole(text: str, width: int) -> None:
    """A whole text as it is; a long one scrolls in a box of its own. `width`: about how many characters a line holds."""
    lines = sum(1 + len(line) // width for line in text.split("\n"))
    with st.container(height=300 if lines > 12 else "content"):
        st.text(visible(text) or "(empty)")
