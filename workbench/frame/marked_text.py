"""Texts side by side whose words, sentences or lines are coloured by a figure each: blue adds, orange takes away, with one
scale for all of them and its legend. Strong ones are underlined as well, solid or dotted, so that colour is not needed.

Pointing at a unit shows its figure and what it is made of; a click or Enter chooses it. The component makes text nodes
only (static/marked.js), so no text of data or models becomes an element. Lines stay lines, each in its own reading
direction; lines of code and tables have letters of one width. Hidden characters are shown as replacement signs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

from core.text_safety import visible
from workbench.frame.chart_base import digits_of
from workbench.frame.text_points import Point, Spans, unit_at

STATIC = Path(__file__).parents[1] / "static"
COMPONENT = "sparserm_marked_text"
MOST_CHARACTERS = 400_000  # of all panes together; what lies behind is cut, and said
QUOTED = 60  # characters of a unit in its box


@dataclass(frozen=True, kw_only=True)
class Pane:
    """A text with its units: `spans` are the characters of each (start, stop), rising, with gaps that have no figure.

    `values` colour them (None or NaN: not measured), `readers` name what each value is made of: numbers of latents with
    their parts, the largest first. `name` is the pane's name in `Point`; `side` colours the mark before its title.
    """

    name: str
    title: str
    text: str
    caption: str = ""
    side: str = ""
    spans: Spans = ()
    values: Sequence[float | None] = ()
    readers: Sequence[Sequence[tuple[int, float]]] = ()


def show_marked(
    panes: Sequence[Pane],
    *,
    key: str,
    place: str,
    on_point: Callable[[Point | None], None],
    unit: str = "word",
    scale: float = 0.0,
    legend: tuple[str, str] = ("takes away", "adds"),
    names: Mapping[int, str] | None = None,
    chosen: Point | None = None,
    height: int = 420,
) -> None:
    """Draws the panes. `scale` is the value of the deepest shade, 0 where nothing is measured; `legend` says what below
    and above 0 mean. `place` names the texts: as long as it is the same the panes stay scrolled where they are.
    `on_point` is called with the unit that a person chooses, and with None where the choice is taken back.
    """
    data = {
        "panes": [pane_data(pane, _share(panes)) for pane in panes],
        "place": place,
        "unit": unit,
        "scale": scale,
        "digits": digits_of(scale),
        "legend": {"low": legend[0], "high": legend[1]},
        "names": {str(latent): visible(name, QUOTED) for latent, name in (names or {}).items()},
        "chosen": _chosen_unit(panes, chosen),
        "height": height,
    }

    def pointed() -> None:
        value = (st.session_state.get(key) or {}).get("pointed")
        on_point(reported_point(value, panes))

    _component()(key=key, data=data, on_pointed_change=pointed)
    cut = sum(max(0, len(pane.text) - _share(panes)) for pane in panes)
    if cut:
        st.caption(f"{cut:,} more characters are not drawn.")


def pane_data(pane: Pane, longest: int = MOST_CHARACTERS) -> dict[str, Any]:
    """What the browser gets of a pane."""
    text = visible(pane.text)[:longest]
    inside = [number for number, (start, _) in enumerate(pane.spans) if start < len(text)]
    values = [None if pane.values[i] is None or not math.isfinite(pane.values[i] or 0) else float(f"{pane.values[i]:.5g}") for i in inside]
    return {
        "name": pane.name,
        "title": visible(pane.title),
        "caption": visible(pane.caption),
        "side": pane.side,
        "lines": list(line_data(text, [pane.spans[i] for i in inside])),
        "values": values,
        "starts": [pane.spans[i][0] for i in inside],
        "quotes": [_quote(text[pane.spans[i][0] : pane.spans[i][1]]) for i in inside],
        "readers": [[[latent, float(f"{part:.5g}")] for latent, part in pane.readers[i]] for i in inside] if pane.readers else [],
    }


def line_data(text: str, spans: Spans) -> Iterator[dict[str, Any]]:
    """Each line as its parts (number of the unit, or -1 for what lies between units; characters)."""
    pieces = list(_pieces(text, spans))
    parts: list[list[Any]] = []
    fenced = False
    for unit, piece in [*pieces, (-1, "\n")]:
        for number, part in enumerate(piece.split("\n")):
            if number:
                line = "".join(words for _, words in parts)
                fence = line.lstrip().startswith("```")
                yield {"parts": parts, "mono": fenced or fence or _is_table_or_code(line)}
                fenced, parts = fenced != fence, []
            if part:
                parts.append([unit, part])


def _is_table_or_code(line: str) -> bool:
    return line.startswith(("    ", "\t")) or (line.lstrip().startswith("|") and line.count("|") > 2) or ("\t" in line.strip())


def _pieces(text: str, spans: Spans) -> Iterator[tuple[int, str]]:
    at = 0
    for number, (start, stop) in enumerate(spans):
        if start > at:
            yield -1, text[at:start]
        if stop > max(start, at):
            yield number, text[max(start, at) : stop]
        at = max(at, stop)
    if at < len(text):
        yield -1, text[at:]


def _quote(text: str) -> str:
    line = " ".join(text.split())
    return f"“{line if len(line) <= QUOTED else line[: QUOTED - 1] + '…'}”"


def _share(panes: Sequence[Pane]) -> int:
    return MOST_CHARACTERS // max(1, len(panes))


def _chosen_unit(panes: Sequence[Pane], point: Point | None) -> dict[str, int] | None:
    for number, pane in enumerate(panes):
        if point is not None and pane.name == point.pane:
            unit = unit_at(pane.spans, point.at)
            return None if unit is None else {"pane": number, "unit": unit}
    return None


def reported_point(value: Any, panes: Sequence[Pane]) -> Point | None:
    """What the browser says was chosen, if these panes hold it."""
    if not isinstance(value, Mapping) or type(value.get("at")) is not int:
        return None
    pane = next((pane for pane in panes if pane.name == value.get("pane")), None)
    starts = [] if pane is None else [start for start, _ in pane.spans]
    return Point(pane=str(value["pane"]), at=value["at"]) if value["at"] in starts else None


@st.cache_resource(show_spinner=False)
def _component() -> Any:
    """Registered once a server, or every run would warn."""
    code, style = ((STATIC / f"marked.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    return st.components.v2.component(COMPONENT, js=code, css=style)
