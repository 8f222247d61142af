"""`PairReader` reads the rows of a source into pairs, and counts refused rows, formats and unread columns.

Each row is read by its own columns. Two kinds of rows wait for the end of the file (`finish`): labels whose meaning
depends on the other labels (`label_meaning.py`), and answers paired across rows (`unpaired_answers.py`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from core.config import DataConfig
from core.data.chosen_rejected import SIDES, sides_of
from core.data.formats import CHOSEN_REJECTED, candidates_of, meta_of, named
from core.data.label_meaning import TIES, as_label, label_sets, side_of
from core.data.literals import holds_list_of_texts
from core.data.messages import unpack_messages, unpack_row
from core.data.pair_drafts import Draft, Format, Judged, Rated, Reading
from core.data.prompt_columns import (
    ABOUT_ANSWERS,
    ASKED,
    CONVERSATIONS,
    LABEL_WORDS,
    PROMPTS,
    check_media,
    holds_sentence,
    holds_turns,
    sounds_like_prompt,
)
from core.data.rows import Row, as_json
from core.data.texts import Refused, is_blank, keeps
from core.data.two_answers import answer_columns
from core.data.unpaired_answers import match
from core.text_safety import printable
from core.types import RefusedRow

MAX_DISTINCT = 10_000  # distinct texts of a column that are counted
# Formats whose judgement may contradict that of a chosen and a rejected column in the same row.
RIVALS = frozenset(("a-b", "safe-rlhf", "arena", "nectar", "truthfulqa", "ultrafeedback (completions)", "ultrafeedback (generations)"))


@dataclass
class ColumnTexts:
    """Counts of a column that is not read: rows with a text, texts that are longer than a label, and distinct texts."""

    n: int = 0
    n_sentences: int = 0
    distinct: set[int] = field(default_factory=set)

    def add(self, value: Any) -> None:
        self.n += 1
        self.n_sentences += holds_sentence(value) or not isinstance(value, str)
        if len(self.distinct) < MAX_DISTINCT:
            self.distinct.add(hash(str(value)))

    @property
    def holds_sentences(self) -> bool:
        """Whether at least a fifth of the texts are longer than a label."""
        return 5 * self.n_sentences >= self.n

    @property
    def may_be_prompt(self) -> bool:
        """Whether most texts are longer than a label and distinct, as prompts are."""
        return 2 * self.n_sentences >= self.n and 2 * len(self.distinct) >= min(self.n, MAX_DISTINCT)


class RowDraft(NamedTuple):
    """A pair with the number of its row, the id that the source gives that row (or an empty text), and its meta."""

    row: int
    source_id: str
    draft: Draft
    meta: dict[str, Any]


@dataclass
class PairReader:
    """Reads rows into pairs. Call `take` for each row and `finish` after the last one."""

    config: DataConfig
    columns: dict[str, None] = field(default_factory=dict)
    columns_read: dict[str, None] = field(default_factory=dict)  # under the source's names
    refused: list[RefusedRow] = field(default_factory=list)
    drafts: list[RowDraft] = field(default_factory=list)
    used: set[int] = field(default_factory=set)  # numbers of the rows that gave pairs
    n_read_as: Counter[Format] = field(default_factory=Counter)
    n_fitting: int = 0  # rows that fit some format
    n_unpacked: int = 0
    n_lists_kept_as_text: int = 0
    n_repeating_prompt: int = 0
    n_second_format: Counter[tuple[str, str]] = field(default_factory=Counter)
    unread: dict[str, ColumnTexts] = field(default_factory=lambda: defaultdict(ColumnTexts))
    n_overwritten: Counter[str] = field(default_factory=Counter)  # columns that the mapping replaces by another
    promptless: dict[int, None] = field(default_factory=dict)
    promptless_texts: dict[str, ColumnTexts] = field(default_factory=lambda: defaultdict(ColumnTexts))
    judged: list[tuple[int, str, Judged, dict[str, Any], Format]] = field(default_factory=list)
    rated: dict[int, tuple[str, Rated, dict[str, Any], Format]] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        """Rows read so far; rows that are decided at the end are counted then."""
        return len(self.used) + len(self.refused)

    def take(self, row: Row | RefusedRow) -> None:
        """Reads one row, or counts a row that the source refused."""
        if isinstance(row, RefusedRow):
            self.refused.append(row)
            return
        try:
            values, unpacked = unpack_row(row.values)
            check_media(values)
            self._read(row.number, values)
            self.n_unpacked += unpacked
        except Refused as refused:
            self.refuse(row.number, refused)
            no_prompt = refused.field in PROMPTS and refused.reason.startswith(("missing", "empty"))
            if no_prompt and all(is_blank(row.values.get(name)) for name in PROMPTS):
                self.promptless[row.number] = None
                columns = answer_columns(frozenset(row.values))
                self._count(row.values, frozenset(columns[:2] if columns else ()), self.promptless_texts)

    def refuse(self, number: int, refused: Refused) -> None:
        """Records that a row gives no pair, and why."""
        self.refused.append(RefusedRow(row=number, field=printable(refused.field), reason=refused.reason))

    def _read(self, number: int, values: Mapping[str, Any]) -> None:
        formats = named(self.config.format)
        fitting = candidates_of(values, formats)
        self.n_fitting += bool(fitting)
        if not fitting and self.config.format == "auto":
            raise Refused("row", f"no format has these columns: {printable(', '.join(values) or 'none', 200)}")
        format_ = (fitting or formats)[0]
        readings = format_.read(values, self.config)
        self._compare(readings, format_, values, fitting)
        read = columns_read(format_, values, self.config)
        meta, source_id = meta_of(values, read) | {"row": number}, _id_of(values.get("id"))
        drafts = [check(reading) for reading in readings if isinstance(reading, Draft)]
        for reading in readings:
            if isinstance(reading, Judged):
                check(reading.first)
                self.judged.append((number, source_id, reading, meta, format_))
            elif isinstance(reading, Rated):
                self.rated[number] = (source_id, reading, meta, format_)
        if drafts:
            self._use(number, source_id, drafts, meta, format_)
        self.columns_read.update((self.config.columns.get(name, name), None) for name in values if name in read and not is_blank(values[name]))
        self._count(values, read, self.unread, _texts(readings))
        sides = sides_of(values) or ("", "")
        lists = all(holds_list_of_texts(values.get(name)) for name in sides) or any(holds_list_of_texts(values.get(name)) for name in PROMPTS)
        self.n_lists_kept_as_text += lists

    def _use(self, number: int, source_id: str, drafts: Sequence[Draft], meta: Mapping[str, Any], format_: Format) -> None:
        self.used.add(number)
        self.n_read_as[format_] += 1
        self.n_repeating_prompt += any(_repeats_prompt(draft) for draft in drafts)
        for place, draft in enumerate(drafts, 1):
            name = f"{source_id}-{place}" if source_id and len(drafts) > 1 else source_id
            self.drafts.append(RowDraft(number, name, draft, {**meta, **draft.extra}))

    def _count(self, values: Mapping[str, Any], read: frozenset[str], texts: dict[str, ColumnTexts], known: Collection[str] = ()) -> None:
        """Counts texts and message lists of unread columns, unless they are about answers or repeat a known text."""
        columns = ((name, name, value) for name, value in values.items() if name not in read and name != "id")
        for name, key, value in (*columns, *_nested(values)):
            new_text = isinstance(value, str) and value.strip() and value.strip() not in known
            if not ABOUT_ANSWERS.search(key) and (new_text or holds_turns(value, key)):
                texts[name].add(value)

    def _compare(self, readings: Sequence[Reading], format_: Format, values: Mapping[str, Any], fitting: Sequence[Format]) -> None:
        """Compares all formats that a row fits. Refused if they contradict each other; counts where they differ."""
        pairs = {pair for reading in readings for pair in _decided(reading, self.config)}
        if format_.title in CHOSEN_REJECTED:
            self._compare_sides(format_, values)
        for other in fitting[1:]:
            if not ({format_.title, other.title} & CHOSEN_REJECTED and {format_.title, other.title} & RIVALS):
                continue
            try:
                other_pairs = {pair for reading in other.read(values, self.config) for pair in _decided(reading, self.config)}
            except Refused as refused:
                if refused.reason.startswith("a tie"):
                    raise Refused("row", f"its columns contradict each other: read as {other.title} it is a tie") from refused
                continue
            if any((rejected, chosen) in pairs for chosen, rejected in other_pairs):
                raise Refused("row", f"its columns contradict each other: read as {other.title} the other answer is the chosen one")
            if other_pairs and not other_pairs <= pairs:
                self.n_second_format[format_.title, other.title] += 1
                return

    def _compare_sides(self, format_: Format, values: Mapping[str, Any]) -> None:
        """Compares several chosen and rejected columns. Refused if two are swapped; counts where they differ."""
        sides = sides_of(values)
        if sides is None:
            return
        read = tuple(as_json(values[name]) for name in sides)
        for pair in SIDES:
            if pair == sides or any(is_blank(values.get(name)) for name in pair):
                continue
            other = tuple(as_json(values[name]) for name in pair)
            if other == read[::-1]:
                raise Refused(pair[0], f"contradicts {sides[0]}: it holds the answer of {sides[1]}")
            if other != read:
                self.n_second_format[format_.title, " and ".join(pair)] += 1

    def finish(self) -> None:
        """Decides the rows that depend on others. Call it once, after the last row."""
        values = label_sets(item for _, _, item, _, _ in self.judged)
        for number, source_id, item, meta, format_ in self.judged:
            try:
                self._use(number, source_id, [_by_label(item, values[item.column, item.ending], self.config)], meta, format_)
            except Refused as refused:
                self.refuse(number, refused)
        matched = match([(number, item) for number, (_, item, _, _) in self.rated.items()], self.config)
        for chosen, rejected, draft in matched.pairs:
            source_id, _, meta, format_ = self.rated[chosen]
            try:
                self._use(chosen, source_id, [check(draft)], meta, format_)
                self.used.add(rejected)
                self.n_read_as[format_] += 1
            except Refused as refused:
                self.refuse(chosen, refused)
                self.refuse(rejected, refused)
        for number, reason in matched.alone.items():
            self.refuse(number, reason)
        self.drafts.sort(key=lambda item: item.row)
        names = self.prompt_candidates()
        if names:  # the refusals of rows without a prompt name the column that may hold it
            hint = f"; the column {printable(names[0])} may hold it: --columns prompt={printable(names[0])}"
            self.refused = [RefusedRow(row=r.row, field=r.field, reason=r.reason + hint) if r.row in self.promptless else r for r in self.refused]

    def prompt_candidates(self) -> list[str]:
        """Columns that may hold the prompt of rows without one, the likeliest first."""
        texts = {name: c for name, c in self.promptless_texts.items() if c.may_be_prompt or sounds_like_prompt(name)}
        return sorted(texts, key=lambda name: (not sounds_like_prompt(name), -len(texts[name].distinct), name))

    def notes(self) -> list[str]:
        """Sentences about what the user should know of columns and formats."""
        notes = [f"{_rows(n)} read as {format_.title}" for format_, n in self.n_read_as.most_common()] if len(self.n_read_as) > 1 else []
        notes += [f"{_rows(n)} read as {title}, with the columns of {other} as well" for (title, other), n in self.n_second_format.items()]
        if self.n_unpacked:
            notes.append(f"{_rows(self.n_unpacked)} with lists that are written as text (a message list in a csv, say), read as the lists")
        if self.n_lists_kept_as_text:
            rows = _rows(self.n_lists_kept_as_text)
            notes.append(f"{rows} where the prompt or both answers are lists of texts written as text, each read as one text")
        if self.n_repeating_prompt:
            notes.append(f"{_rows(self.n_repeating_prompt)} where both answers begin with the whole prompt, which is read as a part of them")
        notes += [
            f"{_rows(n)} whose column {printable(name)} is not read: the mapping reads {printable(self.config.columns[name])} in its place"
            for name, n in self.n_overwritten.items()
        ]
        unread = {printable(name): c.n for name, c in self.unread.items() if c.holds_sentences or sounds_like_prompt(name)}
        if unread:
            names = ", ".join(f"{name} ({_rows(n)})" for name, n in unread.items())
            mapping = f"map it: --columns system={next(iter(unread))} (prompt, history)"
            notes.append(f"columns with texts that are not read: {names}. If one belongs to the prompt, {mapping}")
        if self.promptless and not self.prompt_candidates():
            remedy = "--implicit-prompt text takes the words with which both answers begin as the prompt"
            notes.append(f"{_rows(len(self.promptless))} without a prompt; {remedy}")
        return notes


def columns_read(format_: Format, row: Mapping[str, Any], config: DataConfig) -> frozenset[str]:
    """The columns that a format reads of this row. If the mapping names the prompt, no other column can be it."""
    names = set(format_.uses)
    if any(name in config.columns for name in PROMPTS):
        names -= set(PROMPTS) - set(config.columns)
    names -= {name for name in CONVERSATIONS if isinstance(row.get(name), str)}
    if format_.name == "argilla":  # fields and questions of a record may be columns
        names |= {*ASKED, *(name for name, value in row.items() if "." in name or not isinstance(value, str))}
    columns = answer_columns(frozenset(row)) if format_.name in ("a-b", "argilla") else None
    return frozenset(names | set(columns[:2] if columns else ()))


def check(draft: Draft) -> Draft:
    """The draft itself. Raises Refused unless its prompt ends with a user message and its two answers differ."""
    if not draft.prompt:
        raise Refused("prompt", "missing, and the dialogues share no message before their last")
    if not all(message["content"] for message in draft.prompt):
        raise Refused("prompt", "empty: a turn holds no text")
    if draft.prompt[-1]["role"] != "user":
        raise Refused("prompt", f"ends with a message of role {draft.prompt[-1]['role']}, not with the user's")
    if draft.chosen == draft.rejected:
        raise Refused("rejected", "identical answers")
    for name, text in (("chosen", draft.chosen), ("rejected", draft.rejected)):
        if unpack_messages(text, name) is not text:  # such as in a list of completions
            raise Refused(name, "a message list written as text, where an answer's text should stand")
    return draft


def _repeats_prompt(draft: Draft) -> bool:
    prompt = draft.prompt[-1]["content"]
    return len(prompt.split()) >= LABEL_WORDS and draft.chosen.startswith(prompt) and draft.rejected.startswith(prompt)


def _nested(values: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Name, key and text of a task's or record's fields beside prompt and answers, and of a completion's prompts."""
    for name in ("data", "fields"):
        fields = values.get(name)
        if isinstance(fields, dict):
            columns = answer_columns(frozenset(fields))
            yield from ((f"{name}.{key}", key, text) for key, text in fields.items() if key not in (*ASKED, *(columns[:2] if columns else ())))
    completions = values.get("completions")
    for item in completions if isinstance(completions, list) else ():
        if isinstance(item, dict):
            yield from ((f"completion's {key}", key, text) for key, text in item.items() if sounds_like_prompt(key))


