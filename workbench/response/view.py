"""The Response page: choose a pair, read which words made its rewards, and try what would change them."""

from __future__ import annotations

from dataclasses import replace

import streamlit as st

from core.text_safety import visible
from workbench.frame import live_panel, state
from workbench.frame.models import FittedModel
from workbench.response import bars, cards, sections, texts, why
from workbench.response.choice import choose_subject
from workbench.response.edit_chain import edit_steps, edited_side
from workbench.response.readings import explain
from workbench.response.response_view import LEFT, RIGHT, TITLES, ResponseView
from workbench.response.values import ExplainedSubject, Subject

WAITS = "These texts are new to the reward model, so the language model has to read them."


def draw(model: FittedModel) -> None:
    subject = choose_subject(model)
    if subject is None:
        return
    _prompt(subject)
    if subject.number is None and not live_panel.ready(model, WAITS, key="own", wanted=True):
        return
    view = _view(model, explain(model, subject))
    why.sentence(view)
    view = replace(view, waits=not texts.draw(view))
    why.figures(view)
    with st.container(horizontal=True, gap="medium", key="response halves"):
        with st.container(width=LEFT):
            bars.draw(view)
        with st.container(width=RIGHT):
            cards.draw(view)
    sections.draw(view)


def _view(model: FittedModel, explained: ExplainedSubject) -> ResponseView:
    """Which of margin, sides and edit is in view, with the row of choices."""
    edit_id = state.get("response_edit")
    began = edited_side(model, explained.subject, edit_id)
    live = bool(began) and live_panel.ready(model, "The edit is scored by the live model.", key="edit", wanted=True)
    edits = edit_steps(model, edit_id) if live else []
    names = {side: TITLES[side] for side in explained.sides} | ({"edited": TITLES["edited"]} if edits else {})
    names |= {"margin": TITLES["margin"]} if explained.pair is not None else {}
    asked = began or explained.asked(state.get("response_order", "worst"))
    name = state.segments("What is explained", names, "response_view", default=asked) if len(names) > 1 else next(iter(names))
    usual = began or explained.lowest
    acting = state.get("response_side") if name == "margin" and state.get("response_side") in explained.sides else usual
    side = name if name in explained.sides else acting
    return ResponseView(model=model, explained=explained, name=name, side=side, usual_side=usual, edits=edits)


def _prompt(subject: Subject) -> None:
    """The prompt, as plain text, a message a paragraph."""
    long = sum(len(message["content"]) for message in subject.prompt) > 300 or len(subject.prompt) > 2
    with st.container(border=True, key="response prompt", height=110 if long else "content", gap="xxsmall"):
        for message in subject.prompt:
            role, text = st.columns([1, 13], gap="small")
            role.caption({"user": "User", "system": "System", "assistant": "Assistant"}.get(message["role"], "Message"))
            text.text(visible(message["content"]))
