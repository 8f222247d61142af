"""The texts of the Response page: chosen and rejected side by side, coloured by what each word adds, by one latent's share of
it, by a latent's activation or by how sensitive the reward is to each token.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import streamlit as st

from core.explain.latent_names import name_in_list
from core.explain.token_values import TokenGradient, TokenView
from core.explain.word_rows import Word, gradient_words, latent_words, token_spans
from core.explain.words import AT_RESPONSE_END, NOT_KEPT
from core.latents.label_book import labels_of
from core.text_safety import visible
from workbench.frame import live_panel, state
from workbench.frame.downloads import rows_behind
from workbench.frame.marked_text import Pane, show_marked
from workbench.frame.text_points import Point, Spans, point_of
from workbench.response.readings import gradient_of, tokens_of
from workbench.response.response_view import TITLES, ResponseView
from workbench.response.splits import latent_names, scale_of, unit_readers, units_of, words_of
from workbench.response.values import ranked_latents

EXACT = {"word": "Words", "sentence": "Sentences", "line": "Lines", "latent": "One latent"}
BY_TOKEN = {"activation": "Activation", "gradient": "Sensitivity"}
GRADIENT = (
    "Coloured by the length of the reward's gradient to each token's embedding: how sensitive the reward is to a small change there, up or down. "
    "It does not say what a word adds; that is measured under Delete."
)
WORDS_NEED = "Activations, sensitivity, deletions and edits need the language model. It loads in seconds and is stopped when it is idle."
HEIGHT = 380


def draw(view: ResponseView) -> bool:
    """The panes with the control of their colours. Where these need the language model and it is not up, draws the way
    to it, with the plain texts, and returns False.
    """
    split = bool(words_of(view))
    options = {**(EXACT if split else {}), **BY_TOKEN}
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="response shades"):
        shade = state.segments("Colour the texts by", options, "response_shade")
        latent = _latent(view) if shade in ("latent", "activation") else ""
    if not view.whole:
        st.caption(AT_RESPONSE_END)
    if shade in EXACT:
        _exact(view, shade, latent)
        return True
    if shade == "activation" and _kept_activation(view, latent):
        return True
    if live_panel.ready(view.model, NOT_KEPT if view.whole and not split else WORDS_NEED, key="words"):
        _by_token(view, shade, latent)
        return True
    panes = [_pane(view, side) for side in view.panes]
    show_marked(panes, key=f"response texts {view.pair_id}", place=view.pair_id, on_point=_point, height=HEIGHT)
    return False


def _latent(view: ResponseView) -> str:
    """The latent whose share or activation colours the texts, with the choice of another."""
    labels = labels_of(view.model)

    def name(latent: str) -> str:
        return visible(name_in_list(int(latent), labels.get(int(latent))))

    with st.container(width=330):
        return state.pick("Mark the words of", ranked_latents(view.explanation.attribution), "latent", show=name)


def _exact(view: ResponseView, shade: str, latent: str) -> None:
    """Each unit with what it adds, or with the share of one latent."""
    latent_ids = view.explanation.attribution.latent_ids
    units = units_of(view, "word" if shade == "latent" else shade)
    column = latent_ids.tolist().index(int(latent)) if shade == "latent" else None
    values = {side: of_side.values if column is None else of_side.table[:, column] for side, of_side in units.items()}
    what = "margin" if view.name == "margin" else "reward"
    legend = (f"lowers the {what}", f"raises the {what}") if column is None else (f"this latent lowers the {what}", "raises it")
    panes = [
        _pane(view, side, of_side.spans, values[side].tolist(), unit_readers(of_side, latent_ids))
        for side, of_side in sorted(units.items(), key=lambda unit: view.panes.index(unit[0]))
    ]
    _show(view, panes, "word" if shade == "latent" else shade, scale_of(values), legend)


def _kept_activation(view: ResponseView, latent: str) -> bool:
    """Each word with the latent's largest activation at its tokens, where these are kept or read already; else False."""
    units = units_of(view, "word")
    column = view.explanation.attribution.latent_ids.tolist().index(int(latent))
    values = {side: of_side.activations[:, column] for side, of_side in units.items() if of_side.activations is not None}
    if not values or len(values) < len(units):
        return False
    panes = [
        _pane(view, side, units[side].spans, values[side].tolist(), more="" if values[side].any() else "not active here")
        for side in view.panes
        if side in values
    ]
    _show(view, panes, "word", scale_of(values), ("", "more active"))
    return True


def _by_token(view: ResponseView, shade: str, latent: str) -> None:
    """Each token with a latent's activation, or with the sensitivity of the reward to it."""
    tokens = {side: tokens_of(view.model, view.item(side)) for side in view.panes}
    if shade == "gradient":
        st.caption(GRADIENT)
        with st.spinner("Computing gradients; the first one takes some seconds."):
            words = {side: _gradient(view, side, of_side) for side, of_side in tokens.items()}
    else:
        words = {side: latent_words(of_side, int(latent)) for side, of_side in tokens.items()}
    panes = []
    for side, of_side in words.items():
        text, spans = token_spans(of_side, view.columns[side].response)
        idle = shade == "activation" and not any(word.value > 0 for word in of_side)
        panes.append(_pane(view, side, spans, [word.value for word in of_side], text=text, more="not active here" if idle else ""))
    scale = scale_of({side: np.array([word.value for word in of_side]) for side, of_side in words.items()})
    _show(view, panes, "token", scale, ("", "more sensitive" if shade == "gradient" else "more active"))


def _gradient(view: ResponseView, side: str, tokens: TokenView) -> list[Word]:
    return gradient_words(tokens, TokenGradient(norm=gradient_of(view.model, view.item(side)), reward=view.columns[side].reward))


def _show(view: ResponseView, panes: Sequence[Pane], unit: str, scale: float, legend: tuple[str, str]) -> None:
    show_marked(
        panes,
        key=f"response texts {view.pair_id}",
        place=view.pair_id,
        on_point=_point,
        unit=unit,
        scale=scale,
        legend=legend,
        names=latent_names(view.explanation.attribution.latent_ids, labels_of(view.model)),
        chosen=point_of(state.get("response_word")),
        height=HEIGHT,
    )
    rows_behind(lambda: table(panes, unit), what=f"{unit}s", key="response words", name=view.model.name)


def _pane(
    view: ResponseView,
    side: str,
    spans: Spans = (),
    values: Sequence[float | None] = (),
    readers: Sequence[Sequence[tuple[int, float]]] = (),
    *,
    text: str = "",
    more: str = "",
) -> Pane:
    """The pane of a side: its reward and place among held-out responses above its text."""
    explanation = view.columns[side]
    seen = " · explained here" if view.name == side else ""
    return Pane(
        name=side,
        title=TITLES[side],
        caption=f"reward {explanation.reward:.2f}, percentile {explanation.percentile:.0f}{seen}" + (f" · {more}" if more else ""),
        side=side,
        text=text or explanation.response,
        spans=spans,
        values=values,
        readers=readers,
    )


def table(panes: Sequence[Pane], unit: str) -> list[dict[str, object]]:
    """Every unit with its value: for people who can't see the colours, and for files."""
    return [
        {"response": pane.name, "start": start, "stop": stop, unit: pane.text[start:stop], "value": value}
        for pane in panes
        for (start, stop), value in zip(pane.spans, pane.values, strict=True)
    ]


def _point(point: Point | None) -> None:
    state.choose(response_word=None if point is None else str(point))
