"""Single responses of a file: a row's prompt with one response, or with a list `responses`.

Each row is read by its own columns: one that holds a pair in any format is no single response, whatever other rows
hold. A row of one answer with a label or a rating (KTO, HelpSteer 2) is a single response here: it can be scored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config import DataConfig
from core.data.formats import FORMATS, candidates_of
from core.data.messages import is_message, messages_of, unpack_messages, unpack_row
from core.data.pair_reader import ColumnTexts
from core.data.prompt_columns import ABOUT_ANSWERS, ASKED, asked, check_media, holds_sentence
from core.data.rows import Row
from core.data.sources import open_source
from core.data.texts import Refused, is_blank, keeps, text_of
from core.text_safety import printable
from core.types import Message, RefusedRow

RESPONSES = ("response", "responses", "completion", "output", "answer")
PAIR, RESPONSE, NEITHER = "pair", "response", "neither"


@dataclass(frozen=True, kw_only=True)
class Single:
    """One response of a row, with its prompt."""

    row: int
    id: Any
    prompt: tuple[Message, ...]
    text: str


@dataclass(frozen=True, kw_only=True)
class Responses:
    """The single responses of a file in order, and why others can't be used.

    `n_rows` rows were met, those of `pair_rows` (numbers) hold pairs and those of `other_rows` neither; `refused` says
    why the latter, and single responses, can't be used. `notes` say what was detected, and which texts were not read.
    """

    source: str
    n_rows: int
    singles: tuple[Single, ...]
    refused: tuple[RefusedRow, ...]
    pair_rows: frozenset[int]
    other_rows: frozenset[int]
    notes: tuple[str, ...]

    @property
    def only_responses(self) -> bool:
        """Whether rows hold single responses, and none a pair."""
        return not self.pair_rows and self.n_rows > len(self.other_rows)


def read_responses(source: Path) -> Responses:
    """Reads a file's single responses. Raises DataError where it can't be read at all."""
    singles: list[Single] = []
    refused: list[RefusedRow] = []
    rows: dict[str, list[int]] = {PAIR: [], RESPONSE: [], NEITHER: []}
    unread: dict[str, ColumnTexts] = defaultdict(ColumnTexts)
    with closing(open_source(DataConfig(pairs=str(source)))) as opened:
        for row in opened.rows:
            if isinstance(row, RefusedRow):
                rows[NEITHER].append(row.row)
                refused.append(row)
                continue
            kind = kind_of_row(row.values)
            rows[kind].append(row.number)
            if kind != PAIR:
                _count_unread(row.values, unread)
                for item in _singles(row):
                    (refused if isinstance(item, RefusedRow) else singles).append(item)  # type: ignore[arg-type]
        notes = [*opened.notes, *(_unread_note(unread) if rows[RESPONSE] else [])]
    return Responses(
        source=opened.name,
        n_rows=sum(map(len, rows.values())),
        singles=tuple(singles),
        refused=tuple(refused),
        pair_rows=frozenset(rows[PAIR]),
        other_rows=frozenset(rows[NEITHER]),
        notes=tuple(notes),
    )


def kind_of_row(values: Mapping[str, Any]) -> str:
    """PAIR where the row's columns are those of a pair, RESPONSE where it has a response, NEITHER else."""
    with suppress(Refused):  # a list that can't be read: the columns say what it should be
        values, _ = unpack_row(values)
    if any(format_.whole_pairs for format_ in candidates_of(values, FORMATS)):
        return PAIR
    return RESPONSE if any(name in values for name in RESPONSES) else NEITHER


def _singles(row: Row) -> Iterator[Single | RefusedRow]:
    """The responses of a row, each with the prompt, or why it can't be used."""
    try:
        values, _ = unpack_row(row.values)
        check_media(values)
        name, given = _given(values)
        prompt = _prompt(values)
    except Refused as error:
        yield RefusedRow(row=row.number, field=error.field, reason=error.reason)
        return
    own_id = values.get("id")
    for response in given:
        try:
            text = _text(response, name)
            yield Single(row=row.number, id=own_id if keeps(own_id) else str(row.number), prompt=prompt, text=text)
        except Refused as error:
            yield RefusedRow(row=row.number, field=error.field, reason=error.reason)


def _given(values: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """The column that holds the response, and the responses. Raises Refused."""
    filled = [name for name in RESPONSES if not is_blank(values.get(name))]
    if len(filled) > 1 and any(values[name] != values[filled[0]] for name in filled):
        raise Refused(filled[0], f"the columns {' and '.join(filled)} hold different responses")
    name = next(iter(filled or [name for name in RESPONSES if name in values]), "response")
    if name != "responses":
        return name, [values.get(name)]
    given = values[name]
    if not isinstance(given, list) or not given:
        raise Refused(name, "not a list of responses, or an empty one")
    return name, given


def _prompt(values: Mapping[str, Any]) -> tuple[Message, ...]:
    """What the row asks. Raises Refused; where there is none, with the name of a column that may hold it."""
    try:
        prompt = asked(values, DataConfig())
    except Refused as error:
        rest = [name for name, value in values.items() if _may_be_read(name) and holds_sentence(value)]
        if (error.field, error.reason) == ("prompt", "missing") and rest:
            reason = f"missing; the column {printable(rest[0])} may hold it: name it prompt"
            raise Refused("prompt", reason) from error
        raise
    if not prompt or prompt[-1]["role"] != "user":
        raise Refused("prompt", "does not end with a message of the user")
    return prompt


def _may_be_read(name: str) -> bool:
    """Whether a column that is not read might belong to the prompt, by its name."""
    return name not in (*ASKED, *RESPONSES, "id") and not ABOUT_ANSWERS.search(name)


def _text(response: Any, name: str) -> str:
    """The text of a response: a text, a message, or a list of one message of the assistant. Raises Refused."""
    response = unpack_messages(response, name)
    if is_message(response):
        response = [response]
    if not isinstance(response, list):
        return text_of(response, name)
    messages = messages_of(response, name)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise Refused(name, "not one message of the assistant")
    return messages[0]["content"]


def _count_unread(values: Mapping[str, Any], texts: dict[str, ColumnTexts]) -> None:
    for name, value in values.items():
        if _may_be_read(name) and isinstance(value, str) and value.strip():
            texts[name].add(value)


def _unread_note(texts: Mapping[str, ColumnTexts]) -> list[str]:
    unread = [f"{printable(name)} ({column.n:,} rows)" for name, column in texts.items() if column.holds_sentences]
    note = f"columns with texts that are not read: {', '.join(unread)}. If one belongs to the prompt, name it system or prompt"
    return [note] if unread else []
