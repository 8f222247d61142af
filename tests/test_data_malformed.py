"""Malformed inputs by hypothesis: each gives a report or a clear DataError, never a traceback, and every good row is counted out again.

14 classes of 20 inputs each. A class draws a file with good rows mixed in; what must come of it is known when it is made.
"""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from data_helpers import csv_bytes, jsonl_bytes, load, parquet_bytes, rows_bytes, trl_row, trl_rows
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from core.errors import DataError
from core.types import canonical_json

EXAMPLES = 20
Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True, kw_only=True)
class Malformed:
    """A file; the texts of its good prompts in order; the rows that must be refused.

    `fatal`: True must be a DataError, None may be one (then the good rows that come out must be the first ones). `good` None: nobody knows, a text
    itself may be damaged.
    """

    name: str
    data: bytes
    good: list[str] | None
    bad: list[int] | None = None
    fatal: bool | None = False


def check(case: Malformed, folder: Path) -> None:
    try:
        pairs, report = load(folder, case.name, case.data)
    except DataError as error:
        assert case.fatal is not False, error
        assert error.problem
        assert error.expected or error.found or error.remedy
        str(error).encode("utf-8")
        return
    assert case.fatal is not True, report
    canonical_json(report.to_json()).encode("utf-8")
    asked = [p.prompt[0]["content"] for p in pairs]
    if case.good is not None:
        assert asked == (case.good if case.fatal is False else case.good[: len(asked)])
    if case.bad is not None:
        assert [r.row for r in report.refused] == case.bad
    assert all(r.field and r.reason for r in report.refused)


def mixed(draw: Draw, bad: st.SearchStrategy[bytes], *, kind: str = ".jsonl", n_good: tuple[int, int] = (1, 6), n_bad: int = 4) -> Malformed:
    """Lines of good rows with bad lines between them, in any order."""
    n = draw(st.integers(*n_good))
    rows: list[int | bytes] = [*range(n), *draw(st.lists(bad, min_size=1, max_size=n_bad))]
    rows = draw(st.permutations(rows))
    head = 2 if kind == ".csv" else 1
    lines = [_line(kind, trl_row(row)) if isinstance(row, int) else row for row in rows]
    return Malformed(
        name="x" + kind,
        data=(b"prompt,chosen,rejected\r\n" if kind == ".csv" else b"") + b"\n".join(lines) + b"\n",
        good=[trl_row(row)["prompt"] for row in rows if isinstance(row, int)],
        bad=[number for number, row in enumerate(rows, head) if isinstance(row, bytes)],
    )


def _line(kind: str, row: dict[str, Any]) -> bytes:
    return csv_bytes([row]).splitlines()[1] if kind == ".csv" else json.dumps(row).encode()


def in_a_text(kind: str, inserted: bytes, field: str = "chosen") -> bytes:
    """A good row with bytes put into one of its texts."""
    return _line(kind, trl_row(900) | {field: "before HERE after"}).replace(b"HERE", inserted)


def not_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


FIELDS = st.sampled_from(["prompt", "chosen", "rejected"])
KINDS = st.sampled_from([".jsonl", ".csv"])
high_bytes = st.lists(st.integers(0x80, 0xFF), min_size=1, max_size=8).map(bytes).filter(not_utf8)


@st.composite
def encoding(draw: Draw) -> Malformed:
    kind = draw(KINDS)
    latin1 = st.sampled_from(["é", "naïve", "Straße"]).map(lambda s: s.encode("latin-1"))
    halves = st.sampled_from([b"\\ud800", b"\\udfff x", b"\\ude00\\ud83d"]) if kind == ".jsonl" else latin1
    inside = st.one_of(high_bytes, latin1, halves)
    case = mixed(draw, st.builds(in_a_text, st.just(kind), inside, FIELDS), kind=kind)
    # One good row holds UTF-8, so that the file is not Windows-1252 (tests/test_data_cases.py has those).
    row = _line(kind, trl_row(999)).replace(b"Yes", "Yes ü".encode())
    assert case.good is not None
    return Malformed(name=case.name, data=case.data + row + b"\n", good=[*case.good, trl_row(999)["prompt"]], bad=case.bad)


