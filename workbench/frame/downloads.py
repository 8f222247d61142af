"""Draws charts and tables with their downloads: CSV, JSONL and HTML beside a chart, PNG by the camera on the chart.

A file is made when a person asks for it; nothing is written to disk.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import streamlit as st

from core.files import json_line
from core.types import json_value
from workbench.frame.chart_base import Chart, Rows

FORMULA = ("=", "+", "-", "@", "\t", "\r")
SHOWN_ROWS = 5000
Selects = Literal["points", "box", "lasso"]


def csv_bytes(rows: Rows) -> bytes:
    """Rows as CSV in UTF-8, with the columns of all rows. A text that a spreadsheet would take for a formula gets a
    quote before it.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, [_cell(name) for name in names], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({_cell(name): _cell(row.get(name)) for name in names})
    return out.getvalue().encode("utf-8-sig", "replace")


def _cell(value: Any) -> Any:
    if isinstance(value, (list, tuple, dict)):
        value = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        value = value.replace("\x00", "\ufffd")
        return f"'{value}" if value.startswith(FORMULA) else value
    return "" if value is None or (isinstance(value, float) and not math.isfinite(value)) else value


def jsonl_bytes(rows: Rows) -> bytes:
    """Rows as JSON Lines, exactly; NaN and infinities are null."""
    return "".join(json_line(json_value(row)) for row in rows).encode("utf-8", "replace")


def file_name(*parts: str, kind: str) -> str:
    """A file's name made of these parts, with letters, digits and hyphens only."""
    words = [re.sub(r"[^A-Za-z0-9]+", "-", part).strip("-").lower()[:40] for part in parts]
    return "-".join(word for word in words if word) + f".{kind}"


def show_chart(
    chart: Chart,
    *,
    key: str,
    name: str = "",
    select: Sequence[Selects] = (),
    on_select: Callable[[list[str]], None] | None = None,
    table: bool = True,
) -> list[str]:
    """Draws a chart with a button for its table and files. `name` goes into the files' names (the model's, say).

    `select` (points, lasso, box): what can be selected; returns the ids of the selected marks, as text. With
    `on_select` a callback gets them before the page is drawn again, so that it can choose something
    (workbench.frame.state).
    """
    camera = {"format": "png", "scale": 2, "filename": file_name(name, chart.name, kind="png").removesuffix(".png")}
    lasso = [] if "lasso" in select else ["lasso2d", "select2d"]
    config = {"displaylogo": False, "toImageButtonOptions": camera, "scrollZoom": False, "modeBarButtonsToRemove": lasso}
    shared: dict[str, Any] = {"key": key, "config": config, "alt": chart.alt, "theme": "streamlit"}  # the theme colours text and grid
    ids: list[str] = []
    if select:

        def changed() -> None:
            if on_select is not None:
                on_select(selected(st.session_state.get(key)))

        event = st.plotly_chart(chart.figure, on_select=changed if on_select else "rerun", selection_mode=list(select), **shared)
        ids = selected(event)
    else:
        st.plotly_chart(chart.figure, **shared)
    if table:
        data_behind(chart, key=key, name=name)
    return ids


def selected(event: Any) -> list[str]:
    """The ids of the selected marks, which are the first entries of their `customdata`, each once, in order."""
    points = event.get("selection", {}).get("points", []) if isinstance(event, Mapping) else []
    ids = (first(point.get("customdata")) for point in points)
    return list(dict.fromkeys(filter(None, ids)))


def first(values: Any) -> str:
    """The id that a mark carries; the browser sends a list, or an object for a single column."""
    if isinstance(values, Mapping):
        values = [values[name] for name in sorted(values)]
    if isinstance(values, (list, tuple)):
        return str(values[0]) if values else ""
    return "" if values is None else str(values)


@st.fragment
def data_behind(chart: Chart, *, key: str, name: str = "") -> None:
    """The table behind a chart, and its files; sent to the browser when opened, without running the page again."""
    behind = _behind("The numbers behind this chart, and files of them", key)
    if not behind.open:
        return
    with behind:
        with st.container(horizontal=True, vertical_alignment="center"):
            download_rows(chart.rows, name=name, what=chart.name, key=key)
            files: dict[str, Any] = {"data": chart.html, "file_name": file_name(name, chart.name, kind="html"), "mime": "text/html"}
            st.download_button("HTML", **files, key=f"{key} html", on_click="ignore", help="the chart as a page that works offline")
            st.caption("The camera on the chart saves a PNG.")
        show_rows(chart.rows, key=f"{key} table", width=560, height=270)


@st.fragment
def rows_behind(make: Callable[[], Rows], *, what: str, key: str, name: str = "") -> None:
    """As `data_behind`, for something other than a chart: `make` returns its rows when they are asked for."""
    behind = _behind("The same as a table, and files of it", key)
    if behind.open:
        rows = make()
        with behind:
            with st.container(horizontal=True):
                download_rows(rows, name=name, what=what, key=key)
            show_rows(rows, key=f"{key} table", width=560, height=270)


def _behind(help_: str, key: str) -> Any:
    return st.popover("Table and files", icon=":material/table_view:", type="tertiary", help=help_, key=f"{key} behind", on_change="rerun")


def show_rows(rows: Rows, *, key: str, width: Any = "stretch", height: Any = "auto") -> None:
    """Rows as a table of plain values."""
    columns = dict.fromkeys(name for row in rows[:SHOWN_ROWS] for name in row)
    table = {name: [_flat(row.get(name)) for row in rows[:SHOWN_ROWS]] for name in columns}
    st.dataframe(table, hide_index=True, key=key, width=width, height=height)
    if len(rows) > SHOWN_ROWS:
        st.caption(f"The first {SHOWN_ROWS:,} of {len(rows):,} rows; the files hold all of them.")


def _flat(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, tuple, dict)) else value


def download_rows(rows: Rows, *, name: str, what: str, key: str) -> None:
    """Buttons for the rows as CSV and as JSONL."""
    for kind, to_bytes, mime in (("csv", csv_bytes, "text/csv"), ("jsonl", jsonl_bytes, "application/jsonl")):
        data = partial(to_bytes, rows)
        st.download_button(kind.upper(), data, file_name(name, what, kind=kind), mime, key=f"{key} {kind}", on_click="ignore")
