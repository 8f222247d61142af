"""Readable text of single tokens: the bytes of a tokenizer's vocabulary, and bytes joined to characters.

Decoding tokens one by one would lose leading spaces (SentencePiece) and break characters of several tokens (byte-level
vocabularies).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Sequence
from typing import Any

# Byte-level vocabularies write each byte as a visible character: these bytes as themselves, the others in order as the
# characters from 256 on.
PLAIN = (*range(33, 127), *range(161, 173), *range(174, 256))
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: Any, ids: Iterable[int]) -> dict[int, bytes]:
    """The bytes that each of these tokens stands for, by id."""
    wanted = sorted(set(ids))
    names = dict(zip(wanted, tokenizer.convert_ids_to_tokens(wanted), strict=True))
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    byte_level = "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder)
    return {number: added[number].encode() if number in added else _bytes_of(name or "", byte_level) for number, name in names.items()}


def pieces(tokens: Sequence[bytes]) -> list[str]:
    """The characters of each token of a text. A character of several tokens belongs to the last of them, as in
    `core.explain.readings.token_texts`; a part of a character at either end becomes U+FFFD."""
    reader = codecs.getincrementaldecoder("utf-8")(errors="replace")
    return [reader.decode(token, final=number == len(tokens) - 1) for number, token in enumerate(tokens)]


def _bytes_of(name: str, byte_level: bool) -> bytes:
    if byte_level:
        return bytes(_FROM_VISIBLE[c] for c in name) if all(c in _FROM_VISIBLE for c in name) else name.encode()
    byte = BYTE.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace("▁", " ").encode()


def _visible() -> dict[str, int]:
    others = [byte for byte in range(256) if byte not in PLAIN]
    return {chr(byte): byte for byte in PLAIN} | {chr(256 + number): byte for number, byte in enumerate(others)}


_FROM_VISIBLE = _visible()
