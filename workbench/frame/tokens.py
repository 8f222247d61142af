"""Text with its tokens highlighted: how strong each is by its shade, its figure on hover, and, where asked, a span to
be picked.

The component makes a text node for each token (static/tokens.js), so no text of data or models becomes an element.
Right-to-left texts run right to left; signs that would reorder their neighbours are shown as replacement signs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import streamlit as st

from core.text_safety import visible

STATIC = Path(__file__).parents[1] / "static"
MOST_TOKENS = 20_000  # of all rows together; what lies behind is cut, and said
COMPONENT = "sparserm_tokens"


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """A text as its tokens. `values` shade them (None or NaN: not measured), `notes` stand behind the figure on hover,
    `muted` ones are pale (template, prompt), `peak` is underlined.
    """

    texts: Sequence[str]
    values: Sequence[float | None]
    caption: str = ""
    notes: Mapping[int, str] = field(default_factory=dict)
    muted: Collection[int] = ()
    peak: int | None = None


@dataclass(frozen=True, kw_only=True)
class Pick:
    """The tokens that a person marked: `first` to `last` of a row."""

    row: int
    first: int
    last: int


def show_tokens(
    rows: Sequence[TokenRow],
    *,
    key: str,
    unit: str = "activation",
    scale: float | None = None,
    selectable: bool = False,
    height: int | None = None,
    hint: str = "",
) -> Pick | None:
    """Draws the rows, and returns what is picked where they are `selectable`. `scale` is the value of the deepest shade
    (by default the largest one); give the same to texts that are compared. Blue is above 0, orange below.
    """
    shown, cut = within(rows, MOST_TOKENS)
    data = {
        "rows": [row_data(row) for row in shown],
        "scale": scale or largest(shown),
        "unit": unit,
        "selectable": selectable,
        "height": height,
        "hint": hint or ("Drag over words to mark them." if selectable else f"Point at a word to see its {unit}."),
        "pick": None,
    }
    if not selectable:
        _component()(key=key, data=data)
    else:
        held = st.session_state.get(key)
        data["pick"] = held.get("pick") if isinstance(held, Mapping) else None
        result = _component()(key=key, data=data, default={"pick": None}, on_pick_change=lambda: None)
        picked = pick_of(result.get("pick"), shown)
        if cut:
            st.caption(f"{cut:,} more tokens are not drawn.")
        return picked
    if cut:
        st.caption(f"{cut:,} more tokens are not drawn.")
    return None


def table(rows: Sequence[TokenRow], unit: str = "activation") -> list[dict[str, Any]]:
    """Every token with its figure: for who can't see shades, and for files."""
    return [
        {
            "text": number,
            "of": visible(row.caption),
            "place": place,
            "token": visible(token),
            unit: row.values[place],
            "note": row.notes.get(place, ""),
        }
        for number, row in enumerate(rows, start=1)
        for place, token in enumerate(row.texts)
    ]


def row_data(row: TokenRow) -> dict[str, Any]:
    """What the browser gets of a row."""
    values = [None if value is None or not math.isfinite(value) else float(f"{value:.4g}") for value in row.values]
    return {
        "texts": [visible(text) for text in row.texts],
        "values": values,
        "caption": visible(row.caption),
        "notes": {str(place): visible(note, 200) for place, note in row.notes.items()},
        "muted": sorted(row.muted),
        "mark": row.peak,
    }


def largest(rows: Sequence[TokenRow]) -> float:
    """The largest size of any value; 0 where none is measured."""
    sizes = [abs(value) for row in rows for value in row.values if value is not None and math.isfinite(value)]
    return max(sizes, default=0.0)


def within(rows: Sequence[TokenRow], most: int) -> tuple[list[TokenRow], int]:
    """The rows until so many tokens, the last one cut; and how many tokens are left out."""
    kept: list[TokenRow] = []
    left = most
    for row in rows:
        take = min(left, len(row.texts))
        if take:
            kept.append(TokenRow(**{**row.__dict__, "texts": row.texts[:take], "values": row.values[:take]}))
        left -= take
    return kept, sum(len(row.texts) for row in rows) - sum(len(row.texts) for row in kept)


def pick_of(value: Any, rows: Sequence[TokenRow]) -> Pick | None:
    """What the browser says was picked, if these rows hold it."""
    if not isinstance(value, Mapping) or not all(type(value.get(name)) is int for name in ("row", "first", "last")):
        return None
    row, first, last = value["row"], value["first"], value["last"]
    inside = 0 <= row < len(rows) and 0 <= first <= last < len(rows[row].texts)
    return Pick(row=row, first=first, last=last) if inside else None


@st.cache_resource(show_spinner=False)
def _component() -> Any:
    """Registered once a server, or every run would warn."""
    code, style = ((STATIC / f"tokens.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    return st.components.v2.component(COMPONENT, js=code, css=style)
