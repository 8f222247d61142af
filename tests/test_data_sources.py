"""Every kind of file, plain and gzipped, its row numbers, and what is said of files that can't be read."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest
from data_helpers import csv_bytes, jsonl_bytes, load, load_rows, parquet_bytes, refusals, rows_bytes, trl_row, trl_rows

from core.config import DataConfig
from core.data.pairs import load_pairs
from core.data.rows import Row
from core.data.sources import open_source
from core.errors import ConfigError, DataError, MissingError
from core.text_safety import printable

KINDS = [plain + gz for plain in (".jsonl", ".json", ".csv", ".parquet") for gz in ("", ".gz")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_pairs(kind: str, tmp_path: Path) -> None:
    rows = [{**row, "chosen": row["chosen"] + ' "quoted",\nnext line, äöü 🙂'} for row in trl_rows(5)]
    pairs, report = load(tmp_path, "x" + kind, rows_bytes(kind, rows))
    assert [(p.prompt[0]["content"], p.chosen, p.rejected) for p in pairs] == [(r["prompt"], r["chosen"], r["rejected"]) for r in rows]
    assert (report.format, report.variant, report.n_rows, report.refused) == ("trl", "explicit prompt", 5, ())
    assert report.columns == ("prompt", "chosen", "rejected")


@pytest.mark.parametrize("kind", KINDS)
def test_message_lists_of_every_kind(kind: str, tmp_path: Path) -> None:
    rows = [{name: [{"role": "user" if name == "prompt" else "assistant", "content": text}] for name, text in trl_row(i).items()} for i in range(3)]
    if ".csv" in kind:  # a cell of a csv holds the list as JSON
        rows = [{name: json.dumps(value) for name, value in row.items()} for row in rows]  # type: ignore[misc]
    pairs, _ = load(tmp_path, "x" + kind, rows_bytes(kind, rows))
    assert [p.chosen for p in pairs] == [trl_row(i)["chosen"] for i in range(3)]


def test_gzip_is_seen_by_content_whatever_the_name(tmp_path: Path) -> None:
    assert len(load(tmp_path, "a.jsonl", gzip.compress(jsonl_bytes(trl_rows(2))))[0]) == 2
    assert len(load(tmp_path, "b.jsonl.gz", jsonl_bytes(trl_rows(2)))[0]) == 2
    assert len(load(tmp_path, "C.JSONL", jsonl_bytes(trl_rows(2)))[0]) == 2


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".jsonl.gz"])
def test_a_byte_order_mark_is_stepped_over(kind: str, tmp_path: Path) -> None:
    data = rows_bytes(kind.removesuffix(".gz"), trl_rows(2))
    data = b"\xef\xbb\xbf" + data
    _, report = load(tmp_path, "x" + kind, gzip.compress(data, mtime=0) if kind.endswith(".gz") else data)
    assert (report.n_used, report.columns[0]) == (2, "prompt")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_utf_16_is_a_clear_error(encoding: str, tmp_path: Path) -> None:
    text = jsonl_bytes(trl_rows(2)).decode()
    data = b"\xfe\xff" + text.encode(encoding) if encoding == "utf-16-be" else text.encode(encoding)
    with pytest.raises(DataError, match=r"is not UTF-8\n.*expected: UTF-8 text\n.*UTF-(16|32)"):
        load(tmp_path, "x.jsonl", data)


def test_a_bad_jsonl_line_refuses_that_line_alone(tmp_path: Path) -> None:
    good = [json.dumps(row).encode() for row in trl_rows(4)]
    bad = [b'{"prompt": "cut', b"\xff\xfe\xfd", b"[" * 100_000, b"[1, 2]", b'{"chosen": "a", "chosen": "b"}', b"9" * 5000]
    data = b"\n".join([good[0], b"", *bad, good[1], b"  ", good[2], good[3]])
    pairs, report = load(tmp_path, "x.jsonl", data)
    assert [p.meta["row"] for p in pairs] == [1, 9, 11, 12]
    assert report.n_rows == 10
    assert [r.row for r in report.refused] == [3, 4, 5, 6, 7, 8]
    reasons = [r.reason for r in report.refused]
    assert reasons[0].startswith("not JSON (Unterminated string")
    assert reasons[1:5] == ["bytes that are not UTF-8", "nested too deeply", "not an object but list", "one key is given twice"]
    assert reasons[5].startswith("not JSON (Exceeds the limit")


def test_a_line_too_long_is_refused_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.data.rows.MAX_LINE", 1000)
    monkeypatch.setattr("core.data.json_files.MAX_LINE", 1000)
    long = json.dumps({**trl_row(0), "chosen": "x" * 5000}).encode()
    _, report = load(tmp_path, "x.jsonl", b"\n".join([jsonl_bytes([trl_row(1)]).strip(), long, jsonl_bytes([trl_row(2)])]))
    assert refusals(report) == [(2, "row", "longer than 1000 bytes")]
    assert report.n_used == 2


@pytest.mark.parametrize(
    "document",
    [
        {"data": trl_rows(3)},
        {"version": 1, "rows": trl_rows(3)},
        {name: [row[name] for row in trl_rows(3)] for name in trl_row(0)},
        {name: {str(i): row[name] for i, row in enumerate(trl_rows(3))} for name in trl_row(0)},
    ],
    ids=["list under a key", "list beside other keys", "columns as lists", "columns as pandas writes them"],
)
def test_shapes_of_json_documents(document: object, tmp_path: Path) -> None:
    pairs, _ = load(tmp_path, "x.json", json.dumps(document, indent=1).encode())
    assert [p.chosen for p in pairs] == [row["chosen"] for row in trl_rows(3)]


def test_a_json_file_of_lines_and_of_one_row(tmp_path: Path) -> None:
    assert len(load(tmp_path, "x.json", jsonl_bytes(trl_rows(3)))[0]) == 3
    assert len(load(tmp_path, "x.json", jsonl_bytes(trl_rows(1)))[0]) == 1
    messages = {name: [{"role": role, "content": name}] for name, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))}
    assert len(load(tmp_path, "x.json", json.dumps(messages).encode())[0]) == 1
    bomb = b'{"prompt": ' + b"[" * 100_000
    assert load(tmp_path, "x.json", bomb + b"\n" + jsonl_bytes(trl_rows(2)))[1].n_used == 2


def test_undecodable_bytes_in_a_json_list_refuse_their_row(tmp_path: Path) -> None:
    data = json.dumps(trl_rows(3)).encode().replace(b"Yes, 1", b"Yes\xff 1")
    _, report = load(tmp_path, "x.json", data)
    assert refusals(report) == [(2, "chosen", "not valid Unicode: bytes that are not UTF-8, or half a surrogate pair")]


def test_csv_rows_are_numbered_as_in_a_sheet(tmp_path: Path) -> None:
    rows = trl_rows(4)
    rows[1]["chosen"] = "two\nlines"
    rows[2]["rejected"] = ""
    pairs, report = load(tmp_path, "x.csv", csv_bytes(rows) + b"\r\nonly,two\r\n")
    assert [p.meta["row"] for p in pairs] == [2, 3, 5]
    assert refusals(report) == [(4, "rejected", "missing"), (7, "row", "2 cells where the header has 3")]


def test_an_unclosed_quote_in_a_csv_does_not_swallow_good_rows(tmp_path: Path) -> None:
    lines = csv_bytes([{**row, "chosen": f'"{row["chosen"]}"'} for row in trl_rows(5)]).splitlines(keepends=True)
    lines.insert(2, b'"never closed,a,b\r\n')
    lines.append(b'"nor this,a,b\r\n')
    lines.append(b"prompt z,x,y\r\n")
    pairs, report = load(tmp_path, "x.csv", b"".join(lines))
    assert [p.prompt[0]["content"] for p in pairs] == [row["prompt"] for row in trl_rows(5)] + ["prompt z"]
    assert [(r.row, r.field) for r in report.refused] == [(3, "row"), (8, "row")]
    assert all(r.reason.startswith("not csv (") for r in report.refused)


def test_undecodable_bytes_in_a_csv_refuse_their_row(tmp_path: Path) -> None:
    data = csv_bytes(trl_rows(3)).replace(b"No, never 1", b"No \xe9\xe8 1").replace(b"Yes, 2", "Yes, ü 2".encode())
    _, report = load(tmp_path, "x.csv", data)
    assert [(r.row, r.field) for r in report.refused] == [(3, "rejected")]


def test_a_text_of_a_csv_that_looks_like_json_stays_text(tmp_path: Path) -> None:
    rows = [{**trl_row(0), "chosen": '[{"a": 1}]'}, {**trl_row(1), "chosen": "[{not json"}]
    assert [p.chosen for p in load(tmp_path, "x.csv", csv_bytes(rows))[0]] == ['[{"a": 1}]', "[{not json"]


@pytest.mark.parametrize("header", [b"prompt,chosen,chosen,rejected\r\n", b"prompt, chosen,chosen ,rejected\r\n"])
def test_a_column_name_given_twice_is_an_error(header: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"columns of one name\n  expected: each name once\n  found: chosen\n  to do: rename"):
        load(tmp_path, "x.csv", header + b"a,b,c,d\r\n")


def test_a_parquet_column_name_given_twice_is_an_error(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_arrays([pa.array(["a"])] * 3, names=["chosen", "rejected", "chosen"])
    sink = io.BytesIO()
    pq.write_table(table, sink)
    with pytest.raises(DataError, match="columns of one name"):
        load(tmp_path, "x.parquet", sink.getvalue())


def test_undecodable_bytes_in_parquet_refuse_their_row(tmp_path: Path) -> None:
    data = parquet_bytes([{**row, "chosen": row["chosen"].replace("Yes", "Y@s" if i == 1 else "Yes")} for i, row in enumerate(trl_rows(3))])
    assert b"Y@s" in data
    _, report = load(tmp_path, "x.parquet", data.replace(b"Y@s", b"Y\xffs"))
    assert refusals(report) == [(2, "row", "a value can't be read (not UTF-8?)")]


def test_a_parquet_column_name_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    data = parquet_bytes([row | {"zz": "1"} for row in trl_rows(2)])
    with pytest.raises(DataError, match="is not a parquet file, or it is cut off or damaged"):
        load(tmp_path, "x.parquet", data.replace(b"zz", b"z\xe0"))


def test_a_cut_gzip_gives_the_rows_before_the_cut(tmp_path: Path) -> None:
    data = gzip.compress(jsonl_bytes(trl_rows(2000)), mtime=0)
    pairs, report = load(tmp_path, "x.jsonl.gz", data[: len(data) // 2])
    assert 100 < len(pairs) < 1900
    assert [p.chosen for p in pairs] == [row["chosen"] for row in trl_rows(len(pairs))]
    (cut,) = report.refused
    assert (cut.row, cut.field) == (len(pairs) + 1, "file")
    assert cut.reason.startswith("the data breaks off here, and the rows after it are lost (")


def test_a_cut_gzip_of_csv_makes_no_rows_of_the_last_cell(tmp_path: Path) -> None:
    rows = [{**row, "rejected": "\n".join(f"a,b,{i}" for i in range(300))} for row in trl_rows(50)]
    data = gzip.compress(csv_bytes(rows), mtime=0)
    pairs, report = load(tmp_path, "x.csv.gz", data[: len(data) * 2 // 3])
    assert 0 < len(pairs) < 50
    assert [p.prompt[0]["content"] for p in pairs] == [row["prompt"] for row in trl_rows(len(pairs))]
    assert [(r.row, r.field) for r in report.refused] == [(len(pairs) + 2, "file")]


@pytest.mark.parametrize("kind", [".json", ".parquet"])
def test_a_cut_gzip_of_a_whole_document_is_an_error(kind: str, tmp_path: Path) -> None:
    data = rows_bytes(kind + ".gz", trl_rows(200))
    with pytest.raises(DataError, match=r"(?s)(breaks off or is damaged|not a parquet file).*fetch it again"):
        load(tmp_path, f"x{kind}.gz", data[: len(data) // 2])


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.jsonl", b"", "is empty"),
        ("x.csv.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("x.jsonl", b"\n  \n", r"(?s)no usable row.*found: no row at all"),
        ("x.json", b"[]", "no usable row"),
        ("x.json", b"[{", r"(?s)is not JSON.*line 1 column 3"),
        ("x.json", b"17", r"(?s)holds no rows.*found: int"),
        ("x.json", b"[" * 100_000, "nesting too deep"),
        ("x.json", b'{"data": [], "data": []}', "one key twice"),
        ("x.json", b'{"prompt": ["a"], "chosen": ["a", "b"]}', r"(?s)differ in length.*prompt: 1, chosen: 2"),
        ("x.csv", b"prompt,chosen,rejected\n", "no usable row"),
        ("x.csv", b"\n\n", "header of .* can't be read"),
        ("x.csv", b"pr\xffompt,chosen,rejected\na,b,c\n", "header of .* is not UTF-8"),
        ("x.parquet", b"PAR1 but not really", "is not a parquet file"),
        ("x.jsonl", b"nonsense\nmore\n", r"(?s)no usable row.*found: 2 x row: not JSON .*\(first in row 1\)"),
        ("x.txt", b"hello", r"(?s)is of no known kind.*expected: \.jsonl .*\.csv .*\.parquet.*found: \.txt, plain text: it has no columns"),
        ("x.gz", gzip.compress(b"hello", mtime=0), "is of no known kind"),
    ],
)
def test_files_that_can_not_be_used(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        load(tmp_path, name, data)


@pytest.mark.parametrize(
    "name", ["rowz.jsonl", "rows.csv", "./rows", "a/b/c", "/nowhere/x.parquet", "no\0name", "x" * 300 + ".json", "spaces in name"]
)
def test_a_wrong_path_is_a_clear_error(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_bytes(jsonl_bytes(trl_rows(1)))
    with pytest.raises(DataError, match="there is no file") as caught:
        load_pairs(DataConfig(pairs=name))
    assert caught.value.remedy.startswith("check the path")
    if name == "rowz.jsonl":
        assert caught.value.found == "in that folder: rows.jsonl"


def test_no_pairs_named_and_a_wrong_mapping(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="--pairs FILE"):
        load_pairs(DataConfig())
    with pytest.raises(ConfigError, match=r"(?s)no format has a field promt.*expected: .*prompt"):
        load_rows(tmp_path, trl_rows(1), columns={"promt": "x"})


def test_a_file_is_closed_after_use_and_after_an_error(tmp_path: Path) -> None:
    for data in (jsonl_bytes(trl_rows(3)), b"nonsense"):
        (tmp_path / "x.jsonl").write_bytes(data)
        source = open_source(DataConfig(pairs=str(tmp_path / "x.jsonl")))
        first = next(iter(source.rows))
        assert isinstance(first, Row) == data.startswith(b"{")
        source.close()
        with pytest.raises(ValueError, match="closed file"):
            source.position()


def test_printable_text_can_be_saved_and_shown() -> None:
    assert printable("a\0b\nc\udcff") == r"a\x00b\nc\udcff"
    assert printable("x" * 100, 10) == "x" * 10 + "..."
    assert printable("äö🙂") == "äö🙂"
