"""Tables with other separators, encodings and line ends; JSON documents in other shapes; what was detected is said."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from data_helpers import csv_bytes, jsonl_bytes, load, refusals, trl_row, trl_rows

from core.errors import DataError

ROWS = [{"prompt": "Où est-ce ?", "chosen": "À côté, “là”.", "rejected": "Nulle part…"}, trl_row(1)]


def as_csv(rows: list[dict[str, Any]], separator: str = ",", end: str = "\n", encoding: str = "utf-8") -> bytes:
    quoted = [list(rows[0]), *([*row.values()] for row in rows)]
    return end.join(separator.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in [*quoted]).encode(encoding)


def read(folder: Path, name: str, data: bytes) -> tuple[list[tuple[str, str, str]], tuple[str, ...]]:
    pairs, report = load(folder, name, data)
    assert report.refused == ()
    return [(pair.prompt[0]["content"], pair.chosen, pair.rejected) for pair in pairs], report.notes


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
def test_every_layout_gives_the_same_texts(separator: str, end: str, encoding: str, tmp_path: Path) -> None:
    rows, notes = read(tmp_path, "x.csv", as_csv(ROWS, separator, end, encoding))
    assert rows == [tuple(row.values()) for row in ROWS]
    usual = separator == "," and encoding == "utf-8" and end != "\r"
    assert bool(notes) != usual
    if not usual:
        name = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}[separator]
        known = {"utf-8": "UTF-8", "utf-8-sig": "UTF-8 with", "cp1252": "Windows-1252"}.get(encoding, encoding[:6].upper())
        assert notes[0].startswith(f"x.csv: cells separated by {name}, {known}")


def test_windows_1252_is_said_with_the_bytes_that_decided(tmp_path: Path) -> None:
    _, notes = read(tmp_path, "x.csv", as_csv(ROWS, encoding="cp1252"))
    n = sum(byte >= 0x80 for byte in as_csv(ROWS, encoding="cp1252"))
    assert f"fits all of its {n} bytes outside ASCII" in notes[1] and "0xF9 in line 2, is read as ù" in notes[1]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Привет, мир", "cp1251"),
        ("książka żółw", "cp1250"),
        ("nő és fűz", "cp1250"),
        ("baş ağrısı", "cp1254"),
        ("don’t, café", "mac_roman"),
        ("schön für", "cp850"),
        ("你好你好", "gbk"),
        ("こんにちは", "shift_jis"),
        ("Γειά σου", "cp1253"),
    ],
)
def test_other_code_pages_are_never_taken_for_windows_1252(text: str, encoding: str, tmp_path: Path) -> None:
    odd = (text + " one", text + " two", "three")
    data = csv_bytes(trl_rows(2)) + ",".join(odd).replace(", ", " ").encode(encoding) + b"\r\n"
    pairs, report = load(tmp_path, "x.csv", data)
    assert [pair.chosen for pair in pairs] == [row["chosen"] for row in trl_rows(2)]
    assert [refused.row for refused in report.refused] == [4]
    assert any("not taken as Windows-1252" in note for note in report.notes)


def test_mixed_line_ends(tmp_path: Path) -> None:
    rows = trl_rows(6)
    lines = csv_bytes(rows).decode().replace("\r\n", "\n").splitlines()
    mixed = f"{lines[0]}\n{lines[1]}\r\n{lines[2]}\r{lines[3]}\r{lines[4]}\n{lines[5]}\r\r\n{lines[6]}"
    texts, _ = read(tmp_path, "x.csv", mixed.encode())
    assert texts == [tuple(row.values()) for row in rows]


def test_a_quoted_cell_keeps_separators_and_line_ends(tmp_path: Path) -> None:
    row = {**trl_row(0), "chosen": 'one;\ntwo\rthree\r\nfour, "five"|\tsix'}
    for separator, end in ((";", "\r"), ("\t", "\n"), ("|", "\r\n")):
        assert read(tmp_path, "x.csv", as_csv([row], separator, end))[0] == [tuple(row.values())]


def test_a_separator_that_can_not_be_told_names_the_candidates(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the separator of the cells of .* is not clear") as caught:
        load(tmp_path, "x.csv", b"a;b,c\n1;2,3\n4;5,6\n")
    assert "comma: 2 columns (a;b, c)" in caught.value.found and "semicolon: 2 columns (a, b,c)" in caught.value.found


def test_excels_sep_line_and_spaces_after_commas(tmp_path: Path) -> None:
    assert read(tmp_path, "x.csv", b"sep=;\nprompt;chosen;rejected\na;b, c;d\n")[0] == [("a", "b, c", "d")]
    assert read(tmp_path, "x.csv", b'prompt, chosen, rejected\na, "b, c", "d"\n')[0] == [("a", "b, c", "d")]


def test_missing_cells(tmp_path: Path) -> None:
    data = b"prompt,chosen,rejected\na,nan,b\nc,,d\ne,None,NA\n"
    pairs, report = load(tmp_path, "x.csv", data)
    assert refusals(report) == [(2, "chosen", "missing"), (3, "chosen", "missing")]
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("None", "NA")]


ROW = trl_rows(3)


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("x.json", {"columns": list(ROW[0]), "index": [0, 1, 2], "data": [list(row.values()) for row in ROW]}),
        ("x.json", {str(i): row for i, row in enumerate(ROW)}),
        (
            "x.json",
            {"prompt": {"0": ROW[0]["prompt"], "1": ROW[1]["prompt"], "2": ROW[2]["prompt"]}}
            | {name: {str(i): ROW[i][name] for i in (2, 1, 0)} for name in ("chosen", "rejected")},
        ),
        ("x.json", {"features": [], "rows": [{"row_idx": i, "row": row, "truncated_cells": []} for i, row in enumerate(ROW)]}),
        ("x.jsonl", ROW),
    ],
    ids=["pandas split", "pandas index", "columns in another order", "the Hub's viewer", "a list in .jsonl"],
)
def test_documents(name: str, document: Any, tmp_path: Path) -> None:
    texts, _ = read(tmp_path, name, json.dumps(document, indent=1).encode())
    assert texts == [tuple(row.values()) for row in ROW]


def test_columns_of_different_rows_are_an_error(tmp_path: Path) -> None:
    columns = {"prompt": {"0": "a", "1": "b"}, "chosen": {"0": "c", "2": "d"}, "rejected": {"0": "e", "1": "f"}}
    with pytest.raises(DataError, match="hold different rows"):
        load(tmp_path, "x.json", json.dumps(columns).encode())


def test_lists_beside_the_one_that_is_read_are_said(tmp_path: Path) -> None:
    _, notes = read(tmp_path, "x.json", json.dumps({"train": ROW, "test": ROW}).encode())
    assert notes == ("x.json: the rows under `train` are read; not those under test",)


def arrow(rows: list[Any], *, stream: bool) -> bytes:
    import pyarrow as pa

    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


@pytest.mark.parametrize("name", ["x.arrow", "x.feather", "x.arrow.gz"])
@pytest.mark.parametrize("stream", [True, False])
def test_arrow(name: str, stream: bool, tmp_path: Path) -> None:
    data = arrow(ROW, stream=stream)
    texts, _ = read(tmp_path, name, gzip.compress(data) if name.endswith(".gz") else data)
    assert texts == [tuple(row.values()) for row in ROW]


def test_lines_that_end_with_cr_alone(tmp_path: Path) -> None:
    texts, notes = read(tmp_path, "x.ndjson", jsonl_bytes(ROW).replace(b"\n", b"\r"))
    assert texts == [tuple(row.values()) for row in ROW] and notes == ("x.ndjson: lines end with CR alone",)
