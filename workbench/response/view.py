"""The Response page: choose a pair, see why it scored as it did on the left, and try what would change it on the right."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from core.text_safety import visible
from workbench.frame import live_panel, state
from workbench.frame.models import FittedModel
from workbench.response import delete, edit, similar, switch_off, trust, why, words
from workbench.response.choice import choose_subject
from workbench.response.edit_chain import edit_steps, edited_side
from workbench.response.readings import explain
from workbench.response.response_view import LEFT, NAMES, RIGHT, ResponseView
from workbench.response.values import ExplainedSubject, Subject

WAITS = "These texts are new to the reward model, so the language model has to read them."
SECTIONS: dict[str, tuple[str, Callable[[ResponseView], None]]] = {
    "words": ("Words", words.draw),
    "edit": ("Edit", edit.draw),
    "delete": ("Delete", delete.draw),
    "off": ("Switch off", switch_off.draw),
    "similar": ("Similar", similar.draw),
    "trust": ("Trust", trust.draw),
}


def draw(model: FittedModel) -> None:
    subject = choose_subject(model)
    if subject is None:
        return
    _prompt(subject)
    if subject.number is None and not live_panel.ready(model, WAITS, key="own", wanted=True):
        return
    view = _view(model, explain(model, subject))
    why.sentence(view)
    why.figures(view)
    with st.container(horizontal=True, gap="medium", key="response halves"):
        with st.container(width=LEFT):
            why.bars(view)
            why.latent_card(view)
        with st.container(width=RIGHT):
            titles = {name: title for name, (title, _) in SECTIONS.items()}
            SECTIONS[state.segments("Section", titles, "response_tab")][1](view)


def _view(model: FittedModel, explained: ExplainedSubject) -> ResponseView:
    """Which of margin, sides and edit is in view, with the row of choices."""
    edit_id = state.get("response_edit")
    began = edited_side(model, explained.subject, edit_id)
    live = bool(began) and live_panel.ready(model, "The edit is scored by the live model.", key="edit", wanted=True)
    edits = edit_steps(model, edit_id) if live else []
    names = {"margin": NAMES["margin"]} if explained.pair is not None else {}
    names |= {side: NAMES[side] for side in explained.sides} | ({"edited": NAMES["edited"]} if edits else {})
    name = state.segments("View", names, "response_view") if len(names) > 1 else next(iter(names))
    side = name if name in explained.sides else began or explained.lowest
    return ResponseView(model=model, explained=explained, name=name, side=side, edits=edits)


def _prompt(subject: Subject) -> None:
    """The prompt, as plain text, a message a paragraph."""
    long = sum(len(message["content"]) for message in subject.prompt) > 500 or len(subject.prompt) > 2
    with st.container(border=True, key="response prompt", height=150 if long else "content", gap="xxsmall"):
        for message in subject.prompt:
            role, text = st.columns([1, 13], gap="small")
            role.caption({"user": "Prompt", "system": "System", "assistant": "Earlier"}.get(message["role"], "Message"))
            text.text(visible(message["content"]))
