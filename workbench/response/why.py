"""The upper half of the Response page: the sentence, the figures, the waterfall and the chosen latent's evidence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import streamlit as st

from core.explain.explanation import INACTIVE, Explanation, PairExplanation
from core.explain.latent_names import name_in_list
from core.explain.sentence import Why
from core.explain.waterfall import waterfall_steps
from core.latents.label_book import labels_of
from core.text_safety import visible
from workbench.frame import state
from workbench.frame.chart_base import interval, number, percent
from workbench.frame.downloads import file_name, show_chart
from workbench.latents.values import detection_interval
from workbench.response.charts import waterfall
from workbench.response.response_view import NAMES, ResponseView, choose_clicked_latent
from workbench.response.values import SIDES, latent_row, row_of


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
    st.metric("Reward", f"{explanation.reward:.2f}", help="read where the head was trained: at the end of the response")
    st.metric("Percentile", f"{explanation.percentile:.0f}", among, delta_color="off", delta_arrow="off")
    known = f"over {explanation.n_known:,} known responses" if explanation.n_known > 1 else "not known apart"
    parts = {"Prompt part": explanation.prompt_part, "Response part": explanation.response_part}
    for name, part in parts.items():
        value = f"{part.sum():+.2f}" if explanation.n_known > 1 else "–"
        st.metric(name, value, known, delta_color="off", delta_arrow="off", help="baseline + prompt part + response part = reward")


def sentence(view: ResponseView) -> None:
    """The sentence that explains, and a button for each latent that it names: its evidence stands beside the waterfall."""
    why = view.explanation.why
    with st.container(border=True, gap="xsmall", key="response why"):
        st.text(visible(why.text))
        with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
            for latent_id in (named.latent_id for named in why.named):
                shown: Any = {"type": "primary" if state.get("latent") == str(latent_id) else "secondary", "on_click": state.choose}
                st.button(f"Latent {latent_id}", key=f"response named {latent_id}", kwargs={"latent": latent_id}, **shown)
            weaknesses(why)
            st.space("stretch")
            download(view)


def weaknesses(why: Why) -> None:
    """The reasons to doubt the sentence."""
    if why.weaknesses:
        with st.popover(f"What weakens this ({len(why.weaknesses)})", icon=":material/info:", type="tertiary"):
            for weakness in why.weaknesses:
                st.text(visible(weakness))


def bars(view: ResponseView) -> None:
    """The waterfall; a click on a bar chooses its latent."""
    steps = waterfall_steps(view.explanation, labels_of(view.model))
    key = f"response waterfall {view.pair_id} {view.name}"
    choose_clicked_latent(key, show_chart(waterfall(steps), key=key, name=view.model.name, select=("points",)))


def latent_card(view: ResponseView) -> None:
    """What the chosen latent did here, and what the selection measured of it."""
    wanted = state.get("latent")
    if not wanted:
        st.caption("Click a bar to see that latent's evidence and to mark its words.")
        return
    latent = int(wanted) if wanted.isascii() and wanted.isdecimal() and len(wanted) < 10 else -1
    facts = {side: row_of(explanation, latent) for side, explanation in view.columns.items()}
    with st.container(key="response latent", border=True, gap="small"):
        if not any(facts.values()):
            st.caption("This reward model does not read the chosen latent: it is not among the selected ones.")
        else:
            with st.container(horizontal=True, vertical_alignment="center"):
                st.text(visible(name_in_list(latent, labels_of(view.model).get(latent))), width="stretch")
                state.link("Its page", "latent", latent=latent)
            st.markdown(facts_table(facts))
            st.caption(evidence_words(latent_row(view.model, latent), detection_interval(view.model, latent)))


ROWS = {
    "contribution": "Contribution",
    "prompt_part": "… prompt part",
    "response_part": "… response part",
    "projection": "Projection (mean)",
    "activation": "SAE activation",
    "at_mean": "Held at its mean",
    "removed": "Removed from the stream",
}


def facts_table(facts: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table of our words and numbers, a column a response."""
    lines = ["| | " + " | ".join(NAMES[side] for side in facts) + " |", "|---|" + "--:|" * len(facts)]
    for name, label in ROWS.items():
        lines.append(f"| {label} | " + " | ".join(_fact(name, row) for row in facts.values()) + " |")
    return "\n".join(lines)


def _fact(name: str, row: Mapping[str, Any]) -> str:
    value = row.get(name)
    if value is None:
        return "inactive" if row.get("removal") == INACTIVE and name == "removed" else "–"
    if name == "contribution":
        return f"{value:+.3f} ± {row['deviation']:.3f}"
    if name == "projection":
        return f"{value:.2f} ({row['baseline']:.2f})"
    return f"{value:.2f}" if name == "activation" else f"{value:+.3f}"


def evidence_words(row: Mapping[str, Any], detection: tuple[float, float, int] | None = None) -> str:
    """What the selection measured of a latent, in one line of our words. `detection`: interval and n of its detection
    AUROC.
    """
    if not row:
        return "± is the deviation over the heads."
    points = {name: None if row.get(name) is None else 100 * row[name] for name in ("separation", "low", "high", "held_out")}
    low, high, n = detection or (None, None, 0)
    auroc = interval(row.get("detection_auroc"), low, high, ".2f") + (f", n = {n:,} responses" if detection else "")
    return ", ".join(
        [
            f"Separation {interval(points['separation'], points['low'], points['high'], '+.1f')} points in training",
            f"{number(points['held_out'], '+.1f')} held out, detection AUROC {auroc}",
            f"selected again in {percent(row.get('stability'))} of resamples. ± is the deviation over the heads.",
        ]
    )


def download(view: ResponseView) -> None:
    """The explanation as `sparserm explain --json` writes it."""
    explanation = view.explained.pair or next(iter(view.explained.sides.values()))

    def as_json() -> bytes:
        value = {"kind": "pair" if view.explained.pair else "response", "explanation": explanation.to_json()}
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")

    shown: Any = {"key": "response json", "on_click": "ignore", "type": "tertiary", "icon": ":material/download:"}
    st.download_button("Explanation", as_json, file_name(view.model.name, "explanation", kind="json"), "application/json", **shown)
