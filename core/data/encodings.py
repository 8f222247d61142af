"""Detects the encoding of a table's bytes, and decodes them to UTF-8.

UTF-8 (with or without a byte order mark) is tried first, then UTF-16 and UTF-32, by their byte order marks or their
null bytes. A file that is not UTF-8 is read as Windows-1252 (cp1252, a superset of Latin-1's letters) if no evidence is
against it: it holds no UTF-8 sequence, no byte that Windows-1252 leaves undefined, and nothing that looks like a word
in another code page (`ODD`). Otherwise the rows that are not UTF-8 are refused, and a note states why.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from core.data.rows import STREAM_ERRORS, lines
from core.text_safety import printable

CHUNK = 1 << 20
MARKS = (  # a longer mark before a shorter one with which it begins
    (b"\xef\xbb\xbf", "utf-8", "UTF-8 with a byte order mark"),
    (b"\xff\xfe\0\0", "utf-32-le", "UTF-32"),
    (b"\0\0\xfe\xff", "utf-32-be", "UTF-32"),
    (b"\xff\xfe", "utf-16-le", "UTF-16"),
    (b"\xfe\xff", "utf-16-be", "UTF-16"),
)
SEQUENCE = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
# UTF-8 sequences that also end a word in Windows-1252: a capital letter or a sharp s before a closing mark.
DOUBTFUL = re.compile(rb"[\xc4-\xdf][\x85\x92-\x94\x96\x97\x99\x9b\xa0\xae\xb0\xbb]")
LETTER = rb"[A-Za-z\x8a\x8c\x8e\x9a\x9c\x9e\x9f\xc0-\xd6\xd8-\xf6\xf8-\xff]"
SIGN = rb"[\x80\x82-\x84\x86-\x89\x8b\x93-\x95\x98\x9b\xa1-\xac\xaf-\xb6\xb8-\xbf\xd7\xf7]"
ODD = (  # evidence against Windows-1252, and what it suggests instead
    (re.compile(rb"[\x81\x8d\x8f\x90\x9d]"), "a byte that it leaves undefined"),
    (re.compile(rb"[\x80-\xff]{4}|[\xc0-\xff]{3}"), "words wholly outside ASCII, as in Cyrillic, Greek, Arabic or East Asian code pages"),
    (re.compile(rb"[\xd0\xdd\xde\xf0\xfd-\xff]"), "letters that Windows-1250, -1251, -1254 or -1257 write with these bytes"),
    (re.compile(rb"\xf5(?!e)|\xd5(?!E)"), "letters that Windows-1250 (Hungarian) writes with the same bytes"),
    (re.compile(LETTER + SIGN + b"{1,2}" + LETTER), "signs inside words, as other code pages make them"),
    (re.compile(rb"[a-z][\x8a\x8c\x8e\x9f\xc0-\xde]"), "capitals inside words, as Mac OS Roman's small letters look"),
)


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """An encoding: Python's name (`codec`), the bytes of a mark to `skip`, and a `name` and a `note` for people."""

    codec: str
    name: str
    skip: int = 0
    note: str = ""


def by_mark(head: bytes) -> Encoding | None:
    """The encoding that a byte order mark, or null bytes at every second place, show; None without either."""
    for mark, codec, name in MARKS:
        if head.startswith(mark):
            return Encoding(codec=codec, name=name, skip=len(mark))
    even, odd = head[0:16:2], head[1:16:2]  # eight characters; even a short header has as many
    if len(head) >= 16 and not any(odd) and all(even):
        return Encoding(codec="utf-16-le", name="UTF-16 without a byte order mark")
    if len(head) >= 16 and not any(even) and all(odd):
        return Encoding(codec="utf-16-be", name="UTF-16 without a byte order mark")
    return None


def encoding_of(handle: io.BufferedIOBase) -> Encoding:
    """The encoding of a table.

    Reads the whole file if it has no mark, and leaves it at its beginning. Raises STREAM_ERRORS.
    """
    encoding = by_mark(handle.read(64))
    handle.seek(0)
    if encoding is None:
        encoding = Encoding(codec="utf-8", name="UTF-8") if _is_utf8(handle) else _other(handle)
        handle.seek(0)
    return encoding


