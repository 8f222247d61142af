"""Runs: start one, watch it, see what came out, lay two over each other, free the disk."""

from workbench.runs import launcher
from workbench.runs import view as runs_view

launcher.launcher()
runs_view.table()
chosen = runs_view.chosen()
if len(chosen) == 1:
    runs_view.detail(chosen[0])
elif chosen:
    runs_view.beside(chosen)
