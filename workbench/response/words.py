"""Token by token: the words a latent is active on, the running reward, and what a sentence or a marked span adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import streamlit as st

from core.explain.latent_names import name_in_list
from core.explain.waterfall import Bar
from core.text_safety import visible
from workbench.frame import live_panel, state
from workbench.frame.downloads import rows_behind, show_chart
from workbench.frame.tokens import TokenRow, show_tokens, table
from workbench.response.charts import contribution_bars, running_reward
from workbench.response.values import (
    deletions_of,
    gradient_of,
    keep_edit,
    kept,
    one_line,
    ranked_latents,
    response_tokens,
    span_of,
    tokens_of,
)

if TYPE_CHECKING:
    from workbench.response.view import View

SHADES = {"latent": "A latent", "gradient": "Gradient"}
GRADIENT = (
    "Shaded by the length of the reward's gradient to each token's embedding: how sensitive the reward is to a small change there, up or down. "
    "It does not say what a word adds; that is measured under Delete."
)
NAMES = {"chosen": "Chosen", "rejected": "Rejected", "response": "Response", "edited": "Edited"}
WORDS_NEED = "Marking words, the running reward, deletions and edits need the language model. It loads in seconds and is given up when idle."
TEXT_HEIGHT = 330
ALL_LONGEST = 20_000  # characters of a response shown as plain text


def words(view: View) -> None:
    """Both responses with the words marked that the chosen latent is active on, and the reward as it runs."""
    sides = list(view.found.sides) if view.name in ("margin", "response") else [view.name]
    if not live_panel.ready(view.model, WORDS_NEED, key="words"):
        _plain(view, sides)
        return
    shade = state.segments("Shade words by", SHADES, "response_shade")
    read = {side: _tokens(view, side) for side in sides}
    rows, unit = (_gradient_rows(view, read), "gradient") if shade == "gradient" else (_latent_rows(view, read), "activation")
    show_tokens(rows, key=f"response words {shade} {'-'.join(sides)}", unit=unit, height=TEXT_HEIGHT)
    rows_behind(lambda: table(rows, unit), what="words", key="response words", name=view.model.name)
    first, *others = [view.side, *(side for side in sides if side != view.side)] if view.side in sides else sides
    _running(view, first, read[first], read[others[0]] if others else None, others)


def _tokens(view: View, side: str) -> dict[str, Any]:
    return dict(view.edits[-1].tokens) if side == "edited" else tokens_of(view.model, view.found.subject.item(side))


def _latent_rows(view: View, read: Mapping[str, dict[str, Any]]) -> list[TokenRow]:
    """Each side shaded by the chosen latent."""
    latents = ranked_latents(kept(view.model), view.found.pair.margin.contribution if view.found.pair else view.one.attribution.contribution)
    labels = kept(view.model).labels
    chosen = state.pick("Mark the words of", latents, "latent", show=lambda one: visible(name_in_list(int(one), labels.get(int(one)))))
    rows = []
    for side, tokens in read.items():
        activation = tokens["activation"].get(chosen, [])
        values = [activation[i] if i < len(activation) else 0.0 for i in response_tokens(tokens)]
        active = bool(values) and max(values) > 0
        rows.append(_row(tokens, values, NAMES[side] + ("" if active else ", not active here"), active))
    return rows


def _gradient_rows(view: View, read: Mapping[str, dict[str, Any]]) -> list[TokenRow]:
    """Each side shaded by how sensitive its reward is to each token."""
    st.caption(GRADIENT)
    rows = []
    with st.spinner("Computing gradients; the first one takes some seconds."):
        for side, tokens in read.items():
            item = (view.found.subject.prompt, view.edits[-1].response) if side == "edited" else view.found.subject.item(side)
            norm = gradient_of(view.model, item)
            rows.append(_row(tokens, [norm[i] for i in response_tokens(tokens)], NAMES[side], True))
    return rows


def _row(tokens: Mapping[str, Any], values: list[float], caption: str, peaks: bool) -> TokenRow:
    """The response's own tokens."""
    own = response_tokens(tokens)
    peak = max(range(len(values)), key=values.__getitem__) if values and peaks else None
    notes = {place: f"reward read here {tokens['running_reward'][i]:.2f}" for place, i in enumerate(own)}
    return TokenRow(texts=[tokens["texts"][i] for i in own], values=values, caption=caption, notes=notes, peak=peak)


