"""workbench/frame/first_run.py: no chart is made while another session is importing pandas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A pandas that takes its time between its first and its last line, as the real one does; plotly reads `Series` of whatever sys.modules holds.
SLOW = "import time\ntime.sleep(0.6)\nclass Series: pass\nclass Index: pass\n"

SESSIONS = """
import sys, threading, time
sys.path.insert(0, {fake!r})
from workbench.frame import chart_base, first_run
found = []

def draw():
    chart_base.figure(x="a", y="b", height=100).add_scatter(x=[0, 1], y=[0, 1], marker={{"size": [1, 2]}})

def page(quick, work):
    try:
        with first_run.alone(quick):
            work()
        found.append("drawn")
    except Exception as error:
        found.append(repr(error))

def overview():
    assert "pandas" not in sys.modules
    for _ in range(10):
        time.sleep(0.02)
        draw()
    assert "pandas" not in sys.modules, "the first page waits for nobody's pandas"

def table():
    import pandas
    draw()

threads = [threading.Thread(target=page, args=one) for one in {pages}]
for one in threads:
    one.start()
    time.sleep(0.05)
time.sleep(0.3)
draw()  # as a fragment does, outside a page's script
[one.join() for one in threads]
assert hasattr(sys.modules["pandas"], "Series")
print(found)
"""


@pytest.mark.parametrize("pages", ["((True, overview), (False, table), (True, draw))", "((False, table), (False, draw), (True, draw))"])
def test_charts_are_drawn_while_sessions_start_at_once(tmp_path: Path, pages: str) -> None:
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "pandas.py").write_text(SLOW)
    code = SESSIONS.format(fake=str(fake), pages=pages)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(["drawn"] * 3)
