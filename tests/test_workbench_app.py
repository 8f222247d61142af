"""workbench/app.py: sessions that begin at the same moment find pandas and plotly whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A pandas that takes its time between its first and its last line, as the real one does; plotly reads `Series` of whatever sys.modules holds.
SLOW = "import time\ntime.sleep(0.6)\nclass Series: pass\nclass Index: pass\n"

# Sessions as Streamlit runs them: each thread runs the whole script of the app, then its page.
SESSIONS = """
import importlib, sys, threading, time
sys.path.insert(0, {fake!r})
outcomes = []

def draw():
    from workbench.frame import chart_base
    chart_base.new_figure(x="a", y="b", height=100).add_scatter(x=[0, 1], y=[0, 1], marker={{"size": [1, 2]}})

def table():
    import pandas
    pandas.Series
    draw()

def session(page):
    try:
        importlib.import_module("workbench.app")
        page()
        outcomes.append("drawn")
    except Exception as error:
        outcomes.append(repr(error))

threads = [threading.Thread(target=session, args=(page,)) for page in {pages}]
for thread in threads:
    thread.start()
    time.sleep(0.05)
for thread in threads:
    thread.join()
print(outcomes)
"""


@pytest.mark.parametrize("pages", ["(draw, table, draw)", "(table, draw, draw)"])
def test_charts_are_drawn_while_sessions_start_at_once(tmp_path: Path, pages: str) -> None:
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "pandas.py").write_text(SLOW)
    code = SESSIONS.format(fake=str(fake), pages=pages)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(["drawn"] * 3)
