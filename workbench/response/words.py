"""The section Words: the words that a latent is active on, or that the reward is sensitive to, and the running reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from core.explain.latent_names import name_in_list
from core.explain.token_values import TokenGradient, TokenView
from core.explain.word_rows import Word, gradient_words, latent_words, strongest, word_rows
from core.latents.label_book import labels_of
from core.text_safety import visible
from workbench.frame import live_panel, state
from workbench.frame.downloads import rows_behind, show_chart
from workbench.frame.tokens import TokenRow, show_tokens, table
from workbench.response.charts import running_reward
from workbench.response.readings import gradient_of, tokens_of
from workbench.response.response_view import NAMES, ResponseView
from workbench.response.values import ranked_latents

SHADES = {"latent": "A latent", "gradient": "Gradient"}
GRADIENT = (
    "Shaded by the length of the reward's gradient to each token's embedding: how sensitive the reward is to a small change there, up or down. "
    "It does not say what a word adds; that is measured under Delete."
)
WORDS_NEED = "Marking words, the running reward, deletions and edits need the language model. It loads in seconds and is given up when idle."
TEXT_HEIGHT = 330
ALL_LONGEST = 20_000  # characters of a response shown as plain text


def draw(view: ResponseView) -> None:
    """Both responses with the words marked that the chosen latent is active on, and the reward as it runs."""
    sides = list(view.explained.sides) if view.name in ("margin", "response") else [view.name]
    if not live_panel.ready(view.model, WORDS_NEED, key="words"):
        _plain_texts(view, sides)
        return
    shade = state.segments("Shade words by", SHADES, "response_shade")
    tokens = {side: tokens_of(view.model, view.item(side)) for side in sides}
    rows, unit = (_gradient_rows(view, tokens), "gradient") if shade == "gradient" else (_latent_rows(view, tokens), "activation")
    show_tokens(rows, key=f"response words {shade} {'-'.join(sides)}", unit=unit, height=TEXT_HEIGHT)
    rows_behind(lambda: table(rows, unit), what="words", key="response words", name=view.model.name)
    _running_reward(view, sides, tokens)


def _latent_rows(view: ResponseView, tokens: Mapping[str, TokenView]) -> list[TokenRow]:
    """Each side shaded by the chosen latent."""
    attribution = (view.explained.pair or view.response).attribution
    labels = labels_of(view.model)

    def name(latent: str) -> str:
        return visible(name_in_list(int(latent), labels.get(int(latent))))

    chosen = int(state.pick("Mark the words of", ranked_latents(attribution), "latent", show=name))
    rows = []
    for side, of_side in tokens.items():
        words = latent_words(of_side, chosen)
        rows.append(token_row(words, NAMES[side] + ("" if strongest(words, 1) else ", not active here")))
    return rows


def _gradient_rows(view: ResponseView, tokens: Mapping[str, TokenView]) -> list[TokenRow]:
    """Each side shaded by how sensitive its reward is to each token."""
    st.caption(GRADIENT)
    with st.spinner("Computing gradients; the first one takes some seconds."):
        gradients = {side: TokenGradient(norm=gradient_of(view.model, view.item(side)), reward=view.columns[side].reward) for side in tokens}
    return [token_row(gradient_words(of_side, gradients[side]), NAMES[side]) for side, of_side in tokens.items()]


def token_row(words: Sequence[Word], caption: str) -> TokenRow:
    """The words with their values, and with the reward that the head reads at each; the strongest one is underlined."""
    peak = next((words.index(word) for word in strongest(words, 1)), None)
    notes = {place: f"reward read here {word.running:.2f}" for place, word in enumerate(words)}
    return TokenRow(texts=[word.text for word in words], values=[word.value for word in words], caption=caption, notes=notes, peak=peak)


def _running_reward(view: ResponseView, sides: Sequence[str], tokens: Mapping[str, TokenView]) -> None:
    """The reward at each token of the side in view, and beside it that of the other side."""
    first, *others = sorted(sides, key=lambda side: side != view.side)
    beside = [word.running for word in word_rows(tokens[others[0]], None)] if others else None
    chart = running_reward(tokens[first].texts, tokens[first].running.tolist(), tokens[first].kinds, other=beside)
    dashed = f"; dashed: {NAMES[others[0]].lower()}" if others else ""
    st.caption(f"Running reward of the {NAMES[first].lower()} response{dashed}. Exploratory: the head was trained on the last token only.")
    show_chart(chart, key=f"response running {first} {view.pair_id}", name=view.model.name)


def _plain_texts(view: ResponseView, sides: Sequence[str]) -> None:
    """The texts as they are, as long as nobody has started the language model."""
    for side in sides:
        text = view.item(side)[1]
        with st.container(border=True, key=f"response text {side}", height=190 if len(text) > 500 else "content"):
            st.caption(NAMES[side])
            st.text(visible(text[:ALL_LONGEST]))
            if len(text) > ALL_LONGEST:
                st.caption(f"{len(text) - ALL_LONGEST:,} more characters.")
