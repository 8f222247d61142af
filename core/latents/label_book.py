"""All labels of one SAE, which the hash of its weights identifies: the shipped ones and those in the cache.

    <cache>/labels/<first 16 digits of the SAE's sha256>/person.jsonl, and written.jsonl, neuronpedia.jsonl,
                                               endpoint.jsonl, automatic.jsonl: a file for each source
    <cache>/labels/<the same>/scores.jsonl     scores of labels of any source: source, index, description, and the score
    core/data/demo/labels.jsonl                shipped, read only; rows of another SAE (`saeSha256`) are skipped

The best label of a latent is the person's own, then the first by source in the order of `labels.SOURCES`, within a
source the newest. Labels that were made for another SAE come last and are marked. A score belongs to a text, so a
changed label has no score. Files are rewritten whole, under a lock. `refused` lists the lines that can't be used; they
stay in their file.

Lines are compared with the SAE (core.latents.label_identity): one without `saeSha256` that names another SAE is
refused; labels from another SAE's source, which earlier versions imported without comparing, are marked as that SAE's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from core.backbone.presets import source_names
from core.data.rows import RepeatedKeys, lines, parse_json
from core.errors import ConfigError, MissingError
from core.files import json_line, write_bytes
from core.latents.label_identity import DIFFERENT, stated_sae, stated_source, verdict
from core.latents.labels import NOT_STATED, PERSON, SHIPPED, SOURCES, Label, Labels, Score, label_from_row, one_line, today, with_scores
from core.reward.folder import ModelFolder
from core.reward.folder_content import FolderContent
from core.runs.locks import make_lock
from core.runs.store import cache_root
from core.text_safety import printable
from core.types import RefusedRow

SHIPPED_FILE = Path(__file__).resolve().parents[1] / "data" / "demo" / "labels.jsonl"
SCORES = "scores"
NEURONPEDIA_AUTHOR = "neuronpedia.org"  # first part of the author of labels from Neuronpedia; model and source follow
Parse = Callable[[Mapping[str, Any]], Any]
Place = tuple[str, int, str]  # what a score belongs to: source, latent, text


class OtherSAE(Exception):
    """A row belongs to another SAE's latents."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a file: its bytes, and its content (`value`, parsed from `row`) or why it can't be used."""

    raw: bytes
    value: Any = None
    row: Mapping[str, Any] | None = None
    refused: RefusedRow | None = None


@dataclass(frozen=True, kw_only=True)
class Added:
    """How many added labels are new, replaced an older one, or were there already."""

    new: int
    replaced: int
    same: int


class LabelBook:
    """The labels of the SAE with this identity, read again when changed. MissingError: an identity without `sha256`."""

    def __init__(self, sae: Mapping[str, Any], root: Path | None = None, *, shipped: Path = SHIPPED_FILE) -> None:
        if not isinstance(sae.get("sha256"), str):
            raise MissingError("this SAE's identity holds no hash of its weights, so its labels can't be told from another SAE's", expected="sha256")
        self.sae, self.sha256, self.root = sae, str(sae["sha256"]), root or cache_root()
        self.folder, self.shipped = self.root / "labels" / self.sha256[:16], shipped
        self._read: dict[Path, tuple[tuple[int, ...], list[Line]]] = {}
        self._ranked: tuple[Any, dict[int, list[Label]], dict[int, Label]] = (None, {}, {})

    # --- reading ---

    def labels(self) -> Labels:
        """The best label of every latent that has one."""
        return self._up_to_date()[1]

    def all(self, latent: int) -> tuple[Label, ...]:
        """Every label of one latent, best first."""
        return tuple(self._up_to_date()[0].get(latent, ()))

    def of(self, source: str) -> list[Label]:
        """All labels of one source, with their scores."""
        scores = self._scores()
        labels = [line.value for line in self._lines(source) if line.value]
        return [with_scores(label, scores.get(_place(label), ())) for label in labels]

    @property
    def refused(self) -> tuple[tuple[Path, RefusedRow], ...]:
        """The lines of this SAE's files that can't be used, with the reason."""
        files = {self.path(source): self._lines(source) for source in SOURCES} | {self._scores_path: self._score_lines()}
        return tuple((path, line.refused) for path, lines_of_file in files.items() for line in lines_of_file if line.refused)

    def path(self, source: str) -> Path:
        """The file of a source. Raises ConfigError for an unknown source."""
        if source not in SOURCES:
            raise ConfigError("there is no such source of labels", expected=" | ".join(SOURCES), found=source)
        return self.shipped if source == SHIPPED else self.folder / f"{source}.jsonl"

    def rows(self, labels: Iterable[Label]) -> list[dict[str, Any]]:
        """Labels as rows for a file, with the model, layer and hash of the SAE whose latents they name."""
        model_id, layer = source_names(self.sae)
        return [{"modelId": model_id, "layer": layer, **label.to_row(), "saeSha256": self.sha256} for label in labels]

    # --- writing ---

    def set(self, latent: int, text: str, author: str = "") -> Label | None:
        """Replaces the person's own label of a latent; an empty text removes it. ConfigError: no such latent."""
        self.check(latent)
        label = Label(text=one_line(text), source=PERSON, index=latent, method="by hand", author=one_line(author), date=today())

        def change(lines_before: list[Line]) -> list[bytes]:
            kept = [line.raw for line in lines_before if not (line.value and line.value.index == latent)]
            return kept + [_encoded(row) for row in self.rows([label] if label.text else [])]

        self._rewrite(self.path(PERSON), self._parse_label(PERSON), change)
        return label if label.text else None

    def add(self, source: str, labels: Sequence[Label]) -> Added:
        """Adds labels to a source, replacing those of the same key. Raises ConfigError as `path` and `set` do."""
        if source == SHIPPED:
            raise ConfigError("shipped labels are read only", expected=" | ".join(name for name in SOURCES if name != SHIPPED))
        for label in labels:
            self.check(label.index if label.index is not None else -1)
        new = {label.key: label for label in labels}
        count = {"replaced": 0, "same": 0}

        def change(lines_before: list[Line]) -> list[bytes]:
            kept: list[bytes] = []
            for line in lines_before:
                newer = new.get(line.value.key) if line.value else None
                if newer is None or (newer.text, newer.scores) == (line.value.text, line.value.scores):
                    kept.append(line.raw)
                    count["same"] += new.pop(line.value.key, None) is not None if line.value else False
                else:
                    count["replaced"] += 1
            return kept + [_encoded(row) for row in self.rows(new.values())]

        self._rewrite(self.path(source), self._parse_label(source), change)
        return Added(new=len(new) - count["replaced"], **count)

    def add_scores(self, scores: Sequence[tuple[Label, Score]]) -> None:
        """Keeps scores of labels; each replaces an earlier one by the same method and model."""
        new = {(_place(label), score.method, score.model): score for label, score in scores}

        def change(lines_before: list[Line]) -> list[bytes]:
            kept = [line.raw for line in lines_before if not (line.value and (line.value[0], line.value[1].method, line.value[1].model) in new)]
            rows = ({"source": place[0], "index": str(place[1]), "description": place[2], **score.to_row()} for (place, *_), score in new.items())
            return kept + [_encoded(row) for row in rows]

        self._rewrite(self._scores_path, _parse_score, change)

    def check(self, latent: int) -> None:
        """Raises ConfigError if this SAE has no latent of this number."""
        width = self.sae.get("d_sae")
        if latent < 0 or (isinstance(width, int) and latent >= width):
            expected = f"0 to {width - 1}" if isinstance(width, int) else "0 or more"
            raise ConfigError("this SAE has no such latent", expected=expected, found=str(latent))

    # --- files ---

    def _up_to_date(self) -> tuple[dict[int, list[Label]], dict[int, Label]]:
        """Every latent's labels, best first, and the best label of each, from the files as they are now."""
        state = tuple(_signature(path) for path in (*map(self.path, SOURCES), self._scores_path))
        if self._ranked[0] != state:
            every: dict[int, list[Label]] = {}
            for source in SOURCES:
                for label in sorted(self.of(source), key=lambda label: label.date, reverse=True):
                    every.setdefault(int(label.index or 0), []).append(label)
            for labels in every.values():
                labels.sort(key=lambda label: label.of_another_sae)
            self._ranked = (state, every, {latent: ranked[0] for latent, ranked in every.items()})
        return self._ranked[1:]

    def _scores(self) -> dict[Place, list[Score]]:
        scores: dict[Place, list[Score]] = {}
        for line in self._score_lines():
            if line.value:
                scores.setdefault(line.value[0], []).append(line.value[1])
        return scores

    @property
    def _scores_path(self) -> Path:
        return self.folder / f"{SCORES}.jsonl"

    def _score_lines(self) -> list[Line]:
        return self._cached(self._scores_path, _parse_score)

    def _lines(self, source: str) -> list[Line]:
        return self._cached(self.path(source), self._parse_label(source))

    def _cached(self, path: Path, parse: Parse) -> list[Line]:
        signature = _signature(path)
        if self._read.get(path, ((-1,), []))[0] != signature:
            self._read[path] = (signature, read_lines(path, parse))
        return self._read[path][1]

    def _parse_label(self, source: str) -> Parse:
        def parse(row: Mapping[str, Any]) -> Label:
            stated_hash = row.get("saeSha256", self.sha256 if source != SHIPPED else None)
            if stated_hash != self.sha256:
                raise OtherSAE if source == SHIPPED and isinstance(stated_hash, str) else ValueError("saeSha256: not this SAE's")
            label = self._compared(label_from_row(row, source), row)
            try:
                self.check(int(label.index or 0))
            except ConfigError as error:
                raise ValueError(f"index: {error.problem}, {error.found}") from error
            return label

        return parse

    def _compared(self, label: Label, row: Mapping[str, Any]) -> Label:
        """The label, marked if its SAE is another one or not named. ValueError: the row itself names another SAE."""
        if "saeSha256" not in row:
            stated = stated_sae(row)
            kind, differences = verdict(stated, self.sae)
            if kind == DIFFERENT:
                raise ValueError(f"layer: of {stated.name}, another SAE, which differs in {differences}")
            return label if label.made_for else replace(label, made_for=NOT_STATED)
        author, _, source = label.author.partition("/")
        model, _, layer = source.partition("/")
        if label.made_for or author != NEURONPEDIA_AUTHOR or not layer:
            return label
        stated = stated_source((model, layer))
        return replace(label, made_for=stated.name) if verdict(stated, self.sae)[0] == DIFFERENT else label

    def _rewrite(self, path: Path, parse: Parse, change: Callable[[list[Line]], list[bytes]]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with make_lock(self.root / "locks" / f"labels-{self.sha256[:16]}.lock"):
            write_bytes(path, b"".join(change(read_lines(path, parse))))


def book_of_sae(sae: Mapping[str, Any] | None, root: Path | None = None) -> LabelBook | None:
    """The label book of the SAE that a reward model names; None if it names no SAE, or not by hash."""
    return LabelBook(sae, root) if sae and isinstance(sae.get("sha256"), str) else None


def book_of(folder: ModelFolder) -> LabelBook | None:
    """The label book of a reward model's SAE, the same object for the same folder; changed files are read again."""
    return _book(folder.content, folder.root)


@lru_cache(maxsize=16)
def _book(content: FolderContent, root: Path) -> LabelBook | None:
    return book_of_sae(content.parts.sae, root)


def labels_of(folder: ModelFolder) -> Labels:
    """The best label of each latent that has one, from the label files as they are now."""
    book = book_of(folder)
    return book.labels() if book else {}


def read_lines(path: Path, parse: Parse) -> list[Line]:
    """The lines of a file of JSON rows without blank ones and those of other SAEs; none if there is no file."""
    if not path.is_file():
        return []
    parsed: list[Line] = []
    with path.open("rb") as handle:
        for number, raw in enumerate(lines(handle), 1):
            if isinstance(raw, Exception):
                raise raw
            if raw.strip():
                line = _line(number, raw if raw.endswith(b"\n") else raw + b"\n", parse)
                parsed += [line] if line else []
    return parsed


def _line(number: int, raw: bytes, parse: Parse) -> Line | None:
    try:
        row = parse_json(raw.decode("utf-8"))
        if not isinstance(row, dict) or isinstance(row, RepeatedKeys):
            raise ValueError("row: not an object" if not isinstance(row, dict) else "row: one key is given twice")
        return Line(raw=raw, row=row, value=parse(row))
    except OtherSAE:
        return None
    except (ValueError, RecursionError) as error:
        return Line(raw=raw, refused=refused_row(number, error))


def refused_row(number: int, error: Exception) -> RefusedRow:
    """A row that can't be used, from an error whose text may start with the field."""
    name, colon, reason = str(error).partition(": ")
    if colon and name.isidentifier():
        return RefusedRow(row=number, field=name, reason=printable(reason, 200))
    what = {UnicodeDecodeError: "bytes that are not UTF-8", RecursionError: "nested too deeply"}.get(type(error))
    return RefusedRow(row=number, field="row", reason=what or f"not JSON ({printable(error)})")


def _parse_score(row: Mapping[str, Any]) -> tuple[Place, Score]:
    source, text = row.get("source"), row.get("description")
    if source not in SOURCES or not isinstance(text, str):
        raise ValueError("source: no label is named")
    return (source, int(label_from_row(row, source).index or 0), one_line(text)), Score.from_row(row)


def _place(label: Label) -> Place:
    return label.source, int(label.index or 0), label.text


def _encoded(row: Mapping[str, Any]) -> bytes:
    return json_line(row).encode("utf-8")


def _signature(path: Path) -> tuple[int, ...]:
    try:
        seen = path.stat()
    except OSError:
        return ()
    return seen.st_ino, seen.st_size, seen.st_mtime_ns
