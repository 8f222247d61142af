"""Imports labels: Neuronpedia's exports, downloaded or from files, and labels of another workbench.

An export of Neuronpedia is `v1/{model}/{source}/explanations/batch-N.jsonl.gz` in its public bucket: 1,024 rows a file,
sorted by `index` as a string (0, 1, 10, 100, ...), without latents that have no explanation. So a row's latent is its
`index`, never its place. A row also names its SAE (`modelId`, `layer`): rows of another SAE are refused
(core.latents.label_identity), or with `any_sae` taken and marked as that SAE's. Embeddings of the texts, most of a
row's bytes, are not kept.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from core.backbone.presets import neuronpedia_source
from core.config import DataConfig
from core.data.http import Http, HttpError
from core.data.rows import Row
from core.data.sources import open_source
from core.errors import DataError, MismatchError, MissingError
from core.latents.label_book import NEURONPEDIA_AUTHOR, LabelBook, refused_row
from core.latents.label_identity import DIFFERENT, UNPROVEN, UNSTATED, Source, StatedSAE, check_claim, described_sae, other_sae, stated_sae, verdict
from core.latents.labels import NEURONPEDIA, NOT_STATED, SOURCES, WRITTEN, Label, label_from_row
from core.text_safety import printable
from core.types import Progress, RefusedRow, no_progress

BUCKET = "https://neuronpedia-datasets.s3.us-east-1.amazonaws.com"
BATCH = re.compile(r"batch-(\d+)\.jsonl(\.gz)?")
LARGEST, LARGEST_SUM = 256 * 2**20, 4 * 2**30  # limits of one file and of an export in bytes; the largest known ones have a hundredth of them
LISTING = 2**22
FETCH, IMPORT = "download labels", "import labels"
CHUNK = 2**15  # labels that are added at a time
REFUSED_SHOWN = 1000  # refused rows that are kept one by one; all are counted


@dataclass(kw_only=True)
class Imported:
    """The result of an import: `added`, `replaced` and `same` labels by source, and the refused rows, the first
    `REFUSED_SHOWN` with file and reason. `other_saes` counts the labels that were taken though they are of another SAE,
    by its name; `n_not_stated` those of files that name no SAE."""

    added: Counter[str] = field(default_factory=Counter)
    replaced: Counter[str] = field(default_factory=Counter)
    same: Counter[str] = field(default_factory=Counter)
    n_refused: int = 0
    refused: list[tuple[Path, RefusedRow]] = field(default_factory=list)
    other_saes: Counter[str] = field(default_factory=Counter)
    n_not_stated: int = 0

    def refuse(self, path: Path, row: RefusedRow) -> None:
        self.n_refused += 1
        if len(self.refused) < REFUSED_SHOWN:
            self.refused.append((path, row))

    def to_json(self) -> dict[str, Any]:
        rows = [{"file": str(path), **row.__dict__} for path, row in self.refused]
        counts = {"added": self.added, "replaced": self.replaced, "same": self.same, "n_refused": self.n_refused, "refused": rows}
        return {**counts, "other_saes": self.other_saes, "n_not_stated": self.n_not_stated}


def import_labels(book: LabelBook, path: Path, claimed: Source | None = None, progress: Progress = no_progress, *, any_sae: bool = False) -> Imported:
    """Adds the labels of a file, or of all batches in a folder, to the book.

    Rows of `labels export` (they hold `saeSha256`) go to their source, a person's to `written`; other rows are
    Neuronpedia's. `claimed` is the model and source of Neuronpedia that, by the person's word, is this SAE. Rows of
    another SAE are refused, or with `any_sae` taken and marked. Raises DataError if there is no file, MismatchError if
    no row is of this SAE.
    """
    files, result = export_files(path), Imported()
    reader = _RowReader(book=book, claimed=claimed, any_sae=any_sae, result=result)
    if not any_sae:
        if claimed:
            check_claim(claimed, book.sae)
        reader.check_files(files)
    waiting: list[Label] = []
    for number, file in enumerate(files):
        progress(IMPORT, number, len(files), labels=sum(result.added.values()))
        for row in _rows(file):
            if isinstance(row, RefusedRow):
                result.refuse(file, row)
                continue
            try:
                waiting.append(reader.label(row.values))
            except ValueError as error:
                result.refuse(file, refused_row(row.number, error))
            if len(waiting) >= CHUNK:
                _add(book, waiting, result)
    _add(book, waiting, result)
    progress(IMPORT, len(files), len(files), labels=sum(result.added.values()))
    return result


@dataclass(frozen=True, kw_only=True)
class _RowReader:
    """Turns rows into labels of the book's SAE; `claimed`, `any_sae` and `result` as in `import_labels`."""

    book: LabelBook
    claimed: Source | None
    any_sae: bool
    result: Imported

    def check_files(self, files: Sequence[Path]) -> None:
        """Raises MismatchError if no row is of this SAE, or rows without an SAE have an index that this one lacks."""
        others: dict[StatedSAE, tuple[str, str]] = {}
        counts: Counter[StatedSAE] = Counter()
        largest, n_fitting = -1, 0
        for file in files:
            for row in _rows(file):
                if isinstance(row, RefusedRow):
                    continue
                stated = stated_sae(row.values)
                kind, differences = verdict(stated, self.book.sae, self.claimed)
                if kind in (DIFFERENT, UNPROVEN):
                    others[stated] = (kind, differences)
                    counts[stated] += 1
                    continue
                n_fitting += 1
                if kind == UNSTATED:
                    largest = max(largest, _number(row.values.get("index")))
        if others and not n_fitting:
            stated, n = counts.most_common(1)[0]
            raise other_sae(stated, *others[stated], self.book.sae, n)
        width = self.book.sae.get("d_sae")
        if isinstance(width, int) and largest >= width:
            remedy = "import the labels of this SAE; to take the rows of latents that there are, marked as of an SAE that is not named: --any-sae"
            raise MismatchError(
                "these labels are of a wider SAE", expected=f"labels of {described_sae(self.book.sae)}", found=f"index {largest}", remedy=remedy
            )

    def label(self, row: Mapping[str, Any]) -> Label:
        """The label of a row, under the source it is filed in. ValueError, which starts with the field: not taken."""
        stated = stated_sae(row)
        kind, differences = verdict(stated, self.book.sae, self.claimed)
        if kind in (DIFFERENT, UNPROVEN) and not self.any_sae:
            raise ValueError(self._reason(stated, differences))
        label = self._filed(row, stated)
        width = self.book.sae.get("d_sae")
        if isinstance(width, int) and (label.index or 0) >= width:
            raise ValueError(f"index: {label.index}, but this SAE has {width} latents")
        if kind in (DIFFERENT, UNPROVEN):
            label = replace(label, made_for=stated.name or "not named")
        elif kind == UNSTATED and not label.made_for:
            label = replace(label, made_for=NOT_STATED)
        self.result.other_saes.update([label.made_for] if label.of_another_sae else [])
        self.result.n_not_stated += label.made_for == NOT_STATED
        return label

    def _reason(self, stated: StatedSAE, differences: str) -> str:
        known = self.claimed or neuronpedia_source(self.book.sae)
        if stated.sha256:
            return "saeSha256: another SAE's"
        differs = f" (they differ in {differences})" if differences else ""
        return f"layer: of {stated.name}, not of {'/'.join(known) if known else described_sae(self.book.sae)}{differs if not known else ''}"

    def _filed(self, row: Mapping[str, Any], stated: StatedSAE) -> Label:
        if "saeSha256" in row or row.get("source") in SOURCES:
            source = str(row.get("source"))
            return label_from_row(row, source if source in SOURCES[2:] else WRITTEN)
        if not stated.source:
            return label_from_row(row, NEURONPEDIA if row.get("explanationModelName") else WRITTEN)
        origin = "/".join(part for part in (NEURONPEDIA_AUTHOR, stated.model, stated.source) if part)
        return replace(label_from_row(row, NEURONPEDIA), author=origin)


