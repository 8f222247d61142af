"""What runs for every page of every session: the frame around the page. Each page is a file in pages/ (workbench/frame/page_list.py lists them).

This process never loads torch, transformers, sae_lens, trl, peft or scikit-learn: what needs one is done by a run
(workbench/frame/run_panel.py) or by the model process (workbench/frame/model_client.py).
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from core.errors import SparseRMError
from workbench.frame import collector, first_run, layout, run_panel, state
from workbench.frame.page_list import Place, places

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
    pages = [st.Page(place.script, title=place.title, icon=place.icon, url_path=place.name) for place in known]
    # The first page stands at the root of the address, too. A link to the root would be taken for one to the page it is on in a new tab.
    root = st.Page(known[0].script, title=known[0].title, icon=known[0].icon, url_path="root", default=True)
    chosen = st.navigation([*pages, root], position="hidden")  # Streamlit's own menu would drop what is chosen: `layout.menu` is ours
    place = known[0] if chosen == root else known[pages.index(chosen)]
    st.set_page_config(page_title=f"{place.title} · SparseRM Workbench")
    try:
        with first_run.alone(quick=place is known[0]):
            _show(place, chosen, root if chosen == root else None)
    finally:  # a page may end the script
        collector.spare()


def _show(place: Place, page: st.Page, root: st.Page | None) -> None:
    layout.settle_model()
    state.begin()
    with st.sidebar:
        layout.menu(root)
        run_panel.ticker()
    link = layout.head(place)
    try:
        page.run()
    except SparseRMError as error:
        layout.failed(error)
    finally:  # a page may end the script
        layout.link_to_view(link)


main()
