"""The section Switch off: latents held at their training means, from the folder alone."""

from __future__ import annotations

import streamlit as st

from core.explain.latent_names import name_in_list
from core.explain.switch import SwitchedOff
from core.latents.label_book import labels_of
from core.text_safety import visible
from workbench.frame import state
from workbench.frame.chart_base import interval, number
from workbench.response.response_view import ResponseView
from workbench.response.values import ranked_latents, switch_off

MOST_OFF = 40


def draw(view: ResponseView) -> None:
    """With latents held at their training means: this reward, the shipped head's accuracy on held-out pairs, and its
    correlation with response length."""
    labels, options = labels_of(view.model), ranked_latents(view.response.attribution)
    chosen = [latent for latent in state.get("response_off").split(",") if latent in options]
    widget = state.url_widget("response off", chosen, lambda picked: state.choose(response_off=",".join(picked)))
    st.multiselect(
        "Latents to switch off, those that did most here first",
        options,
        format_func=lambda latent: visible(name_in_list(int(latent), labels.get(int(latent)))),
        max_selections=MOST_OFF,
        placeholder="Choose latents",
        **widget,
    )
    off, all_on = switch_off(view.model, list(map(int, chosen)), view.response)
    n_held_out = view.response.figures.n_held_out
    length = f"{interval(off.length.value, off.length.low, off.length.high, '.2f')}, n = {n_held_out:,} responses"
    with st.container(horizontal=True, gap="small", key="response off figures"):
        _moved("Reward", all_on.reward, off.reward, ".3f", "of the response in view")
        accuracies = 100 * all_on.accuracy.accuracy, 100 * off.accuracy.accuracy
        _moved("Accuracy, shipped head (%)", *accuracies, ".1f", _accuracy(off))
        _moved("Correlation with length", all_on.length.value, off.length.value, ".2f", length)
    st.caption(f"With these off: accuracy {_accuracy(off)}; correlation of its reward with length {length}, Spearman, over held-out responses.")
    if not chosen:
        st.caption("Nothing is switched off. A switched-off latent's projection is held at its training mean, exactly, on the head.")


def _accuracy(off: SwitchedOff) -> str:
    accuracy = off.accuracy
    return f"{interval(100 * accuracy.accuracy, 100 * accuracy.low, 100 * accuracy.high, '.1f')} %, {off.measured_on}"


def _moved(label: str, before: float | None, after: float | None, form: str, help: str) -> None:
    change = None if before is None or after is None or before == after else f"{after - before:+{form}}"
    st.metric(label, number(after, form), change, delta_color="off", border=True, help=help)
