"""Align and Shift in a real browser: launched from the form, watched, cancelled, resumed, drops read and judged, Shift opened; and hostile texts.

Skipped where there is no Chromium or no Playwright. On the toy preset; the same on `demo`, the embedded model, is marked slow.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed (pip install -e .[dev])")
from align_pages_helpers import add_alignment, some_config
from browser_helpers import Server, Tab, browser, chromium, query
from pages_helpers import HOSTILE, add_model
from playwright.sync_api import Browser, BrowserContext
from test_browser import LOOK, harmless

from core.align.audit import agreement, judgements
from core.align.records import FILTER, AlignmentRecord, alignments
from core.runs.launch import cancel
from core.runs.registry import all_runs
from workbench.frame import models

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine (apt-get install chromium)")
LONG = 1_800_000.0  # milliseconds that a whole alignment may take on a busy machine


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser-align").resolve() / "cache"


@contextmanager
def serving(cache: Path, threads: int = 1) -> Iterator[Server]:
    found = Server(cache, cache.parent / "server.log", threads)
    found.start()
    try:
        yield found
    finally:
        found.stop()
        for run in all_runs(cache):
            if run.live():
                cancel(run)


@pytest.fixture(scope="module")
def server(cache: Path) -> Iterator[Server]:
    with serving(cache) as found:
        yield found


@pytest.fixture
def context(chrome: Browser) -> Iterator[BrowserContext]:
    made = chrome.new_context(viewport={"width": 1440, "height": 900})
    yield made
    made.close()


def section(tab: Tab, name: str) -> Tab:
    return tab.choose(name)


def kept_of(tab: Tab) -> str:
    """How many pairs the round in view kept, once its filter stands."""
    found = tab.page.locator('[data-testid="stMetric"]').filter(has_text=re.compile("of the parsed"))
    found.first.wait_for(timeout=LONG)
    return found.first.locator('[data-testid="stMetricValue"]').inner_text().strip()


def launched(tab: Tab, preset: str) -> str:
    """The preset's two rounds, started from the form; the run's id."""
    tab.open("align", align_new="1").says("Start from")
    tab.choose(preset)  # in an empty cache it is the first thing on the page
    assert tab.page.locator("code").first.inner_text().strip() == f"sparserm align --preset {preset} --detach"
    tab.press("Start")
    tab.page.wait_for_function("() => location.search.includes('align_open=')")
    return query(tab.page.url)["align_open"][0]


def test_from_the_form_to_the_shift_page(context: BrowserContext, server: Server, cache: Path) -> None:
    journey(context, server, cache, "tiny")


@pytest.mark.slow
def test_the_same_on_the_embedded_model(context: BrowserContext, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with serving(cache, os.cpu_count() or 1) as server:
        journey(context, server, cache, "demo")


def journey(context: BrowserContext, server: Server, cache: Path, preset: str) -> None:
    tab = Tab(context, server)
    stood = {one.key for one in alignments(cache)}
    run = launched(tab, preset)
    tab.page.get_by_text(re.compile("^Round 1 of 2: ")).first.wait_for(timeout=LONG)
    kept = kept_of(tab)  # round 1 fills in by itself, while the run goes on
    (record,) = [one for one in alignments(cache) if one.key not in stood]
    assert kept in {str((one.counts or {}).get("kept")) for one in record.rounds if FILTER in one.steps}
    tab.press("Cancel")
    tab.says("Cancelled")
    assert record.result is None and int(kept_of(tab)) >= 0, "what stood is kept"
    tab.press("Resume")
    tab.says("Running")
    tab.page.reload()
    tab.page.get_by_text(re.compile("^Chosen: ")).first.wait_for(timeout=LONG)
    assert query(tab.settled().page.url)["align_open"] == [run] and record.result is not None
    _reads_a_drop(tab, record)
    _judges_three(tab, record)
    tab.menu("Shift").draws()
    tab.says("In the sparse space the training data lie")
    assert tab.page.locator('[data-testid="stPlotlyChart"]').count() == 4
    harmless(tab)
    assert server.libraries() & {"torch", "sklearn"} == set()


def _with_drops(record: AlignmentRecord) -> int:
    """A round in which three pairs or more were dropped by their margin."""
    return next(one.round for one in record.rounds if sum(each.reason == "margin" for each in one.decisions) >= 3)


def _reads_a_drop(tab: Tab, record: AlignmentRecord) -> None:
    """The clearest drop of a round: what it says is what the filter wrote; a latent of it can be chosen."""
    section(tab, "Dropped pairs")
    section(tab, f"Round {_with_drops(record)}")
    dropped = [one for one in record.rounds[_with_drops(record)].decisions if one.reason == "margin" and one.margin is not None]
    worst = min(dropped, key=lambda one: one.margin or 0.0)
    tab.says(f"Dropped: the intended winner scores {abs(worst.margin or 0.0):.2f} lower than the other answer.")
    tab.click_mark()
    tab.page.wait_for_function("() => location.search.includes('latent=')")
    chosen = int(query(tab.settled().page.url)["latent"][0])
    assert chosen in [row["latent_id"] for row in worst.latents]
    tab.says("Open the chosen latent")


def _judges_three(tab: Tab, record: AlignmentRecord) -> None:
    section(tab, "Audit")
    for number, said in enumerate(("First is better", "Neither is better", "Unsure"), 1):
        tab.press(said)
        tab.says(f"{number} of")
        tab.settled()
        if number < 3:
            tab.press("Next pair")
            tab.page.get_by_role("button", name="Next pair").wait_for(state="detached")
    found = judgements(record.folder)
    assert [one.verdict for one in found][1:] == ["neither", "unsure"] and {one.round for one in found} == {_with_drops(record)}
    told = agreement(found)
    shown = tab.metrics()[f"Agreement, round {_with_drops(record)}"]
    assert shown == f"{100 * (told.accuracy or 0.0):.1f} %" and told.n == 2
    tab.says("n = 2 judged, 1 unsure")


def test_hostile_texts_show_as_plain_text(context: BrowserContext, server: Server, cache: Path) -> None:
    model = add_model(cache, seed=5)
    found = models.find(model, cache)
    assert found is not None
    key = add_alignment(cache, model=found.path, config=some_config(seed=7))
    tab = Tab(context, server)
    visits = {"rounds": (), "drops": (), "audit": (), "evaluation": (), "samples": (HOSTILE["script"],), "compare": ()}
    for name, texts in visits.items():
        tab.open("align", align_open=key, align_show=name)
        _plain(tab, *texts)
    for place, name in ((6, "script"), (8, "image"), (10, "markdown")):
        tab.open("align", align_open=key, align_show="drops", align_round="2", align_drop=f"c{place:02}-0")
        _plain(tab)
        tab.open("shift", align_open=key, shift_point=str(place))
        _plain(tab.draws())
        assert name in HOSTILE
    narrow = tab.page.evaluate("() => document.scrollingElement.scrollWidth <= window.innerWidth + 1")
    assert narrow


def _plain(tab: Tab, *texts: str) -> None:
    """Nothing was made from texts, and they can be read."""
    seen = tab.page.evaluate(LOOK)
    assert seen["made"] == []
    for text in texts:
        assert text in seen["said"]
    harmless(tab)
