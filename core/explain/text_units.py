"""Words, sentences and lines of a text, as spans of characters: the one segmentation of marked texts, bars and deletions.

Only `re`: of the libraries, those that follow Unicode's rules cut sentences at abbreviations and list numbers, and
those that don't are made for English. The rules here are:

word       what stands between white space; in scripts that are written without spaces each sign with its marks. Runs of
           more than LONGEST_WORD characters, such as minified code, are cut before their punctuation.
sentence   ends at . ! ? … before white space, at the full stops of other scripts, and at every line end, so a table's
           row, a list's item and a line of code are sentences; not after an abbreviation, an initial or a list's number.
line       ends at line ends.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from core.explain.token_values import Span

LEVELS = ("word", "sentence", "line")
LONGEST_WORD = 40
# Han, kana, Thai, Lao, Myanmar and Khmer are written without spaces: there each sign is a word of its own.
_SIGN = "\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e45\u0e81-\u0eb0\u0ec0-\u0ec4\u1000-\u102a\u1780-\u17b3\u3005-\u3007\u3041-\u3096\u30a1-\u30fa\u30fc"
_SIGN += "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_OPENING = "「『（《〈【〔“‘(\\[{"
_WORD = re.compile(rf"[{_OPENING}]*[{_SIGN}][^\w\s{_OPENING}{_SIGN}]*|[^\s{_SIGN}]+")
_PIECE = re.compile(r"\W*(?:\w+|$)")
_LINE = re.compile(r"[^\n]+")
# A sentence with the white space behind it.
_SENTENCE = re.compile(r".+?(?:[.!?…؟۔।॥։።]+[\"'”’»)\]*_]*(?=\s)|[。！？｡]+[」』”）]*|\n+|$)\s*", re.DOTALL)
_ABBREVIATED = re.compile(r"(?:^|[\s(\"'“])(?:(?:Mr|Mrs|Ms|Dr|Prof|St|vs|cf|Fig|approx|e\.g|i\.e|[A-HJ-Z])\.|(?:[A-Za-z]\.){2,}) *$")
_LIST_NUMBER = re.compile(r"[\s>*_#-]*(?:\d{1,3}|[A-Za-z]|[ivx]{1,4})\. *$")


def unit_spans(text: str, level: str) -> tuple[Span, ...]:
    """The units of a level (one of LEVELS), rising and without the white space around them. A text of nothing but white
    space is one unit."""
    tiles = {"word": _words, "sentence": _sentences, "line": lambda text: (match.span() for match in _LINE.finditer(text))}[level](text)
    spans = []
    for start, stop in tiles:
        stripped = text[start:stop].strip()
        if stripped:
            first = start + len(text[start:stop]) - len(text[start:stop].lstrip())
            spans.append((first, first + len(stripped)))
    return tuple(spans) or ((0, len(text)),)


def tiles(text: str, level: str) -> tuple[Span, ...]:
    """The units with the white space behind them (the first also with that before it): together they are the text."""
    starts = [start for start, _ in unit_spans(text, level)]
    return tuple(itertools.pairwise([0, *starts[1:], len(text)]))


def _words(text: str) -> Iterator[Span]:
    for match in _WORD.finditer(text):
        if len(match[0]) <= LONGEST_WORD:
            yield match.span()
        else:
            yield from (piece.span() for piece in _PIECE.finditer(text, *match.span()) if piece[0])


def _sentences(text: str) -> Iterator[Span]:
    start = 0
    for match in _SENTENCE.finditer(text):
        if not _goes_on(text, start, match.end()):
            yield start, match.end()
            start = match.end()
    if start < len(text):
        yield start, len(text)


def _goes_on(text: str, start: int, stop: int) -> bool:
    """Whether the mark at the end of this part does not end its sentence."""
    part, following = text[start:stop], text[stop : stop + 1]
    if not following or "\n" in part[len(part.rstrip()) :]:
        return False
    single_stop = part.rstrip().endswith(".") and not part.rstrip().endswith("..")
    return bool(_LIST_NUMBER.match(part)) or (single_stop and (following.islower() or bool(_ABBREVIATED.search(part))))
