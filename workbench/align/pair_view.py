"""One generated pair, drawn: its prompt and answers, why it was dropped, and the latents behind that."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from core.explain.drop_reasons import drop_bars, why_dropped
from core.latents.label_book import labels_of as model_labels
from core.latents.labels import Labels
from core.text_safety import visible
from core.types import Message
from workbench.align.pairs import GeneratedPair, reason_words
from workbench.frame import state
from workbench.frame.chart_base import number
from workbench.frame.downloads import show_chart
from workbench.frame.models import FittedModel
from workbench.response.charts import contribution_bars
from workbench.response.response_view import choose_clicked_latent


def labels_of(model: FittedModel | None) -> Labels:
    """The labels of the latents that explain drops; empty where the reward model is gone or has no latents."""
    return {} if model is None else model_labels(model)


def pair_card(pair: GeneratedPair, model: FittedModel | None, *, key: str) -> None:
    """The whole pair: why it was dropped in a sentence, both answers with their rewards, and the latents behind the
    drop.
    """
    labels = labels_of(model)
    with st.container(border=True, key=f"card {key}"):
        st.text(visible(sentence(pair, labels)))
        show_prompt(pair.candidate.prompt)
        if pair.candidate.parsed:
            rewards = pair.rewards or (None, None)
            show_answers(
                [
                    ("Intended winner", "blue", pair.candidate.chosen, rewards[0]),
                    ("Other answer", "orange", pair.candidate.rejected, rewards[1]),
                ]
            )
        else:
            st.caption("As it was written")
            for raw in pair.candidate.raw:
                show_whole(raw, 100)
        opposing_latents(pair, model, labels, key=key)


def sentence(pair: GeneratedPair, labels: Labels) -> str:
    """Why the pair was dropped or kept, in one line."""
    if not pair.candidate.parsed:
        return f"Not parsed: {pair.candidate.refused}."
    if pair.decision is None:
        return "Not filtered yet."
    if pair.decision.kept:
        return f"Kept: the intended winner scores {number(pair.margin, '.2f')} higher."
    if pair.fate != "margin":
        beside = "" if pair.margin is None else f" Its margin was {pair.margin:+.2f}."
        return f"Dropped: {reason_words(pair.decision.reason)}.{beside}"
    return why_dropped(pair.margin or 0.0, pair.decision.latents, labels)


def opposing_latents(pair: GeneratedPair, model: FittedModel | None, labels: Labels, *, key: str) -> None:
    """The latents that lowered the margin most, with the deviation over the heads; a click chooses the latent."""
    opposing = () if pair.decision is None else pair.decision.latents
    if not opposing:
        if pair.fate == "margin":
            st.caption("This filter has no latents, so nothing more can be said of why.")
        return
    st.caption("Latents that spoke against the intended winner. Whiskers: deviation over the heads of all seeds.")
    bars = drop_bars(opposing, labels)
    chart = contribution_bars(bars, x="Contribution to the margin (reward)")
    chart_key = f"against {key} {pair.candidate.candidate_id}"
    choose_clicked_latent(
        chart_key, show_chart(chart, key=chart_key, name=pair.candidate.candidate_id, select=("points",) if model is not None else ())
    )
    notes = [f"{bar.label}: {bar.note}" for bar in bars if bar.note]
    if notes:
        st.text(visible("\n".join(notes)))
    wanted = state.get("latent")
    if model is not None and wanted in {str(latent["latent_id"]) for latent in opposing}:
        state.link("Open the chosen latent", "latent", latent=wanted, model=model.id)


def show_prompt(prompt: Sequence[Message]) -> None:
    """Every message of a prompt, as plain text."""
    for message in prompt:
        st.caption({"user": "Prompt", "system": "System", "assistant": "Earlier answer"}.get(message["role"], "Prompt"))
        show_whole(message["content"], 110)


def show_answers(sides: Sequence[tuple[str, str, str, float | None]]) -> None:
    """Answers side by side, each: its name, the colour of the name, the text, and the reward or None."""
    for column, (name, colour, text, reward) in zip(st.columns(len(sides)), sides, strict=True):
        with column, st.container(border=True, height="stretch"):
            with st.container(horizontal=True, vertical_alignment="center"):
                st.badge(name, color=colour)  # type: ignore[arg-type]
                if reward is not None:
                    st.caption(f"reward {number(reward, '+.2f')}", width="content")
            show_whole(text, 50)


def show_whole(text: str, width: int) -> None:
    """A whole text as it is; a long one scrolls in its own box. `width`: about how many characters a line holds."""
    lines = sum(1 + len(line) // width for line in text.split("\n"))
    with st.container(height=300 if lines > 12 else "content"):
        st.text(visible(text) or "(empty)")