def as_utf8(handle: io.BufferedIOBase, encoding: Encoding) -> io.BufferedIOBase:
    """The text's bytes as UTF-8, without a mark. Bytes of a UTF-8 file that are not valid stay as they are."""
    handle.seek(encoding.skip)
    return handle if encoding.codec == "utf-8" else io.BufferedReader(_Recoded(handle, encoding.codec))


def _is_utf8(handle: io.BufferedIOBase) -> bool:
    handle.seek(0)
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while chunk := handle.read(CHUNK):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    except STREAM_ERRORS:  # compressed data that breaks off is reported by the reader of the rows
        return True
    return True


def _foreign_lines(handle: io.BufferedIOBase) -> Iterator[tuple[int, bytes]]:
    handle.seek(0)
    for number, line in enumerate(lines(handle), 1):
        if isinstance(line, bytes) and not line.isascii():
            yield number, line


def _other(handle: io.BufferedIOBase) -> Encoding:
    """The encoding of a file that is not wholly UTF-8: Windows-1252, or UTF-8 with damaged lines."""
    n_bytes = 0
    first, against = "", ""
    for number, line in _foreign_lines(handle):
        rest = SEQUENCE.sub(b"", line)
        if not first and not rest.isascii():
            byte = re.search(rb"[\x80-\xff]", rest)
            first = f"0x{byte[0].hex().upper()} in line {number}" if byte else ""
        n_bytes += sum(byte >= 0x80 for byte in line)
        if any(not DOUBTFUL.fullmatch(sequence) for sequence in SEQUENCE.findall(line)):
            against = f"line {number} holds UTF-8"
            break
        reason, match = next(((why, match) for odd, why in ODD if (match := odd.search(line))), ("", None))
        if match:
            against = f"line {number} has {reason} (bytes {match[0].hex(' ').upper()})"
            break
    if not against:
        return Encoding(codec="cp1252", name="Windows-1252", note=_taken(handle, n_bytes))
    first = first or "bytes further down"
    note = f"not wholly UTF-8 ({first}), and not taken as Windows-1252, since {against}: rows with such bytes are refused; save the file as UTF-8"
    return Encoding(codec="utf-8", name="UTF-8 with damaged rows", note=note)


def _taken(handle: io.BufferedIOBase, n_bytes: int) -> str:
    number, line = next(_foreign_lines(handle))
    match = re.search(rb"[\x80-\xff]", line)
    at = match.start() if match else 0
    shown = printable(line[max(0, at - 12) : at + 12].decode("cp1252"))
    return (
        f"not UTF-8, taken as Windows-1252 (cp1252), which fits all of its {n_bytes:,} bytes outside ASCII; "
        f"the first, 0x{line[at]:02X} in line {number}, is read as {line[at : at + 1].decode('cp1252')}: “{shown}”"
    )


class _Recoded(io.RawIOBase):
    """A stream that decodes another encoding and returns UTF-8, chunk by chunk."""

    def __init__(self, handle: io.BufferedIOBase, codec: str) -> None:
        self._handle, self._waiting = handle, b""
        # Half a surrogate pair is passed on unchanged, so that its row is refused and not the file.
        self._decoder = codecs.getincrementaldecoder(codec)("surrogatepass" if codec.startswith("utf") else "strict")
        self._over = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._waiting and not self._over:
            chunk = self._handle.read(CHUNK)
            self._over = not chunk
            try:
                self._waiting = self._decoder.decode(chunk, final=self._over).encode("utf-8", "surrogatepass")
            except UnicodeDecodeError as error:
                raise EOFError(f"bytes that are not {error.encoding.upper()}: {error.reason}") from error
        n = min(len(buffer), len(self._waiting))
        buffer[:n], self._waiting = self._waiting[:n], self._waiting[n:]
        return n