def export_files(path: Path) -> list[Path]:
    """The file itself, or a folder's batches (or of its `explanations`) by their numbers. DataError: there are none."""
    if path.is_file():
        return [path]
    folder = path / "explanations" if (path / "explanations").is_dir() else path
    batches = [file for file in folder.glob("batch-*") if BATCH.fullmatch(file.name) and file.is_file()] if folder.is_dir() else []
    if not batches:
        expected = "a file of labels, or a folder with explanations/batch-0.jsonl.gz, batch-1.jsonl.gz, ..."
        raise DataError(f"there are no labels at {printable(path, 300)}", expected=expected, remedy="check the path")
    return sorted(batches, key=lambda file: int(BATCH.fullmatch(file.name)[1]))  # type: ignore[index]


def download_export(source: Source, folder: Path, *, bucket: str = BUCKET, progress: Progress = no_progress) -> Path:
    """Fetches an export of Neuronpedia into `folder`, batch by batch, and returns the folder. Batches that are there
    with the right size are kept. Raises MissingError if it can't be fetched: no network, no such export, or a larger
    one than the limits allow."""
    target = folder / source[0] / source[1] / "explanations"
    prefix = f"v1/{source[0]}/{source[1]}/explanations/"
    try:
        with Http(bucket) as http:
            batches = list(_batches(http, prefix))
            _check_sizes(source, batches)
            target.mkdir(parents=True, exist_ok=True)
            total, done = sum(size for _, size in batches), 0
            for name, size in batches:
                progress(FETCH, done, total, unit="bytes")
                file = target / name
                if not file.is_file() or file.stat().st_size != size:
                    http.download("/" + quote(prefix + name), file, largest=LARGEST)
                done += size
            progress(FETCH, done, total, unit="bytes")
    except HttpError as error:
        remedy = "check the network; or fetch that folder elsewhere and give it: sparserm labels import MODEL FOLDER"
        raise MissingError(f"Neuronpedia's {prefix} could not be fetched", found=str(error), remedy=remedy) from error
    return target.parent