def _running(view: View, side: str, tokens: dict[str, Any], beside: dict[str, Any] | None, others: list[str]) -> None:
    other = None if beside is None else [beside["running_reward"][i] for i in response_tokens(beside)]
    chart = running_reward(tokens["texts"], tokens["running_reward"], tokens["kinds"], other=other)
    more = f"; dashed: {NAMES[others[0]].lower()}" if others else ""
    st.caption(f"Running reward of the {NAMES[side].lower()} response{more}. Exploratory: the head was trained on the last token only.")
    show_chart(chart, key=f"response running {side} {view.found.subject.pair_id}", name=view.model.name)


def _plain(view: View, sides: list[str]) -> None:
    """The texts as they are, while nobody has asked for the language model."""
    for side in sides:
        text = view.edits[-1].response if side == "edited" else view.found.subject.texts[side]
        with st.container(border=True, key=f"response text {side}", height=190 if len(text) > 500 else "content"):
            st.caption(NAMES[side])
            st.text(visible(text[:ALL_LONGEST]))
            if len(text) > ALL_LONGEST:
                st.caption(f"{len(text) - ALL_LONGEST:,} more characters.")


# --- deletions -------------------------------------------------------------------------------------------------------


def deletions(view: View) -> None:
    """What each sentence adds, and what any marked span does: the response is scored again without it."""
    if not live_panel.ready(view.model, WORDS_NEED, key="delete"):
        return
    item = (view.one.prompt, view.one.response)
    found = deletions_of(view.model, item)
    steps = [Bar(label=_quoted(one["text"]), value=one["effect"], note=_quoted(one["text"], 300)) for one in found if one["effect"] is not None]
    st.caption(
        f"What each sentence (of one sentence, each word) of the {NAMES[_side(view)].lower()} response adds: the reward less the reward without it."
    )
    if steps:
        show_chart(contribution_bars(steps, x="Reward that it adds"), key=f"response sentences {_name(view)}", name=view.model.name)
    tokens = dict(view.edits[-1].tokens) if _side(view) == "edited" else tokens_of(view.model, item)
    own = response_tokens(tokens)
    row = TokenRow(texts=[tokens["texts"][i] for i in own], values=[None] * len(own), caption="Drag over words to take them out")
    pick = show_tokens([row], key=f"response mark {_name(view)}", selectable=True, unit="", height=220)
    if pick is not None:
        _marked(view, item, span_of(tokens, view.one.response, pick.first, pick.last))


def _marked(view: View, item: Any, span: tuple[int, int] | None) -> None:
    if span is None:
        st.caption("These words can't be found in the text: the tokenizer changes it.")
        return
    (one,) = deletions_of(view.model, item, (span,))
    st.text(f"Without {_quoted(one['text'], 120)}")
    if one["effect"] is None:
        st.caption("Nothing would be left to score.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.metric("Reward without it", f"{view.one.reward - one['effect']:.3f}", f"{-one['effect']:+.3f}", border=True, width=220)
        st.button("Keep as an edit", icon=":material/edit:", key="response keep deletion", on_click=_keep, args=(view, item, span))


def _keep(view: View, item: Any, span: tuple[int, int]) -> None:
    text = item[1]
    parent = view.edits[-1].edit_id if _side(view) == "edited" else ""
    rest = (text[: span[0]] + text[span[1] :]).strip()
    name = keep_edit(view.model, item, rest, parent)
    state.choose(pair=view.found.subject.pair_id, response_edit=name, response_tab="edit", response_view="edited")


def _side(view: View) -> str:
    return "edited" if view.name == "edited" else view.side


def _name(view: View) -> str:
    return f"{view.found.subject.pair_id} {_side(view)} {view.edits[-1].edit_id if view.edits else ''}"


def _quoted(text: str, longest: int = 44) -> str:
    return f"“{one_line(visible(text), longest)}”"
