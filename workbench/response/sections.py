"""What can be tried on one response, below the explanation: edit it, delete from it, switch latents off, and what to compare it with."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from workbench.frame import state
from workbench.response import delete, edit, running, similar, switch_off, trust
from workbench.response.response_view import TITLES, ResponseView

Draw = Callable[[ResponseView], None]
SECTIONS: dict[str, tuple[str, Draw]] = {
    "edit": ("Edit", edit.draw),
    "delete": ("Delete", delete.draw),
    "off": ("Switch off", switch_off.draw),
    "running": ("Running reward", running.draw),
    "similar": ("Similar", similar.draw),
    "trust": ("Trust", trust.draw),
}
OF_BOTH = ("running", "trust")  # these show what is in view; the others act on one response


def draw(view: ResponseView) -> None:
    """The row of sections, which response they act on, and the section."""
    with st.container(border=True, key="response sections"):
        with st.container(horizontal=True, vertical_alignment="center", gap="medium"):
            section = state.segments("Section", {name: title for name, (title, _) in SECTIONS.items()}, "response_tab")
            if section not in OF_BOTH:
                _acts_on(view)
        SECTIONS[section][1](view)


def _acts_on(view: ResponseView) -> None:
    """The response that the section acts on: the one in view, or for the margin a choice of both."""
    sides = {side: TITLES[side] for side in view.explained.sides}
    if view.name == "margin" and len(sides) > 1:
        state.segments("Acts on", sides, "response_side", default=view.usual_side, label_visibility="visible")
    else:
        st.caption(f"Acts on the {TITLES[view.response_name].lower()}.")