@st.composite
def byte_order_mark(draw: Draw) -> Malformed:
    rows = trl_rows(draw(st.integers(1, 6)))
    data, good = jsonl_bytes(rows), [row["prompt"] for row in rows]
    shape = draw(st.sampled_from(["start", "twice", "inside", "utf-16", "utf-32"]))
    if shape.startswith("utf"):
        return Malformed(name="x.jsonl", data=data.decode().encode(shape), good=good, fatal=True)
    if shape == "inside":
        return mixed(draw, st.just(b" \xef\xbb\xbf" + _line(".jsonl", trl_row(900))))
    if shape == "twice":
        return Malformed(name="x.jsonl", data=b"\xef\xbb\xbf" * 2 + data, good=good[1:], bad=[1], fatal=not rows[1:])
    return Malformed(name="x.jsonl", data=b"\xef\xbb\xbf" + data, good=good, bad=[])


@st.composite
def null_bytes(draw: Draw) -> Malformed:
    kind = draw(KINDS)
    inside = st.integers(1, 50).map(lambda n: b"\0" * n)
    escaped = st.integers(1, 5).map(lambda n: b"\\u0000" * n) if kind == ".jsonl" else inside
    return mixed(draw, st.one_of(st.builds(in_a_text, st.just(kind), st.one_of(inside, escaped), FIELDS), inside), kind=kind)


@st.composite
def nesting(draw: Draw) -> Malformed:
    def bomb(opening: bytes, depth: int, closed: bool, where: str) -> bytes:
        closing = (b"]" if opening == b"[" else b"}") * depth if closed else b""
        value = opening * depth + (b"1" if closed else b"") + closing
        return value if where == "row" else b'{"prompt": "p", "chosen": ' + value + b', "rejected": "r"}'

    bombs = st.builds(bomb, st.sampled_from([b"[", b'{"a":']), st.integers(2, 60_000), st.booleans(), st.sampled_from(["row", "field"]))
    if draw(st.integers(0, 4)) == 0:
        rows = jsonl_bytes(trl_rows(2)).replace(b"\n", b",")
        return Malformed(name="x.json", data=b"[" + rows + draw(bombs).replace(b"}", b"") + b"[" * 50_000, good=[], fatal=True)
    return mixed(draw, bombs, n_bad=3)


OTHER_ROWS: list[Any] = [
    {},
    [],
    7,
    "text",
    None,
    [trl_row(0)],
    {"prompt": "only a prompt"},
    {"text": "something else", "label": 1},
    {"chosen": "\n\nHuman: a", "rejected": "\n\nHuman: a\n\nAssistant: c"},
    {"prompt": "p", "response_0": "a", "response_1": "b", "safer_response_id": -1},
    {"Question": "q", "Correct Answers": "a; b", "Incorrect Answers": " "},
    {"instruction": "q", "completions": [{"response": "a", "overall_score": 1}, {"response": "b", "overall_score": 1}]},
    {"Prompt": "p", "Chosen": "a", "Rejected": "b"},
    {"question": "q", "prompt": "another", "chosen": "a", "rejected": "b"},
    {"frage": "which prompt is this", "chosen": "the same words a", "rejected": "the same words b"},
    {"prompt": "p", "completion": "a", "label": True},
    {"prompt": "p", "output_1": "a", "output_2": "b", "label": "tie"},
]


@st.composite
def mixed_schemas(draw: Draw) -> Malformed:
    return mixed(draw, st.sampled_from(OTHER_ROWS).map(lambda row: json.dumps(row).encode()), n_good=(5, 9))


