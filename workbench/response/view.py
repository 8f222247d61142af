"""The Response page: choose a pair, see why it scored as it did on the left, and try what would change it on the right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import streamlit as st

from core.explain.explanation import Explanation
from core.text_safety import visible
from workbench.frame import live_panel, state
from workbench.frame.models import FittedModel
from workbench.response import edit as response_edit
from workbench.response import more as response_more
from workbench.response import why as response_view
from workbench.response import words as response_words
from workbench.response.choice import choose_subject
from workbench.response.values import EditStep, Explained, Subject, edit_steps, edited_side, explain
from workbench.response.why import NAMES

LEFT, RIGHT = 530, 560  # pixels: side by side from about 1,400 on, below one another on narrower screens
WAITS = "These texts are new to the reward model, so the language model has to read them."


@dataclass(frozen=True, kw_only=True)
class View:
    """What a section of the page is drawn for: the explained subject, the side in view, and the chain of edits (root first) that is open."""

    model: FittedModel
    found: Explained
    name: str
    side: str
    edits: list[EditStep]

    @property
    def edited(self) -> Explanation | None:
        return self.edits[-1].explanation if self.edits else None

    @property
    def one(self) -> Explanation:
        """The response in view."""
        return response_view.one_of(self.found, self.name if self.name != "margin" else self.side, self.edited)


SECTIONS: dict[str, tuple[str, Callable[[View], None]]] = {
    "words": ("Words", response_words.words),
    "edit": ("Edit", response_edit.draw),
    "delete": ("Delete", response_words.deletions),
    "off": ("Switch off", response_more.switch_off),
    "similar": ("Similar", response_more.similar),
    "trust": ("Trust", response_more.trust),
}


def draw(model: FittedModel) -> None:
    subject = choose_subject(model)
    if subject is None:
        return
    _prompt(subject)
    if subject.number is None and not live_panel.ready(model, WAITS, key="own", wanted=True):
        return
    found = explain(model, subject)
    view = _view(model, found)
    response_view.sentence(model, found, view.name, view.edited)
    response_view.figures(found, view.name, view.edited)
    with st.container(horizontal=True, gap="medium", key="response halves"):
        with st.container(width=LEFT):
            response_view.bars(model, found, view.name, view.edited)
            response_view.latent_card(model, found, view.edited)
        with st.container(width=RIGHT):
            names = {name: words for name, (words, _) in SECTIONS.items()}
            SECTIONS[state.segments("Section", names, "response_tab")][1](view)


def _view(model: FittedModel, found: Explained) -> View:
    """Which of margin, sides and edit is in view, with the row of choices."""
    edit_id = state.get("response_edit")
    began = edited_side(model, found.subject, edit_id)
    live = bool(began) and live_panel.ready(model, "The edit is scored by the live model.", key="edit", wanted=True)
    edits = edit_steps(model, edit_id) if live else []
    names = {"margin": NAMES["margin"]} if found.pair is not None else {}
    names |= {side: NAMES[side] for side in found.sides} | ({"edited": NAMES["edited"]} if edits else {})
    name = state.segments("View", names, "response_view") if len(names) > 1 else next(iter(names))
    side = name if name in found.sides else began or found.lowest
    return View(model=model, found=found, name=name, side=side, edits=edits)


def _prompt(subject: Subject) -> None:
    """The prompt, as plain text, a message a paragraph."""
    long = sum(len(message["content"]) for message in subject.prompt) > 500 or len(subject.prompt) > 2
    with st.container(border=True, key="response prompt", height=150 if long else "content", gap="xxsmall"):
        for message in subject.prompt:
            said, text = st.columns([1, 13], gap="small")
            said.caption({"user": "Prompt", "system": "System", "assistant": "Earlier"}.get(message["role"], "Message"))
            text.text(visible(message["content"]))
