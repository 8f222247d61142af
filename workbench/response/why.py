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
from core.text_safety import visible
from workbench.frame import state
from workbench.frame.chart_base import interval, number, percent
from workbench.frame.downloads import file_name, show_chart
from workbench.frame.models import FittedModel
from workbench.latents.values import detection_interval
from workbench.response.charts import waterfall
from workbench.response.values import SIDES, Explained, kept, latent_row, row_of

NAMES = {"margin": "Margin", "chosen": "Chosen", "rejected": "Rejected", "response": "Response", "edited": "Edited"}


def figures(found: Explained, view: str, edited: Explanation | None) -> None:
    """The numbers: of the margin, or of one response."""
    with st.container(horizontal=True, gap="small", key="response figures"):
        if view == "margin" and found.pair is not None:
            _margin_figures(found.pair)
        else:
            _response_figures(one_of(found, view, edited))


def _margin_figures(pair: PairExplanation) -> None:
    margin = pair.margin.reward - pair.margin.baseline_reward
    st.metric("Margin", f"{margin:+.2f}", help="reward of the chosen response less that of the rejected one")
    st.metric("P(chosen wins)", f"{pair.probability:.2f}", help="calibrated on validation pairs")
    for side in SIDES:
        one: Explanation = getattr(pair, side)
        said = f"percentile {one.percentile:.0f}, n = {one.figures.n_held_out:,} held out"
        st.metric(f"{side.capitalize()} reward", f"{one.reward:.2f}", said, delta_color="off", delta_arrow="off")


def _response_figures(one: Explanation) -> None:
    among = f"of {one.figures.n_held_out:,} held-out responses"
    st.metric("Reward", f"{one.reward:.2f}", help="read where the head was trained: at the end of the response")
    st.metric("Percentile", f"{one.percentile:.0f}", among, delta_color="off", delta_arrow="off")
    known = f"over {one.n_known:,} known responses" if one.n_known > 1 else "not known apart"
    parts = {"Prompt part": one.prompt_part, "Response part": one.response_part}
    for name, part in parts.items():
        said = f"{part.sum():+.2f}" if one.n_known > 1 else "–"
        st.metric(name, said, known, delta_color="off", delta_arrow="off", help="baseline + prompt part + response part = reward")


def one_of(found: Explained, view: str, edited: Explanation | None) -> Explanation:
    """The response that a view is about; of the margin the lower one."""
    if view == "edited" and edited is not None:
        return edited
    return found.sides[view if view in found.sides else found.lowest]


def sentence(model: FittedModel, found: Explained, view: str, edited: Explanation | None) -> None:
    """Why, in a sentence of the engine's, and a button for each latent that it names: its evidence stands beside the waterfall."""
    why = _why(found, view, edited)
    with st.container(border=True, gap="xsmall", key="response why"):
        st.text(visible(why.text))
        with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
            for one in why.named:
                shown: Any = {"type": "primary" if state.get("latent") == str(one.latent_id) else "secondary", "on_click": state.choose}
                st.button(f"Latent {one.latent_id}", key=f"response named {one.latent_id}", kwargs={"latent": one.latent_id}, **shown)
            weaknesses(why)
            st.space("stretch")
            download(model, found)


def weaknesses(why: Why) -> None:
    """What stands against believing the sentence."""
    if why.weaknesses:
        with st.popover(f"What weakens this ({len(why.weaknesses)})", icon=":material/info:", type="tertiary"):
            for one in why.weaknesses:
                st.text(visible(one))


def _why(found: Explained, view: str, edited: Explanation | None) -> Why:
    return found.pair.why if view == "margin" and found.pair is not None else one_of(found, view, edited).why


def bars(model: FittedModel, found: Explained, view: str, edited: Explanation | None) -> None:
    """The waterfall; a click on a bar chooses its latent."""
    explanation = found.pair if view == "margin" and found.pair is not None else one_of(found, view, edited)
    steps = waterfall_steps(explanation, kept(model).labels)
    key = f"response waterfall {found.subject.pair_id} {view}"
    picked = show_chart(waterfall(steps), key=key, name=model.name, select=("points",))
    clicked(key, picked)


def clicked(key: str, picked: list[str]) -> None:
    """Chooses the latent of a mark that has just been clicked. A chart tells its selection again at each run, so the last one is remembered."""
    last, now = st.session_state.get(f"{key} last", ""), "".join(picked[:1])
    st.session_state[f"{key} last"] = now
    if now and now != last and now != state.get("latent"):
        state.choose(latent=now)
        st.rerun()


def latent_card(model: FittedModel, found: Explained, edited: Explanation | None) -> None:
    """What the chosen latent did here, and what is known of it."""
    wanted, of = state.get("latent"), kept(model)
    if not wanted:
        st.caption("Click a bar to see that latent's evidence and to mark its words.")
        return
    latent = int(wanted) if wanted.isascii() and wanted.isdecimal() and len(wanted) < 10 else -1
    columns = {**found.sides, **({"edited": edited} if edited is not None else {})}
    facts = {side: row_of(explanation, latent) for side, explanation in columns.items()}
    with st.container(key="response latent", border=True, gap="small"):
        if not any(facts.values()):
            st.caption("This reward model does not read the chosen latent: it is not among the selected ones.")
        else:
            with st.container(horizontal=True, vertical_alignment="center"):
                st.text(visible(name_in_list(latent, of.labels.get(latent))), width="stretch")
                state.link("Its page", "latent", latent=latent)
            st.markdown(facts_table(facts))
            st.caption(evidence_words(latent_row(of, latent), detection_interval(model, latent)))


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


def evidence_words(row: object, sure: tuple[float, float, int] | None = None) -> str:
    """What the selection measured of a latent, in one line of our words. `sure`: interval and n of its detection AUROC."""
    if not isinstance(row, dict) or not row:
        return "± is the deviation over the heads."
    points = {name: None if row.get(name) is None else 100 * row[name] for name in ("separation", "low", "high", "held_out")}
    said = [f"Separation {interval(points['separation'], points['low'], points['high'], '+.1f')} points in training"]
    low, high, n = sure or (None, None, 0)
    detection = interval(row.get("detection_auroc"), low, high, ".2f") + (f", n = {n:,} responses" if sure else "")
    said.append(f"{number(points['held_out'], '+.1f')} held out, detection AUROC {detection}")
    said.append(f"selected again in {percent(row.get('stability'))} of resamples. ± is the deviation over the heads.")
    return ", ".join(said)


def download(model: FittedModel, found: Explained) -> None:
    """Everything that is said of this pair, as `sparserm explain --json` gives it."""
    one = found.pair or next(iter(found.sides.values()))

    def made() -> bytes:
        return json.dumps({"kind": "pair" if found.pair else "response", "explanation": one.to_json()}, ensure_ascii=False).encode("utf-8", "replace")

    shown: Any = {"key": "response json", "on_click": "ignore", "type": "tertiary", "icon": ":material/download:"}
    st.download_button("Explanation", made, file_name(model.name, "explanation", kind="json"), "application/json", **shown)
