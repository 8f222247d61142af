"""The filter for texts that a person sees: every hidden character, in every kind of output."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable

import pytest
from rich.console import Console

from core.cli import tables
from core.latents.labels import one_line
from core.runs.progress import Display
from core.text_safety import REPLACED, for_terminal, printable, visible, without_hidden
from workbench.frame.chart_base import new_figure, plain, wrapped
from workbench.frame.layout import label_text

# Signs of formatting that are drawn: Arabic, Syriac and Kaithi numbers' and verses' signs.
DRAWN = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD}
# Unicode's Default_Ignorable_Code_Point beyond the category Cf: fillers, selectors, and what is not assigned yet.
IGNORABLE = [
    *(0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0),
    *(*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xFFF0, 0xFFFC), *range(0xE0000, 0xE1000), 0x2065),
]
BY_CATEGORY = [
    code
    for code in range(0x110000)
    if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") and code not in DRAWN and chr(code) not in "\n\t"
]
HIDDEN = sorted({*BY_CATEGORY, *IGNORABLE})
# All of them but private use, of which the ends of each block stand for the others where one output is made for each character.
FEW = [code for code in HIDDEN if unicodedata.category(chr(code)) not in ("Co", "Cs") and code < 0xE0200] + [0xD800, 0xDFFF, 0xE000, 0xF8FF, 0x10FFFD]


@pytest.mark.parametrize("shown", [visible, for_terminal, printable, without_hidden])
def test_no_hidden_character_passes(shown: Callable[[str], str]) -> None:
    assert [hex(code) for code in HIDDEN if chr(code) in shown(f"a{chr(code)}b")] == []
    assert [hex(code) for code in HIDDEN if chr(code) in shown(chr(code))] == []


def test_each_output_has_its_own_sign() -> None:
    text = "a\x1b[31m\u202eb\u3164c\U000e0041"
    assert visible(text) == f"a{REPLACED}[31m{REPLACED}b{REPLACED}c{REPLACED}"
    assert for_terminal(text) == "a␛[31m<202e>b<3164>c<e0041>"
    assert printable(text) == r"a\x1b[31m\u202eb\u3164c\U000e0041"
    assert without_hidden(text) == "a[31mbc"


@pytest.mark.parametrize(
    "text",
    [
        *("äöß", "שלום", "مرحبا", "日本語", "한국어", "a\u00a0b", "a\u3000b", "👍🏽", "⠓⠊", "a\nb\tc"),
        *("می\u200cخواهم", "क्\u200dष", "ක්\u200dරි"),
        *("👩\u200d🚀", "👩🏽\u200d🚀", "❤\ufe0f\u200d🔥", "☎\ufe0e", "1\ufe0f\u20e3", "⚠\ufe0f."),
    ],
)
def test_writing_that_needs_joiners_stays(text: str) -> None:
    assert visible(text) == for_terminal(text) == without_hidden(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *("a\u200db", "می\u200c", "\u200cمی", "a\u200cم", "1\ufe0f", "\ufe0f\u20e3", "a\ufe0f", "❤\ufe0f\ufe0f"),
        *("👩\u200d", "\u200d🚀", "👩\u200d\u200d🚀", "👩\ufe01", "🏴\U000e0067", "日\U000e0100"),
    ],
)
def test_joiners_that_join_nothing_are_replaced(text: str) -> None:
    assert REPLACED in visible(text) and without_hidden(text) != text


def test_lengths_stay_and_long_texts_are_cut() -> None:
    text = "".join(map(chr, HIDDEN[:500]))
    assert len(visible(text)) == 500 and visible(text, 10) == REPLACED * 9 + "…"
    assert visible("short", 5) == "short" and visible("longer", 5) == "long…"


def test_no_hidden_character_reaches_a_page() -> None:
    for code in FEW:
        text = f"<b>a{chr(code)}b"
        assert chr(code) not in plain(text) + wrapped(text) + label_text(text), hex(code)
    chart = new_figure(x=plain("".join(map(chr, FEW)), 10_000), y="", height=100)
    assert not set(str(chart.to_json())) & set(map(chr, FEW))


def test_no_hidden_character_reaches_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = "".join(map(chr, FEW))
    with Display() as display:
        display.say(text)
        display.warn(text)
    tables.table(text, (text,), [(text,)])
    printed = capsys.readouterr()
    assert "<202e>" in printed.out and "<202e>" in printed.err
    assert not set(printed.out + printed.err) & set(map(chr, FEW))


def test_no_hidden_character_reaches_a_file() -> None:
    for code in FEW:
        if chr(code) not in "\n\r":
            assert chr(code) not in one_line(f"a{chr(code)}b"), hex(code)
    written = io.StringIO()
    Console(file=written, width=200).print(for_terminal("".join(map(chr, FEW))), markup=False)
    assert not set(written.getvalue()) & set(map(chr, FEW))
