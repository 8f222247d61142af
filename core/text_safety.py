"""The filter for texts of data, models and files before a person sees them: on a page, in a terminal, in a message or
in a file.

Such a text can hold characters that a terminal would obey, that reverse the reading order of their neighbours, or that
are not drawn at all and so hide a message. `HIDDEN` is the complete set. Where a text goes decides what stands in the
place of a hidden character:

    visible(text)          pages: one replacement sign for each, so that places in the text stay what they are
    for_terminal(text)     terminals: its picture or its code
    printable(text)        messages, reports and Markdown files: its Python escape, on one line, and cut
    without_hidden(text)   labels, which are names: left out

A few of these characters are kept where the text would be written wrongly without them, and only there: joiners between
letters of scripts that join or stack their letters (Persian, Indic scripts and their like) and between the parts of an
emoji; the choice of an emoji's form directly after it. Alone, at the ends of a word or in Latin text they can only hide
something and are replaced. Spaces of any width are no hidden characters: they are seen as spaces. Downloads of rows
(JSONL, CSV) are data and are written exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable

REPLACED = "\ufffd"
# Characters of a regular expression's set: see tests/test_text_safety.py, which derives the same from the Unicode
# categories.
HIDDEN = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but for tab and line feed
    r"\u00ad\u034f\u061c"  # soft hyphen, grapheme joiner, Arabic letter mark
    r"\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0"  # fillers and inherent vowels without a shape; Mongolian selectors and separator
    r"\u200b-\u200f\u2028-\u202e\u2060-\u206f"  # zero width, line and paragraph separators, direction, invisible operators
    r"\ufe00-\ufe0f\U000e0100-\U000e01ef"  # variation selectors
    r"\ufeff\ufff0-\ufffb"  # byte order mark, interlinear annotations, unassigned characters without a shape
    r"\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # controls of hieroglyphs, shorthand and musical notation
    r"\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"  # tags
    r"\ud800-\udfff\ue000-\uf8ff\U000f0000-\U0010ffff"  # halves of surrogate pairs; private use
)
_HIDDEN = re.compile(f"[{HIDDEN}]")
_EMOJI = re.compile(
    r"[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u27bf\u2900-\u297f\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff]"
)
# Letters and signs of Arabic, Syriac, N'Ko, Indic scripts, Myanmar, Khmer and Mongolian.
_JOINING = re.compile(
    r"[\u0620-\u065f\u066e-\u06d3\u06d5\u06ee\u06ef\u06fa-\u06ff\u0710-\u077f\u07ca-\u07f5\u08a0-\u08ff\u0900-\u0dff\u1000-\u109f\u1780-\u17d3\u1820-\u18aa]"
)
_EMOJI_FORMS, _JOINERS, _ZERO_WIDTH_JOINER, _KEYCAP = "\ufe0e\ufe0f", "\u200c\u200d", "\u200d", "\u20e3"


def visible(text: object, longest: int | None = None) -> str:
    """A text for a page: each hidden character is one replacement sign, line ends and tabs stay. Cut to `longest`
    characters.
    """
    text = str(text) if longest is None else str(text)[: longest + 1]
    shown = _replaced(text, lambda character: REPLACED)
    return shown if longest is None or len(shown) <= longest else shown[: longest - 1] + "…"


def for_terminal(text: str) -> str:
    """A text for a terminal: each hidden character is its picture (␛) or its code in hex (<202e>), line ends and tabs
    stay.
    """
    return _replaced(text, _picture)


def printable(text: object, limit: int = 80) -> str:
    """A text for one line of a message, a report or a Markdown file: whatever is hidden or not printable is its Python
    escape. Cut to `limit`.
    """
    shown = "".join(c if c.isprintable() else _escape(c) for c in _replaced(str(text)[:limit], _escape))
    return shown + ("..." if len(str(text)) > limit else "")


def without_hidden(text: str) -> str:
    """The text without its hidden characters."""
    return _replaced(text, lambda character: "")


def _replaced(text: str, sign: Callable[[str], str]) -> str:
    if text.isascii() and text.isprintable():
        return text
    return _HIDDEN.sub(lambda match: match[0] if _is_needed(text, match.start()) else sign(match[0]), text)


def _is_needed(text: str, place: int) -> bool:
    """Whether the hidden character at this place decides how its visible neighbours are written."""
    character, before, after = text[place], text[max(0, place - 1) : place], text[place + 1 : place + 2]
    if character in _EMOJI_FORMS:
        return bool(_EMOJI.match(before)) or (before != "" and before in "#*0123456789" and after == _KEYCAP)
    if character in _JOINERS and _JOINING.match(before) and _JOINING.match(after):
        return True
    if character == _ZERO_WIDTH_JOINER and before and before in _EMOJI_FORMS:
        before = text[max(0, place - 2) : place - 1]
    return character == _ZERO_WIDTH_JOINER and bool(_EMOJI.match(before) and _EMOJI.match(after))


def _picture(character: str) -> str:
    return chr(0x2400 + ord(character)) if ord(character) < 0x20 else f"<{ord(character):04x}>"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
