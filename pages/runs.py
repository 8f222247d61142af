"""Runs: start one, watch it, see what came out, lay two over each other, free the disk."""

import streamlit as st

from workbench import runs_view

runs_view.launcher()
chosen = runs_view.chosen()
wide, narrow = st.columns([7, 2], gap="medium")
with wide:
    runs_view.table()
    if len(chosen) == 1:
        runs_view.detail(chosen[0])
    elif chosen:
        runs_view.beside(chosen)
with narrow, st.container(border=True):
    st.markdown("##### Disk")
    runs_view.disk()
