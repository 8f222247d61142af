"""The marked texts of the Response page in a real browser: pointing, choosing by mouse and keyboard, and keeping the place."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("playwright", reason="Playwright is not installed (pip install -e .[dev])")
from browser_helpers import Server, Tab, browser, chromium, query
from pages_helpers import HOSTILE, add_model, hostile_pairs
from playwright.sync_api import Browser

from core.types import PreferencePair, PreferencePairs

pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine (apt-get install chromium)")
LONG = "\n".join(f"Line {i} of a long answer goes on for some words. It ends here." for i in range(300))
CODE = "Use it:\n```python\ndef f():\n    return 1\n```\n| a | b |\n|---|---|\n| 1 | 2 |"
TEXTS = {"long": (LONG, "Short. Too short."), "rtl": ("שלום עולם. זה טוב.", "مرحبا. لا."), "code": (CODE, "日本です。東京です。 👩🏽‍🚀 done.")}

FOCUSED = "() => { let e = document.activeElement; while (e?.shadowRoot) e = e.shadowRoot.activeElement; return e?.className }"


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    cache = tmp_path_factory.mktemp("browser").resolve() / "cache"
    prompt = ({"role": "user", "content": "Well?"},)
    pairs = (PreferencePair(pair_id=name, prompt=prompt, chosen=chosen, rejected=rejected) for name, (chosen, rejected) in TEXTS.items())
    add_model(cache, n_prompts=12, pairs=PreferencePairs(pairs=tuple(pairs)), position="response_mean")
    started = Server(cache, cache.parent / "server.log")
    started.start()
    yield started
    started.stop()


@pytest.fixture
def tab(chrome: Browser, server: Server) -> Iterator[Tab]:
    with chrome.new_context(viewport={"width": 1440, "height": 900}) as context:
        page = Tab(context, server)
        yield page
        assert (page.errors, page.dialogs, page.elsewhere) == ([], [], [])


def opened(tab: Tab, pair: str, view: str = "margin") -> Tab:
    """The page with a pair, once its texts are drawn."""
    tab.open("response", pair=pair, response_view=view, response_among="all")
    tab.page.locator(".pane .line").first.wait_for()
    return tab


def unit(text: str, pane: int = 0) -> str:
    """The selector of a word of a pane."""
    return f'.pane:nth-child({pane + 1}) .unit:text-is("{text}")'


def chosen(tab: Tab) -> str:
    return query(tab.page.url).get("response_word", [""])[0]


def wait_for(tab: Tab, name: str, value: str) -> Tab:
    tab.page.wait_for_function("([name, value]) => new URLSearchParams(location.search).get(name) === value", arg=[name, value])
    return tab.settled()


def test_a_chosen_word_stays_through_levels_and_latents(tab: Tab) -> None:
    opened(tab, "code")
    tab.page.locator(unit("Use")).hover()
    box = tab.page.locator(".box").filter(visible=True)
    assert "“Use”" in box.inner_text() and box.locator(".reader").count() == 4
    tab.page.locator(unit("return")).click()
    place = CODE.index("return")
    wait_for(tab, "response_word", f"chosen-{place}")
    tab.says("Word of the chosen response")
    assert tab.page.locator(".unit.picked").inner_text() == "return"
    tab.choose("Sentences")
    assert tab.page.locator(".unit.picked").first.inner_text() == "return 1" and chosen(tab) == f"chosen-{place}"
    tab.says("Sentence of the chosen response")
    tab.choose("One latent")
    assert tab.page.locator(".unit.picked").inner_text() == "return" and chosen(tab) == f"chosen-{place}"
    tab.page.reload()
    assert tab.settled().page.locator(".unit.picked").inner_text() == "return", "the link holds it"


def test_the_keyboard_moves_over_words_and_chooses(tab: Tab) -> None:
    opened(tab, "code")
    tab.page.locator(".pane .text").first.focus()
    for _ in range(2):
        tab.page.keyboard.press("ArrowRight")
    tab.page.locator('.unit.pointed:text-is("it:")').wait_for()
    tab.page.keyboard.press("ArrowDown")
    tab.page.locator('.unit.pointed:text-is("```python")').wait_for()
    tab.page.keyboard.press("Enter")
    wait_for(tab, "response_word", f"chosen-{CODE.index('```python')}")
    assert tab.page.evaluate(FOCUSED) == "text", "the focus stays where it was"
    tab.page.keyboard.press("Escape")
    tab.page.wait_for_function("() => !location.search.includes('response_word')")


def test_a_long_answer_scrolls_and_stays_where_it_is(tab: Tab) -> None:
    opened(tab, "long", "chosen")
    text = tab.page.locator(".pane .text").first
    assert text.evaluate("e => e.scrollHeight > 3 * e.clientHeight")
    text.evaluate("e => { e.scrollTop = 2500; }")
    tab.page.wait_for_timeout(200)
    tab.choose("Sentences")
    assert abs(tab.page.locator(".pane .text").first.evaluate("e => e.scrollTop") - 2500) < 5
    tab.says("Sentences 1 to 24 of 601")
    tab.page.locator('[data-testid="stMain"]').get_by_role("button", name="Next").last.click()
    tab.says("Sentences 25 to 48 of 601")


def test_lines_keep_their_direction_and_their_breaks(tab: Tab) -> None:
    opened(tab, "rtl")
    directions = tab.page.locator(".pane .line").evaluate_all("lines => lines.map(line => getComputedStyle(line).direction)")
    assert directions == ["rtl", "rtl"]
    opened(tab, "code")
    lines = tab.page.locator(".pane").first.locator(".line").evaluate_all("lines => lines.map(line => [line.textContent, line.className])")
    assert [text for text, _ in lines] == CODE.split("\n")
    assert ["mono" in name for _, name in lines] == [False, *[True] * 7]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 1024])
def test_nothing_scrolls_sideways_and_colour_is_not_needed(chrome: Browser, server: Server, scheme: str, width: int) -> None:
    with chrome.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme) as context:  # type: ignore[arg-type]
        tab = opened(Tab(context, server), "long")
        assert tab.page.evaluate("() => document.scrollingElement.scrollWidth <= window.innerWidth + 1")
        styles = tab.page.locator(".unit.adds, .unit.takes").evaluate_all(
            "units => [...new Set(units.map(unit => [unit.classList.contains('adds'), getComputedStyle(unit).textDecorationStyle].join()))].sort()"
        )
        assert styles == ["false,dotted", "true,solid"]
        legend = tab.page.locator(".legend").inner_text()
        assert "lowers the margin" in legend and "raises the margin" in legend
        top = tab.page.locator(".pane .text").first.bounding_box()
        assert top is not None and top["y"] < 700, "the text comes first"


def test_hostile_texts_are_marked_as_text(chrome: Browser, server: Server) -> None:
    add_model(server.cache, seed=7, n_prompts=12, pairs=hostile_pairs(), position="response_mean")
    with chrome.new_context(viewport={"width": 1440, "height": 900}) as context:
        tab = opened(Tab(context, server), "bad everything")
        text = tab.page.locator(".pane .text").first.evaluate("e => [e.textContent, e.querySelectorAll('script, img, a, math').length]")
        assert HOSTILE["script"] in text[0] and HOSTILE["image"] in text[0] and text[1] == 0
        assert "\u202e" not in text[0]
        assert (tab.errors, tab.dialogs, tab.elsewhere) == ([], [], [])
