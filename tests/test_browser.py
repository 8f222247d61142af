"""The workbench in a real browser, as a person meets it: from an empty cache to a shared link, a run that outlives page and server, hostile texts.

Skipped where there is no Chromium or no Playwright. On the toy preset; the same journey on SmolLM2 is marked slow.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed (pip install -e .[dev])")
from browser_helpers import ROOT, Server, Tab, browser, chromium, query
from pages_helpers import HOSTILE, add_model, hostile_pairs
from playwright.sync_api import Browser, BrowserContext

from core.explain.from_folder import explain_pair
from core.runs.launch import cancel
from core.runs.registry import all_runs
from workbench.frame import models, state
from workbench.frame.forms import Draft
from workbench.frame.model_client import Live

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine (apt-get install chromium)")
LONG_FIT = {"head.epochs": "50000", "head.patience": "50000"}  # goes on until somebody cancels it


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser").resolve() / "cache"


@pytest.fixture(scope="module")
def server(cache: Path) -> Iterator[Server]:
    found = Server(cache, cache.parent / "server.log")
    found.start()
    yield found
    found.stop()
    for run in all_runs(cache):
        if run.live():
            cancel(run)
    for model in models.models(cache):
        Live(model.path, cache).stop()


@pytest.fixture
def context(chrome: Browser) -> Iterator[BrowserContext]:
    made = chrome.new_context(viewport={"width": 1440, "height": 900}, permissions=["clipboard-read", "clipboard-write"])
    yield made
    made.close()


def harmless(*tabs: Tab) -> None:
    for tab in tabs:
        assert tab.dialogs == []
        assert tab.elsewhere == []
        assert tab.errors == []


# --- the journey -----------------------------------------------------------------------------------------------------


def journey(chrome: Browser, server: Server, cache: Path, button: str) -> None:
    """From an empty cache to an edit that another browser opens by its link."""
    with chrome.new_context(viewport={"width": 1440, "height": 900}) as first, chrome.new_context(viewport={"width": 1440, "height": 900}) as second:
        tab = Tab(first, server).open()
        tab.says("See why a response scored low")
        tab.page.get_by_text("and prepare the pages").click()  # test_pages_fill_by_themselves leaves it on
        tab.settled().press(button)
        tab.says("Your first reward model is being built")
        tab.page.locator('[data-testid="stPlotlyChart"]').first.wait_for(timeout=3_600_000)  # the page shows it by itself
        tab.settled()
        (model,) = models.models(cache)

        tab.menu("Latents").click_mark()
        tab.page.wait_for_function("() => document.title.startsWith('Latent ') && location.search.includes('latent=')")
        latent = query(tab.settled().page.url)["latent"][0]
        assert int(latent) in model.latents

        tab.menu("Response")
        worst = explain_pair(model, int(model.ranked("worst")[0]))
        side = "chosen" if worst.chosen.reward <= worst.rejected.reward else "rejected"
        tab.says(getattr(worst, side).why.text)
        tab.choose("Edit")
        box = tab.page.locator("textarea").filter(visible=True).first
        assert box.input_value() == getattr(worst, side).response
        box.fill("I am not sure, but please see a doctor.")
        tab.press("Score again")
        tab.says("New reward")
        tab.settled()
        before = tab.metrics()
        assert abs(float(before["Before"]) - getattr(worst, side).reward) < 2e-3

        tab.page.locator('[data-testid="stPopover"] button').first.click()
        link = tab.page.locator('[data-testid="stPopoverBody"] code').first.inner_text().strip()
        assert query(link) == query(tab.page.url)
        other = Tab(second, server)
        other.page.goto(link)
        other.says("New reward")
        assert other.settled().metrics() == before
        assert other.page.locator("textarea").filter(visible=True).first.input_value() == "I am not sure, but please see a doctor."

        tab.page.go_back()  # the edit is one step of the history
        tab.page.wait_for_function("() => !location.search.includes('response_edit')")
        tab.settled()
        harmless(tab, other)
    assert server.libraries() & {"torch", "sklearn"} == set()


def test_the_whole_journey(chrome: Browser, server: Server, cache: Path) -> None:
    journey(chrome, server, cache, "Build a toy instead")


def test_pages_fill_by_themselves(context: BrowserContext, tmp_path: Path) -> None:
    """One click: the doctor's report and the pictures appear on pages that stand open, without another click or a reload."""
    cache = tmp_path / "cache"
    cache.mkdir()
    server = Server(cache, tmp_path / "server.log")
    server.start()
    try:
        doctor, spaces = Tab(context, server).open("doctor"), Tab(context, server).open("spaces")
        doctor.press("Build a toy instead")
        doctor.says("Then follow by themselves: Doctor, Spaces, Latents' pages")
        doctor.says("The doctor's report is being prepared")
        doctor.says("Examined in")
        spaces.says("Do chosen and rejected lie apart?")
        spaces.menu("Latents").says("The pages of these latents are being prepared")
        harmless(doctor, spaces)
    finally:
        server.stop()
        for run in all_runs(cache):
            if run.live():
                cancel(run)


