"""The commands of `sparserm labels` that need no model: list, set, import and export; and what all of them share."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from core.backbone.presets import neuronpedia_source
from core.cli import tables
from core.cli.options import print_json
from core.errors import ConfigError, DataError, MissingError
from core.files import write_json_lines
from core.latents.label_book import LabelBook
from core.latents.label_identity import check_claim
from core.latents.label_sources import Imported, download_export, import_labels
from core.latents.labels import SOURCES, Label
from core.reward.folder import ModelFolder
from core.reward.parts import RewardParts
from core.runs.progress import Display
from core.runs.store import cache_root

REFUSED_SHOWN = 10


def list_command(arguments: argparse.Namespace, display: Display) -> None:
    parts, book = opened(arguments.model)
    for latent in arguments.latent:
        book.check(latent)
    latents = sorted(book.labels()) if arguments.all else _chosen(arguments, parts)
    _print_refused(book, display)
    if arguments.json:
        print_json({"latents": [{"latent": latent, "labels": [_as_json(label) for label in book.all(latent)]} for latent in latents]})
        return
    sides = {row["latent_id"]: str(row.get("side", "")) for row in parts.selection}
    shown = [(latent, label) for latent in latents for label in (book.all(latent) if arguments.latent else book.all(latent)[:1]) or [None]]
    rows = [(str(latent), sides.get(latent, ""), *_cells(label)) for latent, label in shown]
    n_named = len({latent for latent, label in shown if label})
    columns = ("latent", "marks", "label", "from", "made by", "when", "score")
    tables.table(f"{n_named} of {len(latents)} latents have a label", columns, rows, left=6)


def set_command(arguments: argparse.Namespace, display: Display) -> None:
    book = opened(arguments.model)[1]
    had = book.all(arguments.latent)
    new = book.set(arguments.latent, arguments.text, arguments.author)
    labels = book.all(arguments.latent)
    if arguments.json:
        print_json({"latent": arguments.latent, "labels": [_as_json(label) for label in labels]})
        return
    was = f" (was: {had[0].text}, from {had[0].source})" if had and had[0].text != (labels[0].text if labels else "") else ""
    best = f"{labels[0].text}, from {labels[0].source}" if labels else "no label"
    print(f"latent {arguments.latent}: {best}{was}" if new or had else f"latent {arguments.latent} had no label of yours")


def import_command(arguments: argparse.Namespace, display: Display) -> None:
    book = opened(arguments.model)[1]
    source = _source(arguments.neuronpedia) if arguments.neuronpedia else None
    path = arguments.path
    if path is None:
        if source and not arguments.any_sae:
            check_claim(source, book.sae)
        path = download_export(source or _known_source(book), cache_root() / "downloads" / "neuronpedia", progress=display)
    imported = import_labels(book, path, source, display, any_sae=arguments.any_sae)
    display.close()
    if arguments.json:
        print_json(imported.to_json())
    else:
        _print_import(imported, display)
    if not imported.added and not imported.replaced and not imported.same:
        raise DataError("no label could be imported", found=f"{imported.n_refused} rows, all refused", remedy="check that the labels are this SAE's")


def export_command(arguments: argparse.Namespace, display: Display) -> None:
    book = opened(arguments.model)[1]
    if arguments.out.exists():
        raise ConfigError(f"{arguments.out} exists already", remedy="give --out a new file, or remove this one")
    if arguments.source:
        book.path(arguments.source)  # raises ConfigError for an unknown source
    rows = [row for source in ([arguments.source] if arguments.source else SOURCES) for row in book.rows(book.of(source))]
    rows.sort(key=lambda row: int(row["index"]))
    write_json_lines(arguments.out, rows)
    print_figures(arguments, display, {"labels": len(rows), "file": str(arguments.out)})


# --- what they share -----------------------------------------------------------------------------------------------


def opened(folder: Path) -> tuple[RewardParts, LabelBook]:
    """A reward model's parts and the labels of its SAE."""
    parts = ModelFolder(folder).parts
    if parts.sae is None:
        raise MissingError(f"{folder} uses no SAE, so it has no latents to label", expected="a SparseRM", found=parts.kind)
    return parts, LabelBook(parts.sae)


def _chosen(arguments: argparse.Namespace, parts: RewardParts) -> list[int]:
    selected = [] if parts.latent_ids is None else parts.latent_ids.tolist()
    return list(dict.fromkeys(arguments.latent or selected))


def _source(text: str) -> tuple[str, str]:
    match = re.fullmatch(r"([\w][\w.-]*)/([\w][\w.-]*)", text)
    if not match:
        raise ConfigError("--neuronpedia names no source", expected="MODEL/SOURCE, such as gemma-2-2b/13-gemmascope-res-16k", found=text)
    return match[1], match[2]


def _known_source(book: LabelBook) -> tuple[str, str]:
    source = neuronpedia_source(book.sae)
    if source is None:
        remedy = "name it: --neuronpedia gemma-2-2b/13-gemmascope-res-16k; or give a file or folder"
        raise ConfigError("which of Neuronpedia's sources this SAE is, is not known", found=str(book.sae.get("name")), remedy=remedy)
    return source


def _as_json(label: Label) -> dict[str, Any]:
    return {**label.to_row(), "score": label.score}


def _cells(label: Label | None) -> tuple[str, str, str, str, str]:
    if label is None:
        return ("", "", "", "", "")
    made_by = ", ".join(part for part in (label.doubt, label.method, label.model, label.author) if part)
    best = next((score for score in label.scores if score.value == label.score and score.low is not None), None)
    interval = f" ({best.low:.2f} to {best.high:.2f})" if best else ""
    return label.text + label.mark, label.source, made_by, label.date[:10], "" if label.score is None else f"{label.score:.2f}{interval}"


def print_figures(arguments: argparse.Namespace, display: Display, figures: dict[str, Any]) -> None:
    display.close()
    if arguments.json:
        print_json(figures)
    else:
        print(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in figures.items()))


def _print_refused(book: LabelBook, display: Display) -> None:
    for path, row in book.refused:
        display.say(f"line {row.row} of {path} is left out: {row.field}: {row.reason}")


def _print_import(imported: Imported, display: Display) -> None:
    for path, row in imported.refused[:REFUSED_SHOWN]:
        display.say(f"row {row.row} of {path.name} is left out: {row.field}: {row.reason}")
    if imported.n_refused > REFUSED_SHOWN:
        display.say(f"{imported.n_refused - REFUSED_SHOWN} more rows are left out")
    parts = (("new", imported.added), ("in place of older ones", imported.replaced), ("there already", imported.same))
    print("; ".join(f"{_counted(count.items())} {what}" for what, count in parts if count.total()) or "no labels")
    for name, number in sorted(imported.other_saes.items()):
        print(f"{number:,} of them were made for another SAE ({name}); they are marked so wherever they stand")
    if imported.n_not_stated:
        print(f"{imported.n_not_stated:,} of them do not say which SAE they are of; they are taken as this one's, and marked so")


def _counted(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{n:,} {source}" for source, n in sorted(counts) if n)
