"""The workbench: `streamlit run workbench/app.py`. Streamlit runs this script for every page of every session, and
again after every click.

The script draws the frame and runs the page that the address names, a file in pages/ (workbench/frame/page_list.py
lists them). This process never loads torch, transformers, sae_lens, trl, peft or scikit-learn: work that needs one of
them is done by a run (workbench/frame/run_panel.py) or by the model's process (workbench/frame/model_client.py).
"""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from core.errors import SparseRMError
from workbench.frame import layout, run_panel, state
from workbench.frame.page_list import pages

# Files of the package: for the name of an icon the browser would fetch a picture from a font server.
STATIC = Path(__file__).with_name("static")
ICON, STYLE = STATIC / "icon.png", STATIC / "frame.css"
SIDEBAR = 220  # pixels
ABOUT = "SparseRM Workbench: reward models from sparse autoencoders, with their controls. Everything stays on this machine."


def main() -> None:
    st.set_page_config(
        page_title="SparseRM Workbench", page_icon=str(ICON), layout="wide", initial_sidebar_state=SIDEBAR, menu_items={"About": ABOUT}
    )
    st.html(STYLE)
    specs = pages()
    by_name = [st.Page(spec.script, title=spec.title, icon=spec.icon, url_path=spec.name) for spec in specs]
    # The first page is listed twice, since a link to the root of the address, opened in a new tab, would open the
    # current page there.
    root = st.Page(specs[0].script, title=specs[0].title, icon=specs[0].icon, url_path="root", default=True)
    chosen = st.navigation([*by_name, root], position="hidden")  # Streamlit's own menu would drop the choices in the URL; layout.menu keeps them
    spec = specs[0] if chosen == root else specs[by_name.index(chosen)]
    st.set_page_config(page_title=f"{spec.title} · SparseRM Workbench")
    layout.settle_model()
    state.begin()
    with st.sidebar:
        layout.menu(root if chosen == root else None)
        run_panel.ticker()
    link = layout.head(spec)
    try:
        chosen.run()
    except SparseRMError as error:
        layout.failed(error)
    finally:  # a page may end the script
        layout.link_to_view(link)


if __name__ == "__main__":
    main()
