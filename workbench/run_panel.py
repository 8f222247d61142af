"""Runs on a page: starting them, how far they are, their end. (Being built; `demo`, `ticker` are what frame.py and app.py call.)"""

from __future__ import annotations

import streamlit as st


def demo() -> None:
    """The first open: a button builds the demo."""
    st.info("No reward model yet.")


def ticker() -> None:
    """What runs now, in the sidebar of every page."""
