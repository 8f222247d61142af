"""What runs for every page of every session: the frame around the page. Each page is a file in pages/ (workbench/places.py lists them).

This process never loads torch, transformers, sae_lens, trl, peft or scikit-learn: what needs one is done by a run (workbench/run_panel.py) or by the
model process (workbench/resources.py).
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from core.errors import SparseRMError
from workbench import collector, first_run, frame, run_panel
from workbench.places import Place, places

# A file of ours: the browser would fetch the picture of an icon's name from a font server.
STATIC = Path(__file__).with_name("static")
ICON, STYLE = STATIC / "icon.png", STATIC / "frame.css"
SIDEBAR = 220  # pixels
ABOUT = "SparseRM Workbench: reward models from sparse autoencoders, with their controls. Everything stays on this machine."


def main() -> None:
    st.set_page_config(
        page_title="SparseRM Workbench", page_icon=str(ICON), layout="wide", initial_sidebar_state=SIDEBAR, menu_items={"About": ABOUT}
    )
    st.html(STYLE)
    known = places()
    pages = {place.name: st.Page(place.script, title=place.title, icon=place.icon, url_path=place.name, default=place is known[0]) for place in known}
    chosen = st.navigation(_sections(known, pages))
    place = next(place for place in known if pages[place.name] == chosen)
    st.set_page_config(page_title=f"{place.title} · SparseRM Workbench")
    try:
        with first_run.alone(quick=place is known[0]):
            _show(place, chosen)
    finally:  # a page may end the script
        collector.spare()


def _show(place: Place, page: st.Page) -> None:
    with st.sidebar:
        run_panel.ticker()
    frame.head(place)
    try:
        page.run()
    except SparseRMError as error:
        frame.failed(error)


def _sections(known: tuple[Place, ...], pages: dict[str, st.Page]) -> dict[str, list[st.Page]]:
    sections: dict[str, list[st.Page]] = {}
    for place in known:
        sections.setdefault(place.section, []).append(pages[place.name])
    return sections


main()