def _texts(readings: Sequence[Reading]) -> set[str]:
    """The texts that were read; a column that repeats one, such as a group by prompt, does not count as unread."""
    texts: set[str] = set()
    for reading in readings:
        draft = reading.first if isinstance(reading, Judged) else reading
        texts |= {message["content"] for message in draft.prompt}
        texts |= {draft.answer} if isinstance(draft, Rated) else {draft.chosen, draft.rejected}
    return texts


def _decided(reading: Reading, config: DataConfig) -> list[tuple[str, str]]:
    """The chosen and the rejected text if the row alone decides them; empty otherwise. Raises Refused for a tie."""
    if isinstance(reading, Judged):
        side = side_of(reading.label, {as_label(reading.label)}, reading.ending, config.label_values)
        if side == TIES:
            raise Refused(reading.column, "a tie")
        reading = (reading.first, reading.second)[side] if side in (0, 1) else reading
    return [(reading.chosen, reading.rejected)] if isinstance(reading, Draft) else []


def _by_label(item: Judged, values: set[str], config: DataConfig) -> Draft:
    side = side_of(item.label, values, item.ending, config.label_values)
    if side == TIES:
        raise Refused(item.column, "a tie")
    if side is None and item.by_score is None:
        shown = printable(item.label, 40)
        raise Refused(item.column, f"{shown}: which answer it means is not clear; set --label-values first=...,second=...")
    if side is not None and item.by_score not in (None, side):
        raise Refused(item.column, "contradicts the scores")
    return (item.first, item.second)[side if side is not None else int(item.by_score or 0)]


def _rows(n: int) -> str:
    return f"{n:,} row" if n == 1 else f"{n:,} rows"


def _id_of(value: Any) -> str:
    """A row's id as text; empty if the value can't be used as one."""
    usable = keeps(value) and not isinstance(value, (bool, float)) and str(value).isprintable()
    return str(value).strip() if usable else ""
