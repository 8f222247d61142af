"""400 generated files over formats, containers and faults: every good row comes out with exactly its texts, every bad one is
refused under its own number, and nothing else is. The texts are made here, so what must come out is known without the readers.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_helpers import load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = 400
USER, ASSISTANT = "user", "assistant"
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What a row must come out as: the prompt's messages as (role, text), and the answers."""

    prompt: tuple[tuple[str, str], ...]
    chosen: str
    rejected: str


def turn(role: str, text: str) -> Row:
    return {"role": role, "content": text}


def asked(ask: str, yes: str, no: str, system: str = "") -> Texts:
    return Texts(prompt=((("system", system),) if system else ()) + ((USER, ask),), chosen=yes, rejected=no)


# name -> the row of a question and two answers, and what must come of it
FORMATS: dict[str, Callable[[str, str, str], tuple[Row, Texts]]] = {
    "trl explicit": lambda q, y, n: ({"prompt": q, "chosen": y, "rejected": n}, asked(q, y, n)),
    "trl messages": lambda q, y, n: (
        {"prompt": [turn(USER, q)], "chosen": [turn(ASSISTANT, y)], "rejected": [turn(ASSISTANT, n)]},
        asked(q, y, n),
    ),
    "trl implicit": lambda q, y, n: (
        {"chosen": [turn(USER, q), turn(ASSISTANT, y)], "rejected": [turn(USER, q), turn(ASSISTANT, n)]},
        asked(q, y, n),
    ),
    "text parts": lambda q, y, n: (
        {"prompt": [{"role": USER, "content": [{"type": "text", "text": q}]}], "chosen": [turn(ASSISTANT, y)], "rejected": [turn(ASSISTANT, n)]},
        asked(q, y, n),
    ),
    "hh": lambda q, y, n: (
        {"chosen": f"\n\nHuman: {q}\n\nAssistant: {y}", "rejected": f"\n\nHuman: {q}\n\nAssistant: {n}"},
        asked(q, y, n),
    ),
    "safe-rlhf": lambda q, y, n: ({"prompt": q, "response_0": n, "response_1": y, "safer_response_id": 1}, asked(q, y, n)),
    "truthfulqa": lambda q, y, n: ({"Question": q, "Correct Answers": y, "Incorrect Answers": n}, asked(q, y, n)),
    "rewardbench": lambda q, y, n: ({"prompt": q, "chosen": y, "rejected": n, "subset": "easy"}, asked(q, y, n)),
    "ultrafeedback": lambda q, y, n: (
        {"instruction": q, "completions": [{"response": n, "overall_score": 2}, {"response": y, "overall_score": 8}]},
        asked(q, y, n),
    ),
    "binarized": lambda q, y, n: (
        {"prompt": q, "chosen": y, "rejected": n, "score_chosen": 8.0, "score_rejected": 2.0},
        asked(q, y, n),
    ),
    "alpaca": lambda q, y, n: (
        {"instruction": q, "input": f"About {q}", "chosen": y, "rejected": n},
        asked(f"{q}\n\nAbout {q}", y, n),
    ),
    "orca": lambda q, y, n: ({"system": "Be kind.", "question": q, "chosen": y, "rejected": n}, asked(q, y, n, "Be kind.")),
    "query": lambda q, y, n: ({"query": q, "chosen": y, "rejected": n}, asked(q, y, n)),
    "openai": lambda q, y, n: (
        {"input": {"messages": [turn(USER, q)]}, "preferred_output": [turn(ASSISTANT, y)], "non_preferred_output": [turn(ASSISTANT, n)]},
        asked(q, y, n),
    ),
    "sharegpt": lambda q, y, n: (
        {
            "conversations": [{"from": "human", "value": q}],
            "chosen": {"from": "gpt", "value": y},
            "rejected": {"from": "gpt", "value": n},
        },
        asked(q, y, n),
    ),
    "rewardbench 2": lambda q, y, n: ({"prompt": q, "chosen": [y], "rejected": [n], "num_correct": 1, "num_rejected": 1}, asked(q, y, n)),
    "history": lambda q, y, n: (
        {"history": [["Hi", "Hello"]], "prompt": q, "chosen": y, "rejected": n},
        Texts(prompt=((USER, "Hi"), (ASSISTANT, "Hello"), (USER, q)), chosen=y, rejected=n),
    ),
}
# Rows that must be refused, of columns that every container can hold beside good ones. `None` is what no table can write: lines only.
TEXT_FAULTS: dict[str, Callable[[str, str, str], Row]] = {
    "no prompt": lambda q, y, n: {"prompt": None, "chosen": y, "rejected": n},
    "empty answer": lambda q, y, n: {"prompt": q, "chosen": "  ", "rejected": n},
    "missing answer": lambda q, y, n: {"prompt": q, "chosen": y, "rejected": None},
    "null character": lambda q, y, n: {"prompt": q, "chosen": y + "\0", "rejected": n},
    "identical": lambda q, y, n: {"prompt": q, "chosen": y, "rejected": f" {y}\n"},
    "cut message list": lambda q, y, n: {"prompt": q, "chosen": "[{'role': 'assistant', 'content': 'cut", "rejected": n},
}
JSON_FAULTS: dict[str, Callable[[str, str, str], Row | bytes]] = {
    **TEXT_FAULTS,
    "a number": lambda q, y, n: {"prompt": q, "chosen": 7, "rejected": n},
    "unknown role": lambda q, y, n: {"prompt": [turn("narrator", q)], "chosen": [turn(ASSISTANT, y)], "rejected": [turn(ASSISTANT, n)]},
    "an image": lambda q, y, n: {"prompt": [{"role": USER, "content": [{"type": "image"}]}], "chosen": y, "rejected": n},
    "a tool call": lambda q, y, n: {
        "prompt": q,
        "chosen": [{"role": ASSISTANT, "content": None, "tool_calls": [{"id": "1"}]}],
        "rejected": [turn(ASSISTANT, n)],
    },
    "half a surrogate": lambda q, y, n: {"prompt": q, "chosen": y + "\ud800", "rejected": n},
    "no columns": lambda q, y, n: {},
}
LINE_FAULTS: dict[str, bytes] = {
    "broken line": b'{"prompt": "cut',
    "not UTF-8": b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}',
    "a key twice": b'{"prompt": "a", "prompt": "b", "chosen": "c", "rejected": "d"}',
    "no object": b"[1, 2]",
}
FLAT = ("trl explicit", "safe-rlhf", "truthfulqa", "rewardbench", "binarized", "orca", "query", "alpaca")
WORDS = ("river", "clock", "garden", "über", "café", "naïve", "señor", 'say "yes"', "it's", "A|B", "x = 1", "a, b")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "cp1252")