@st.composite
def truncated_gzip(draw: Draw) -> Malformed:
    kind = draw(st.sampled_from([".jsonl.gz", ".csv.gz", ".json.gz", ".parquet.gz"]))
    rows = trl_rows(draw(st.integers(1, 60)))
    data = rows_bytes(kind, rows)
    return Malformed(name="x" + kind, data=data[: draw(st.integers(1, len(data) - 1))], good=[row["prompt"] for row in rows], fatal=None)


@st.composite
def huge_fields(draw: Draw) -> Malformed:
    kind = draw(st.sampled_from([".jsonl", ".csv"]))
    size = st.integers(1_000_001, 1_100_000)
    letters = st.sampled_from(["x", "word ", "\n", '"', "ä"]) if kind == ".jsonl" else st.sampled_from(["x", "word "])

    def row(field: str, n: int, letter: str) -> bytes:
        return _line(kind, trl_row(900) | {field: "a" + (letter * n)[:n] + "a"})

    return mixed(draw, st.builds(row, FIELDS, size, letters), kind=kind, n_bad=2)


WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.lists(st.integers(), max_size=3),
    st.lists(st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.lists(st.fixed_dictionaries({"role": st.sampled_from(["tool", "", "USER"]), "content": st.text(max_size=3)}), min_size=1, max_size=2),
    st.just([{"role": "user", "content": None}]),
    st.just([{"content": "no role"}]),
)


@st.composite
def wrong_types(draw: Draw) -> Malformed:
    bad = st.builds(lambda field, value: json.dumps(trl_row(900) | {field: value}).encode(), FIELDS, WRONG)
    case = mixed(draw, bad, n_good=(5, 9))
    if draw(st.booleans()):
        return case
    as_list = b"[" + b",".join(case.data.splitlines()) + b"]"
    return Malformed(name="x.json", data=as_list, good=case.good, bad=case.bad)


@st.composite
def duplicate_columns(draw: Draw) -> Malformed:
    shape = draw(st.sampled_from(["row", "row", "csv", "parquet", "document"]))
    field = draw(FIELDS)
    if shape == "row":
        repeated = st.builds(lambda name: _line(".jsonl", trl_row(900))[:-1] + f', "{name}": "again"}}'.encode(), FIELDS)
        return mixed(draw, repeated)
    rows = trl_rows(draw(st.integers(1, 4)))
    if shape == "csv":
        lines = csv_bytes(rows).splitlines()
        data = b"\n".join([lines[0] + b"," + field.encode(), *(line + b",again" for line in lines[1:])])
        return Malformed(name="x.csv", data=data, good=[], fatal=True)
    if shape == "parquet":
        return Malformed(name="x.parquet", data=_parquet_with_two(field, rows), good=[], fatal=True)
    columns = ", ".join(f'"{name}": ["a", "b"]' for name in ("prompt", "chosen", "rejected", field))
    return Malformed(name="x.json", data=b"{" + columns.encode() + b"}", good=[], fatal=True)


def _parquet_with_two(field: str, rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ["prompt", "chosen", "rejected", field]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array([row[name] for row in rows]) for name in names], names=names), sink)
    return sink.getvalue()


EMPTY_FILES = {
    ".jsonl": [b"", b"\n", b" \n\t\n", b"\xef\xbb\xbf", b"{}\n", b"null\n", b'""\n'],
    ".json": [b"", b"[]", b"{}", b"null", b'{"data": []}', b'{"prompt": [], "chosen": [], "rejected": []}', b"[{}]", b" "],
    ".csv": [b"", b"\n", b",,\n", b"prompt,chosen,rejected\n", b"prompt,chosen,rejected\n\n\n", b"prompt,chosen,rejected\n,,\n", b"\xef\xbb\xbf"],
    ".parquet": [b"", b"PAR1", b"PAR1PAR1", parquet_bytes([{"prompt": ""}])],
}


