"""Why a response got its reward, or a pair its margin: the sentence, the latents that it names, and the figures."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from core.explain.explanation import Explanation, PairExplanation
from core.explain.latent_marks import label_mark, latent_marks, reliability
from core.explain.sentence import Why
from core.latents.label_book import labels_of
from core.text_safety import visible
from workbench.frame import state
from workbench.frame.downloads import file_name
from workbench.frame.text_points import Point
from workbench.response.response_view import ResponseView, choose_latent
from workbench.response.values import SIDES


def figures(view: ResponseView) -> None:
    """The numbers: of the margin, or of one response."""
    with st.container(horizontal=True, gap="small", key="response figures"):
        if isinstance(view.explanation, PairExplanation):
            _margin_figures(view.explanation)
        else:
            _response_figures(view.explanation)


def _margin_figures(pair: PairExplanation) -> None:
    margin = pair.margin.reward - pair.margin.baseline_reward
    st.metric("Margin", f"{margin:+.2f}", help="reward of the chosen response less that of the rejected one")
    st.metric("P(chosen wins)", f"{pair.probability:.2f}", help="calibrated on validation pairs")
    for side in SIDES:
        explanation: Explanation = getattr(pair, side)
        among = f"percentile {explanation.percentile:.0f}, n = {explanation.figures.n_held_out:,} held out"
        st.metric(f"{side.capitalize()} reward", f"{explanation.reward:.2f}", among, delta_color="off", delta_arrow="off")


def _response_figures(explanation: Explanation) -> None:
    among = f"of {explanation.figures.n_held_out:,} held-out responses"
    st.metric("Reward", f"{explanation.reward:.2f}", help="the head's output, read at the place where the head was trained")
    st.metric("Percentile", f"{explanation.percentile:.0f}", among, delta_color="off", delta_arrow="off")
    known = f"over {explanation.n_known:,} known responses" if explanation.n_known > 1 else "not known apart"
    parts = {"Prompt part": explanation.prompt_part, "Response part": explanation.response_part}
    for name, part in parts.items():
        value = f"{part.sum():+.2f}" if explanation.n_known > 1 else "–"
        st.metric(name, value, known, delta_color="off", delta_arrow="off", help="baseline + prompt part + response part = reward")


def sentence(view: ResponseView) -> None:
    """The sentence that explains, and each latent that it names with what speaks against it."""
    why = view.explanation.why
    with st.container(border=True, gap="xsmall", key="response why"):
        st.text(visible(why.text))
        with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
            for number, quote in enumerate(why.quotes, start=1):
                side = view.response_name if quote.side == "response" else quote.side
                shown: Any = {
                    "type": "tertiary",
                    "icon": ":material/format_quote:",
                    "help": "Shows these words in the text and which latents read them",
                }
                st.button(f"Quote {number}", key=f"response quote {number}", on_click=_show_quote, args=(side, quote.start), **shown)
            for latent_id in (named.latent_id for named in why.named):
                shown = {"type": "primary" if state.get("latent") == str(latent_id) else "secondary", "on_click": choose_latent}
                with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", width="content", wrap=False):
                    st.button(f"Latent {latent_id}", key=f"response named {latent_id}", args=(view, latent_id), **shown)
                    st.markdown(marks_of(view, latent_id), width="content")
            weaknesses(why)
            st.space("stretch")
            download(view)


def _show_quote(side: str, start: int) -> None:
    state.choose(response_word=str(Point(pane=side, at=start)))


def marks_of(view: ResponseView, latent_id: int) -> str:
    """How reliable the latent's label is, and what speaks against the latent here, as badges of our own words."""
    label = labels_of(view.model).get(latent_id)
    marks = latent_marks(label, view.activation(latent_id))
    return " ".join([*(f":orange-badge[{mark}]" for mark in marks), *([] if label_mark(label) else [f":gray-badge[{reliability(label)}]"])])


def weaknesses(why: Why) -> None:
    """The reasons to doubt the sentence."""
    if why.weaknesses:
        with st.popover(f"What weakens this ({len(why.weaknesses)})", icon=":material/info:", type="tertiary"):
            for weakness in why.weaknesses:
                st.text(visible(weakness))


def download(view: ResponseView) -> None:
    """The explanation as `sparserm explain --json` writes it."""
    explanation = view.explained.pair or next(iter(view.explained.sides.values()))

    def as_json() -> bytes:
        value = {"kind": "pair" if view.explained.pair else "response", "explanation": explanation.to_json()}
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")

    shown: Any = {"key": "response json", "on_click": "ignore", "type": "tertiary", "icon": ":material/download:"}
    st.download_button("Explanation", as_json, file_name(view.model.name, "explanation", kind="json"), "application/json", **shown)