def texts_of(number: int, word: str) -> tuple[str, str, str]:
    """A question and two answers, unlike any other number's; no `;`, which divides TruthfulQA's answers."""
    return f"Question {number} about {word}?", f"Yes {number}, the {word} is fine.", f"No {number}, the {word} is bad."


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A file, the good rows' texts in order with their numbers, and the numbers of the bad rows."""

    name: str
    data: bytes
    good: list[tuple[int, Texts]]
    bad: list[int]


@st.composite
def files(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Generated:
    container = draw(st.sampled_from([".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"]))
    flat = container in (".csv", ".tsv")
    lines = container in (".jsonl", ".ndjson")
    # A table has one set of columns: its rows are of one format. Lines may hold a format each.
    names = FLAT if flat else tuple(FORMATS)
    formats = draw(st.lists(st.sampled_from(names), min_size=1, max_size=5))
    if container == ".parquet" or flat:
        formats = [formats[0]] * len(formats)
    good = [FORMATS[name](*texts_of(number, draw(st.sampled_from(WORDS)))) for number, name in enumerate(formats)]
    rows: list[tuple[Any, Texts | None]] = [*good]
    texts = texts_of(900, "fault")
    if lines or container == ".json":
        kinds = draw(st.lists(st.sampled_from(sorted(JSON_FAULTS)), max_size=4))
        rows += [(JSON_FAULTS[kind](*texts), None) for kind in kinds]
    elif formats[0] in ("trl explicit", "rewardbench"):
        kinds = draw(st.lists(st.sampled_from(sorted(TEXT_FAULTS)), max_size=4))
        rows += [(dict.fromkeys(good[0][0]) | TEXT_FAULTS[kind](*texts), None) for kind in kinds]
    if lines:
        rows += [(LINE_FAULTS[kind], None) for kind in draw(st.lists(st.sampled_from(sorted(LINE_FAULTS)), max_size=2))]
    rows = draw(st.permutations(rows))
    first = 2 if flat else 1
    data = _written(draw, container, [row for row, _ in rows])
    gz = draw(st.booleans())
    return Generated(
        name=f"x{container}{'.gz' if gz else ''}",
        data=gzip.compress(data, mtime=0) if gz else data,
        good=[(number, expected) for number, (_, expected) in enumerate(rows, first) if expected],
        bad=[number for number, (_, expected) in enumerate(rows, first) if not expected],
    )


def _written(draw: Callable[[st.SearchStrategy[Any]], Any], container: str, rows: list[Any]) -> bytes:
    if container == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink)
        return sink.getvalue()
    if container == ".json":
        return json.dumps(rows, indent=draw(st.sampled_from([None, 1]))).encode()
    if container in (".jsonl", ".ndjson"):
        end = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
        return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + end for row in rows)
    separator = "\t" if container == ".tsv" else draw(st.sampled_from([",", ";", "|", "\t"]))
    text = io.StringIO(newline="")
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode(draw(st.sampled_from(ENCODINGS)))


N_SEEN = {"files": 0, "good": 0, "bad": 0}


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(files())
def test_every_row_of_a_generated_file_is_counted_out(case: Generated) -> None:
    N_SEEN["files"] += 1
    N_SEEN["good"] += len(case.good)
    N_SEEN["bad"] += len(case.bad)
    with tempfile.TemporaryDirectory() as folder:
        pairs, report = load(Path(folder), case.name, case.data)
    read = [
        (pair.meta["row"], Texts(prompt=tuple((m["role"], m["content"]) for m in pair.prompt), chosen=pair.chosen, rejected=pair.rejected))
        for pair in pairs
    ]
    assert read == case.good
    assert [refused.row for refused in report.refused] == case.bad
    assert all(refused.field and refused.reason for refused in report.refused)
    assert report.n_rows == len(case.good) + len(case.bad)


def test_enough_was_generated() -> None:
    assert N_SEEN["files"] >= EXAMPLES and N_SEEN["good"] > EXAMPLES and N_SEEN["bad"] > EXAMPLES // 2