@st.composite
def empty(draw: Draw) -> Malformed:
    if draw(st.booleans()):
        kind = draw(st.sampled_from(sorted(EMPTY_FILES)))
        data = draw(st.sampled_from(EMPTY_FILES[kind]))
        gz = draw(st.booleans())
        return Malformed(name=f"x{kind}{'.gz' if gz else ''}", data=gzip.compress(data) if gz else data, good=[], fatal=True)
    kind = draw(KINDS)
    blanks = st.sampled_from(["", " ", "\t", "\u3000"])
    return mixed(draw, st.builds(lambda field, blank: _line(kind, trl_row(900) | {field: blank}), FIELDS, blanks), kind=kind, n_good=(3, 6))


@st.composite
def broken_csv(draw: Draw) -> Malformed:
    bad = [b'"never closed,a,b', b'"stray" quote,a,b', b"too,few", b"one,cell,too,many", b'a,b,"open', b'"""', b"a,b\rc,d"]
    return mixed(draw, st.sampled_from(bad), kind=".csv", n_bad=1)


@st.composite
def cut_documents(draw: Draw) -> Malformed:
    data = rows_bytes(".json", trl_rows(draw(st.integers(1, 5))))
    return Malformed(name="x.json", data=data[: draw(st.integers(1, len(data) - 1))], good=[], fatal=True)


@st.composite
def damaged_parquet(draw: Draw) -> Malformed:
    data = parquet_bytes(trl_rows(draw(st.integers(1, 5))))
    shape = draw(st.sampled_from(["cut", "footer", "anywhere"]))
    if shape == "cut":
        return Malformed(name="x.parquet", data=data[: draw(st.integers(1, len(data) - 1))], good=[], fatal=True)
    first = len(data) - 8 if shape == "footer" else 0  # the footer ends with its length and a magic number
    at = draw(st.integers(first, len(data) - 1))
    byte = draw(st.integers(0, 255).filter(lambda b: b != data[at]))
    damaged = data[:at] + bytes([byte]) + data[at + 1 :]
    return Malformed(name="x.parquet", data=damaged, good=None, fatal=True if shape == "footer" else None)


@st.composite
def no_preference(draw: Draw) -> Malformed:
    asked = [{"role": "user", "content": "a"}]
    rows = [
        trl_row(900) | {"rejected": trl_row(900)["chosen"]},
        trl_row(900) | {"rejected": " " + trl_row(900)["chosen"] + "\n"},
        {"prompt": "p", "chosen": [*asked, {"role": "assistant", "content": "x"}], "rejected": [*asked, {"role": "assistant", "content": "y"}]},
        {"prompt": asked, "chosen": asked, "rejected": asked},
        {"prompt": [*asked, {"role": "assistant", "content": "b"}], "chosen": "x", "rejected": "y"},
    ]
    return mixed(draw, st.sampled_from(rows).map(lambda row: json.dumps(row).encode()), n_good=(5, 9))


CLASSES = {
    "encoding": encoding,
    "BOM": byte_order_mark,
    "null bytes": null_bytes,
    "nesting": nesting,
    "mixed schemas": mixed_schemas,
    "truncated gzip": truncated_gzip,
    "huge fields": huge_fields,
    "wrong types": wrong_types,
    "duplicate columns": duplicate_columns,
    "empty": empty,
    "broken csv": broken_csv,
    "cut documents": cut_documents,
    "damaged parquet": damaged_parquet,
    "no preference": no_preference,
}


@pytest.mark.parametrize("name", CLASSES)
def test_malformed(name: str) -> None:
    seen: set[bytes] = set()

    @seed(0)
    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(CLASSES[name]())
    def run(case: Malformed) -> None:
        seen.add(case.data)
        with tempfile.TemporaryDirectory() as folder:
            check(case, Path(folder))

    run()
    assert len(seen) >= 10, "ten different inputs of every class"


def test_there_are_enough_malformed_inputs() -> None:
    assert len(CLASSES) >= 10
    assert len(CLASSES) * EXAMPLES >= 200
