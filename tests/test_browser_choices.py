"""What is chosen survives every way of changing the page, in a real browser: sidebar, cards, buttons, Back, Forward, reload, copied links, new tabs.

Two reward models of the tiny preset; the older one is chosen, so that a page which forgets it shows the other. At the end a third, newer one appears.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed (pip install -e .[dev])")
from browser_helpers import Server, Tab, browser, chromium, query
from model_helpers import quick_tiny
from playwright.sync_api import BrowserContext, Page

from core.fit import pipeline
from core.runs.store import Store
from workbench.frame import models
from workbench.frame.models import FittedModel
from workbench.frame.page_list import PageSpec, pages

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine (apt-get install chromium)")
OTHERS = [spec for spec in pages() if spec.name != "overview"]


def fit(cache: Path, k: int) -> FittedModel:
    """A tiny reward model of this K, the newest of the cache."""
    pipeline.fit(quick_tiny(k), Store(cache))
    return models.models(cache)[0]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("choices").resolve() / "cache"


@pytest.fixture(scope="module")
def older(cache: Path) -> FittedModel:
    return fit(cache, 16)


@pytest.fixture(scope="module")
def newer(cache: Path, older: FittedModel) -> FittedModel:
    return fit(cache, 8)


@pytest.fixture(scope="module")
def server(cache: Path, newer: FittedModel) -> Iterator[Server]:
    started = Server(cache, cache.parent / "server.log")
    started.start()
    yield started
    started.stop()


@pytest.fixture
def context(server: Server) -> Iterator[BrowserContext]:
    with browser() as chrome, chrome.new_context(viewport={"width": 1440, "height": 900}) as opened:
        yield opened


def names_model(page: Page, model: FittedModel) -> None:
    """Waits until the box in the page's head names this reward model."""
    box = "document.querySelector('.st-key-chips [data-testid=stSelectbox] input')"
    page.wait_for_function(f"mark => ({box}?.value || '').endsWith(mark)", arg=f"· {model.id[:4]}")


def shows(tab: Tab, model: FittedModel, **ids: str) -> None:
    """The model stands in the page's head and, with these ids, in the URL."""
    names_model(tab.page, model)
    asked = {name: values[0] for name, values in query(tab.page.url).items()}
    assert {name: asked.get(name) for name in ("model", *ids)} == {"model": model.id, **ids}, tab.page.url


def stands_on(tab: Tab, spec: PageSpec) -> Tab:
    tab.page.wait_for_function("title => document.title.startsWith(title)", arg=f"{spec.title} ·")
    return tab.settled()


def card(tab: Tab, spec: PageSpec) -> Tab:
    """To another page by its card on the Overview."""
    links = tab.page.locator('[data-testid="stMain"] [data-testid="stPageLink"] a')
    links.filter(has=tab.page.get_by_text(spec.title, exact=True)).first.click()
    return stands_on(tab, spec)


def copied_link(tab: Tab) -> str:
    tab.page.locator('.st-key-chips [data-testid="stPopover"] button').first.click()
    link = tab.page.locator('[data-testid="stPopoverBody"] code').first.inner_text().strip()
    tab.page.keyboard.press("Escape")
    return link


def test_the_sidebar_keeps_model_pair_and_latent_on_every_page(context: BrowserContext, server: Server, older: FittedModel) -> None:
    tab = Tab(context, server).open("latents", model=older.id, latents_view="significance")
    pair, latent = older.pairs[3].pair_id, str(older.latents[2])
    shows(tab, older, latents_view="significance")
    tab.open("response", model=older.id, pair=pair, latent=latent, response_tab="similar")
    chosen = {"pair": pair, "latent": latent, "response_tab": "similar"}
    before = pages()[-5]
    for number, spec in enumerate(pages()):
        tab.menu(spec.title)
        shows(tab, older, **chosen)
        if number % 4 == 1:
            tab.page.go_back()
            shows(stands_on(tab, before), older, **chosen)
            tab.page.go_forward()
            shows(stands_on(tab, spec), older, **chosen)
        if number % 4 == 3:
            tab.page.reload()
            shows(stands_on(tab, spec), older, **chosen)
        before = spec
    assert tab.errors == []


def test_cards_keep_it_and_back_returns(context: BrowserContext, server: Server, older: FittedModel) -> None:
    tab = Tab(context, server).open(model=older.id)
    for spec in OTHERS:
        shows(card(tab, spec), older)
        tab.page.go_back()
        if spec.name == "compare":  # it has written the second model into the URL, which is a step of its own
            shows(stands_on(tab, spec), older)
            tab.page.go_back()
        shows(stands_on(tab, pages()[0]), older)


def test_links_of_the_sidebar_open_the_right_page_in_a_new_tab(context: BrowserContext, server: Server, older: FittedModel) -> None:
    tab = Tab(context, server).open("doctor", model=older.id)
    for spec in pages():
        address = tab.menu_link(spec.title).evaluate("link => link.href")
        assert urlsplit(address).path == f"/{spec.name}" and query(address) == {"model": [older.id]}
    for title in ("Overview", "Compare"):
        page = context.new_page()
        page.goto(tab.menu_link(title).evaluate("link => link.href"))
        page.wait_for_function("title => document.title.startsWith(title)", arg=f"{title} ·")
        names_model(page, older)


def test_a_model_chosen_on_a_page_is_kept_and_back_undoes_it(context: BrowserContext, server: Server, older: FittedModel, newer: FittedModel) -> None:
    tab = Tab(context, server).open()
    shows(tab, newer)  # the newest, and named in the URL at once
    tab.page.locator('.st-key-chips [data-testid="stSelectbox"] input').click()
    tab.page.get_by_role("option").filter(has_text=older.id[:4]).click()
    tab.page.wait_for_function("id => location.search.includes(id)", arg=older.id)
    shows(tab.settled(), older)
    for title in ("Latents", "Runs", "Align", "Overview"):
        shows(tab.menu(title), older)
    for _ in range(4):
        tab.page.go_back()
        shows(tab.settled(), older)
    tab.page.go_back()
    shows(tab.settled(), newer)


def test_a_newer_model_changes_nothing_for_who_looks_at_an_older(
    context: BrowserContext, server: Server, cache: Path, older: FittedModel, newer: FittedModel
) -> None:
    """Also where nobody has chosen: what a session was shown by default it goes on with, and the copied link names all that is shown."""
    tab, by_default = Tab(context, server).open("compare", model=older.id), Tab(context, server).open()
    shows(tab, older, compare_with=newer.id)
    shows(by_default, newer)
    by_default.menu("Response")
    link = copied_link(by_default)
    worst = query(link)["pair"][0]
    assert query(link)["model"] == [newer.id] and worst in {pair.pair_id for pair in newer.pairs}
    newest = fit(cache, 4)
    assert newest.id not in (older.id, newer.id) and models.models(cache)[0].id == newest.id
    for spec in pages():
        shows(tab.menu(spec.title), older, compare_with=newer.id)
        shows(by_default.menu(spec.title), newer)
    tab.page.reload()
    shows(tab.settled(), older, compare_with=newer.id)
    by_default.page.reload()
    shows(by_default.settled(), newer)
    fresh = Tab(context, server)
    fresh.page.goto(link)
    shows(fresh.settled(), newer, pair=worst)
    shows(Tab(context, server).open(), newest)  # a new session without a choice