@pytest.mark.slow
def test_the_same_journey_on_smollm2(chrome: Browser, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    server = Server(cache, tmp_path / "server.log", os.cpu_count() or 1)
    server.start()
    try:
        journey(chrome, server, cache, "Build the demo")
    finally:
        server.stop()
        for model in models.models(cache):
            Live(model.path, cache).stop()


# --- a run outlives page and server ----------------------------------------------------------------------------------


def test_a_run_outlives_a_reload_and_a_restart(context: BrowserContext, server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSERM_CACHE", str(cache))
    draft = state.keep("draft", vars(Draft(kind="fit", preset="tiny", changes=LONG_FIT)))
    tab = Tab(context, server).open("runs", runs_new="1", runs_draft=draft)
    assert "--epochs 50000" in tab.page.locator("code").first.inner_text()
    tab.press("Start")
    tab.page.wait_for_function("() => location.search.includes('runs_open=')")
    run = query(tab.page.url)["runs_open"][0]
    tab.says("Running")
    tab.page.reload()
    tab.says("Running")  # it is still there, and goes on
    tab.press("Cancel")
    tab.says("Cancelled")
    tab.press("Resume")
    tab.says("Running")
    server.stop()
    server.start()
    tab.open("runs", runs_open=run)
    tab.says("Running")
    assert (cache / "runs" / run).is_dir()
    tab.press("Cancel")
    tab.says("Cancelled")
    harmless(tab)


# --- texts that want to be more --------------------------------------------------------------------------------------

# What is on the page, shadow roots too: elements that only a text could have made, and all text that can be seen.
LOOK = """() => {
  const made = [], said = [];
  const walk = node => {
    for (const one of node.querySelectorAll('*')) {
      const html = one.outerHTML.slice(0, 300);
      if (one.tagName === 'SCRIPT' && one.textContent.includes('alert(')) made.push(html);
      if (one.hasAttribute('onerror') || (one.getAttribute('src') || '') === 'x') made.push(html);
      for (const name of ['src', 'href']) if (/example\\.invalid|javascript:/.test(one.getAttribute(name) || '')) made.push(html);
      if (one.classList.contains('katex') || one.tagName === 'MATH') made.push(html);
      if (one.shadowRoot) walk(one.shadowRoot);
    }
    said.push(node.textContent || '');
  };
  walk(document.body || document);
  return {made, said: said.join('\\n')};
}"""


@pytest.fixture(scope="module")
def toy(cache: Path, server: Server) -> str:
    """The id of a real reward model, which can read texts."""
    found = [model for model in models.models(cache) if model.about["backbone"] != "toy"]
    if not found:
        environment = {**os.environ, "SPARSERM_CACHE": str(cache)}
        subprocess.run([sys.executable, "-m", "core.cli.main", "fit", "--preset", "tiny"], cwd=ROOT, env=environment, check=True, capture_output=True)
        found = models.models(cache)
    return found[0].id


def plain(tab: Tab, *texts: str) -> None:
    """Nothing was made from the texts, and the texts can be read."""
    seen = tab.page.evaluate(LOOK)
    assert seen["made"] == []
    for text in texts:
        assert text in seen["said"], text
    harmless(tab)


def test_hostile_pairs_show_as_plain_text(context: BrowserContext, server: Server, cache: Path) -> None:
    first, second = (add_model(cache, seed=seed, n_prompts=12, pairs=hostile_pairs()) for seed in (7, 8))
    tab = Tab(context, server)
    shown = (HOSTILE["script"], HOSTILE["image"], HOSTILE["markdown"], HOSTILE["latex"], HOSTILE["emoji"])
    for section in ("edit", "off", "running", "similar", "trust"):
        tab.open("response", model=first, pair="bad everything", response_among="all", response_tab=section)
        plain(tab, *shown)
        narrow = tab.page.evaluate("() => document.scrollingElement.scrollWidth <= window.innerWidth + 1")
        assert narrow  # a word of 10,000 characters breaks, or the page would scroll sideways
    tab.open("compare", model=first, compare_with=second, compare_pairs="all")
    plain(tab.draws())
    tab.open("preferences", model=first)
    plain(tab)


def test_hostile_texts_read_by_a_model_show_as_plain_text(context: BrowserContext, server: Server, cache: Path, toy: str) -> None:
    found = models.find(toy, cache)
    assert found is not None
    texts = "\n".join(text for name, text in HOSTILE.items() if name not in ("long", "null", "rtl"))
    own = "own-" + Live(found.path, cache).texts.keep_pair(HOSTILE["script"] + HOSTILE["image"], texts, HOSTILE["rtl"] + HOSTILE["long"][:200])
    tab = Tab(context, server)
    for section in ("running", "delete", "similar"):
        tab.open("response", model=toy, pair=own, response_tab=section)
        plain(tab.draws(), HOSTILE["script"])
    tab.press("Paste your own")
    dialog = tab.page.locator('[data-testid="stDialog"]')
    dialog.get_by_label("Another answer").fill("Nothing of the kind.")
    plain(tab)
    dialog.get_by_role("button", name="Explain").click()
    tab.page.wait_for_function("old => !location.search.includes(old)", arg=own)
    pasted = query(tab.draws().page.url)["pair"][0].removeprefix("own-")
    assert Live(found.path, cache).texts.pair(pasted) == {
        "prompt": HOSTILE["script"] + HOSTILE["image"],
        "chosen": texts,
        "rejected": "Nothing of the kind.",
    }
    plain(tab)
    assert not re.search("torch|sklearn", " ".join(server.libraries()))