def _batches(http: Http, prefix: str) -> Iterator[tuple[str, int]]:
    """Name and size of every batch, from the bucket's listing, a page at a time."""
    token = ""
    while True:
        asked = {"list-type": "2", "prefix": prefix, **({"continuation-token": token} if token else {})}
        page = http.get("/", asked, largest=LISTING).decode("utf-8", "replace")
        for key, size in re.findall(r"<Key>([^<]*)</Key>.*?<Size>(\d{1,15})</Size>", page, re.DOTALL):
            name = html.unescape(key).removeprefix(prefix)
            if BATCH.fullmatch(name):
                yield name, int(size)
        more = re.search(r"<NextContinuationToken>([^<]+)</NextContinuationToken>", page)
        if not more or html.unescape(more[1]) == token:
            return
        token = html.unescape(more[1])


def _check_sizes(source: Source, batches: list[tuple[str, int]]) -> None:
    name, sizes = "/".join(source), [size for _, size in batches]
    if not batches:
        remedy = "check the names at neuronpedia.org: the model and the source, such as gemma-2-2b/13-gemmascope-res-16k"
        raise MissingError(f"Neuronpedia exports no explanations of {name}", remedy=remedy)
    if max(sizes) > LARGEST or sum(sizes) > LARGEST_SUM:
        expected = f"files of at most {LARGEST >> 20} MiB, together {LARGEST_SUM >> 20} MiB"
        raise MissingError(f"Neuronpedia's export of {name} is larger than is fetched", expected=expected, found=f"{sum(sizes) >> 20} MiB")


def _rows(file: Path) -> Iterator[Row | RefusedRow]:
    if not file.stat().st_size:
        yield RefusedRow(row=1, field="file", reason="empty")
        return
    source = open_source(DataConfig(pairs=str(file)))
    try:
        yield from source.rows
    finally:
        source.close()


def _number(index: object) -> int:
    """A latent's number, from which the largest is found; -1 for anything else."""
    return index if type(index) is int else int(index) if isinstance(index, str) and index.isascii() and index.isdecimal() and len(index) < 10 else -1


def _add(book: LabelBook, waiting: list[Label], result: Imported) -> None:
    for source in sorted({label.source for label in waiting}):
        done = book.add(source, [label for label in waiting if label.source == source])
        for count, n in ((result.added, done.new), (result.replaced, done.replaced), (result.same, done.same)):
            count[source] += n
    waiting.clear()
