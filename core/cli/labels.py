"""`sparserm labels`: what latents are called, where from, and how well that fits; a family of commands over core.latents.label_book."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cli import tables
from core.cli.options import add_command, add_options, override, print_json
from core.config import EndpointConfig, LatentsConfig
from core.errors import ConfigError, DataError, MissingError
from core.files import write_json_lines
from core.runs.progress import Display
from core.runs.store import cache_root

if TYPE_CHECKING:
    from core.latents.label_book import LabelBook
    from core.latents.label_sources import Imported
    from core.latents.labels import Label, Score
    from core.latents.pages import LatentPages
    from core.reward.parts import RewardParts

EXAMPLES = {
    "labels": "examples:\n"
    "  sparserm labels list my_reward_model\n"
    '  sparserm labels set my_reward_model 1234 "apologies"\n'
    "  sparserm labels auto my_reward_model\n"
    "  sparserm labels score my_reward_model",
    "labels list": "examples:\n  sparserm labels list my_reward_model\n  sparserm labels list my_reward_model --latent 1234",
    "labels set": 'examples:\n  sparserm labels set my_reward_model 1234 "apologies"\n  sparserm labels set my_reward_model 1234 ""',
    "labels import": "examples:\n"
    "  sparserm labels import my_reward_model\n"
    "  sparserm labels import my_reward_model v1/gemma-2-2b/13-gemmascope-res-16k\n"
    "  sparserm labels import my_reward_model labels.jsonl",
    "labels auto": "example:\n  sparserm labels auto my_reward_model --all",
    "labels ask": "example:\n  sparserm labels ask my_reward_model --endpoint http://localhost:8000/v1 --endpoint-model my-model",
    "labels score": "example:\n  sparserm labels score my_reward_model",
    "labels export": "example:\n  sparserm labels export my_reward_model --source person --out labels.jsonl",
}
LATENT_HELP = "only this latent; repeat it for more (default: those the reward model selects)"
REFUSED_SHOWN = 10


def add_labels(commands: Any) -> None:
    """Adds `labels` and its commands."""
    family = add_command(commands, "labels", None, "what latents are called: your own labels, imported, automatic, and their scores", EXAMPLES)
    parent = family.add_subparsers(metavar="command", required=True)

    listed = _command(parent, "labels list", list_command, "list the latents' labels, best first")
    _add_latents(listed, "every latent that has a label")
    named = _command(parent, "labels set", set_command, "label a latent yourself; an empty text takes your label away")
    named.add_argument("latent", metavar="LATENT", type=int, help="number of the latent")
    named.add_argument("text", metavar="TEXT", help="what it is active on")
    named.add_argument("--author", metavar="NAME", default="", help="who says so")
    fetched = _command(parent, "labels import", import_command, "add labels from Neuronpedia, or from a file that labels export wrote")
    fetched.add_argument("path", metavar="PATH", type=Path, nargs="?", help="file or folder (default: downloaded from Neuronpedia's public bucket)")
    fetched.add_argument("--neuronpedia", metavar="MODEL/SOURCE", default="", help="which of Neuronpedia's sources this SAE is (presets know theirs)")
    fetched.add_argument("--any-sae", action="store_true", help="take labels of another SAE too; they stay marked as that SAE's")
    for name, run, help_, everything in (
        ("labels auto", auto_command, "label latents by their distinctive tokens and words; needs no model", "every latent that has a page"),
        ("labels ask", ask_command, "have a language model label latents from their strongest texts", "every latent that has a page"),
        ("labels score", score_command, "measure how well labels tell active texts from others", "every latent that has a label and a page"),
    ):
        parser = _command(parent, name, run, help_)
        _add_latents(parser, everything)
        parser.add_argument("--device", metavar="TEXT", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
        if run is ask_command:
            add_options(parser, EndpointConfig(), "endpoint")
        add_options(parser, LatentsConfig(), "latents' pages, as `sparserm latents` makes them; made first where they are not there")
    given = _command(parent, "labels export", export_command, "write labels, with their scores, as JSON lines in Neuronpedia's format")
    given.add_argument("--out", metavar="FILE", type=Path, required=True, help="a new file")
    given.add_argument("--source", metavar="SOURCE", default="", help="only labels of this source")


def _command(parent: Any, name: str, run: Any, help_: str) -> argparse.ArgumentParser:
    parser = add_command(parent, name, run, help_, EXAMPLES)
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder of a reward model")
    return parser


def _add_latents(parser: argparse.ArgumentParser, everything: str) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--latent", metavar="N", type=int, action="append", default=[], help=LATENT_HELP)
    which.add_argument("--all", action="store_true", help=everything)


# --- commands ------------------------------------------------------------------------------------------------------


def list_command(arguments: argparse.Namespace, display: Display) -> None:
    parts, book = _opened(arguments.model)
    for latent in arguments.latent:
        book.check(latent)
    latents = sorted(book.labels()) if arguments.all else _chosen(arguments, parts)
    _tell_refused(book, display)
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
    book = _opened(arguments.model)[1]
    had = book.all(arguments.latent)
    label = book.set(arguments.latent, arguments.text, arguments.author)
    found = book.all(arguments.latent)
    if arguments.json:
        print_json({"latent": arguments.latent, "labels": [_as_json(one) for one in found]})
        return
    was = f" (was: {had[0].text}, from {had[0].source})" if had and had[0].text != (found[0].text if found else "") else ""
    said = f"{found[0].text}, from {found[0].source}" if found else "no label"
    print(f"latent {arguments.latent}: {said}{was}" if label or had else f"latent {arguments.latent} had no label of yours")


def import_command(arguments: argparse.Namespace, display: Display) -> None:
    from core.latents.label_identity import check_claim
    from core.latents.label_sources import download_export, import_labels

    book = _opened(arguments.model)[1]
    source = _source(arguments.neuronpedia) if arguments.neuronpedia else None
    path = arguments.path
    if path is None:
        if source and not arguments.any_sae:
            check_claim(source, book.sae)
        path = download_export(source or _known_source(book), cache_root() / "downloads" / "neuronpedia", progress=display)
    found = import_labels(book, path, source, display, any_sae=arguments.any_sae)
    display.close()
    if arguments.json:
        print_json(found.to_json())
    else:
        _tell_import(found, display)
    if not found.added and not found.replaced and not found.same:
        raise DataError("no label could be imported", found=f"{found.n_refused} rows, all refused", remedy="check that the labels are this SAE's")


def auto_command(arguments: argparse.Namespace, display: Display) -> None:
    from core.latents.label_auto import automatic_label
    from core.latents.labels import AUTOMATIC

    book = _opened(arguments.model)[1]
    pages, latents = _pages(arguments, display)
    found: list[Label] = []
    for number, latent in enumerate(latents):
        display("label", number, len(latents))
        label = automatic_label(pages.page(latent), pages.snippets)
        found += [label] if label else []
    display("label", len(latents), len(latents), labels=len(found))
    book.add(AUTOMATIC, found)
    _tell(arguments, display, {"labels": len(found), "nothing_distinctive": len(latents) - len(found)})


def ask_command(arguments: argparse.Namespace, display: Display) -> None:
    from core.latents.label_endpoint import ask_labels, check_endpoint

    config: EndpointConfig = override(EndpointConfig(), vars(arguments))
    check_endpoint(config)
    book = _opened(arguments.model)[1]
    pages, latents = _pages(arguments, display)
    done = ask_labels(book, (pages.page(latent) for latent in latents), config, total=len(latents), progress=display)
    _tell(arguments, display, dict(done.__dict__))


def score_command(arguments: argparse.Namespace, display: Display) -> None:
    from core.latents.label_scores import SentenceModel, score_labels

    book = _opened(arguments.model)[1]
    embed = SentenceModel()
    pages, latents = _pages(arguments, display)
    labels = [(label, latent) for latent in latents for label in book.all(latent)]
    if not labels:
        raise MissingError("there is no label to score", remedy="sparserm labels auto MODEL; or by hand: sparserm labels set MODEL LATENT TEXT")
    pairs = ((label, pages.page(latent)) for label, latent in labels)
    scores = score_labels(pairs, pages.snippets, embed, total=len(labels), progress=display)
    book.add_scores(scores)
    display.close()
    sources, few = scores_by_source(scores), len(labels) - len(scores)
    if arguments.json:
        print_json({"scored": len(scores), "too_few_texts": few, "sources": sources})
        return
    rows = [(name, str(row["n"]), f"{row['median']:.3f} [{row['low']:.3f}, {row['high']:.3f}]", str(row["poor"])) for name, row in sources.items()]
    tables.table("Labels, by the AUROC of their likeness to active texts", ("from", "labels", "median score [95 %]", "below 0.7"), rows)
    if few:
        print(f"{few} labels have too few texts to be scored")


def export_command(arguments: argparse.Namespace, display: Display) -> None:
    from core.latents.labels import SOURCES

    book = _opened(arguments.model)[1]
    if arguments.out.exists():
        raise ConfigError(f"{arguments.out} exists already", remedy="give --out a new file, or remove this one")
    if arguments.source:
        book.path(arguments.source)  # an unknown source is said
    rows = [row for source in ([arguments.source] if arguments.source else SOURCES) for row in book.rows(book.of(source))]
    rows.sort(key=lambda row: int(row["index"]))
    write_json_lines(arguments.out, rows)
    _tell(arguments, display, {"labels": len(rows), "file": str(arguments.out)})


# --- what they share -----------------------------------------------------------------------------------------------


def _opened(folder: Path) -> tuple[RewardParts, LabelBook]:
    """A reward model's parts and the labels of its SAE."""
    from core.latents.label_book import LabelBook
    from core.reward.folder import ModelFolder

    parts = ModelFolder(folder).parts
    if parts.sae is None:
        raise MissingError(f"{folder} uses no SAE, so it has no latents to label", expected="a SparseRM", found=parts.kind)
    return parts, LabelBook(parts.sae)


def _chosen(arguments: argparse.Namespace, parts: RewardParts) -> list[int]:
    selected = [] if parts.latent_ids is None else parts.latent_ids.tolist()
    return list(dict.fromkeys(arguments.latent or selected))


def _pages(arguments: argparse.Namespace, display: Display) -> tuple[LatentPages, list[int]]:
    """The latents' pages of the reward model, made where they do not stand, and the latents that are meant."""
    from core.jobs.job import foreground_turn
    from core.latents.find_pages import find_pages, selected_latents
    from core.latents.make_pages import make_pages
    from core.reward.folder import ModelFolder

    folder = ModelFolder(arguments.model)
    config: LatentsConfig = override(LatentsConfig(), vars(arguments))
    pages = find_pages(folder, config, arguments.latent, every=arguments.all)
    if pages is None:
        with foreground_turn(folder.parts.backbone_config, folder.store, display.say):
            pages = make_pages(folder, config, arguments.latent, every=arguments.all, device=arguments.device, progress=display)
    return pages, list(pages) if arguments.all else arguments.latent or selected_latents(folder)


def _source(text: str) -> tuple[str, str]:
    found = re.fullmatch(r"([\w][\w.-]*)/([\w][\w.-]*)", text)
    if not found:
        raise ConfigError("--neuronpedia names no source", expected="MODEL/SOURCE, such as gemma-2-2b/13-gemmascope-res-16k", found=text)
    return found[1], found[2]


def _known_source(book: LabelBook) -> tuple[str, str]:
    from core.backbone.presets import neuronpedia_source

    found = neuronpedia_source(book.sae)
    if found is None:
        remedy = "name it: --neuronpedia gemma-2-2b/13-gemmascope-res-16k; or give a file or folder"
        raise ConfigError("which of Neuronpedia's sources this SAE is, is not known", found=str(book.sae.get("name")), remedy=remedy)
    return found


def _as_json(label: Label) -> dict[str, Any]:
    return {**label.to_row(), "score": label.score}


def _cells(label: Label | None) -> tuple[str, str, str, str, str]:
    if label is None:
        return ("", "", "", "", "")
    made_by = ", ".join(part for part in (label.doubt, label.method, label.model, label.author) if part)
    best = next((score for score in label.scores if score.value == label.score and score.low is not None), None)
    interval = f" ({best.low:.2f} to {best.high:.2f})" if best else ""
    return label.text + label.mark, label.source, made_by, label.date[:10], "" if label.score is None else f"{label.score:.2f}{interval}"


def scores_by_source(scores: Sequence[tuple[Label, Score]]) -> dict[str, dict[str, Any]]:
    """How many labels of each source were scored, their median with a 95 % bootstrap interval over labels, and how many score poorly."""
    import numpy as np

    from core.latents.labels import POOR, SOURCES
    from core.statistics.bootstrap import RESAMPLES, SEED, percentile_interval

    found = {}
    for source in SOURCES:
        values = np.array([score.value for label, score in scores if label.source == source])
        if len(values):
            drawn = np.median(np.random.default_rng(SEED).choice(values, (RESAMPLES, len(values))), axis=1)
            low, high = map(float, percentile_interval(drawn))
            found[source] = {"n": len(values), "median": float(np.median(values)), "low": low, "high": high, "poor": int((values < POOR).sum())}
    return found


def _tell(arguments: argparse.Namespace, display: Display, found: dict[str, Any]) -> None:
    display.close()
    if arguments.json:
        print_json(found)
    else:
        print(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in found.items()))


def _tell_refused(book: LabelBook, display: Display) -> None:
    for path, row in book.refused:
        display.say(f"line {row.row} of {path} is left out: {row.field}: {row.reason}")


def _tell_import(found: Imported, display: Display) -> None:
    for path, row in found.refused[:REFUSED_SHOWN]:
        display.say(f"row {row.row} of {path.name} is left out: {row.field}: {row.reason}")
    if found.n_refused > REFUSED_SHOWN:
        display.say(f"{found.n_refused - REFUSED_SHOWN} more rows are left out")
    parts = (("new", found.added), ("in place of older ones", found.replaced), ("there already", found.same))
    print("; ".join(f"{_counted(count.items())} {what}" for what, count in parts if count.total()) or "no labels")
    for name, number in sorted(found.other_saes.items()):
        print(f"{number:,} of them were made for another SAE ({name}); they are marked so wherever they stand")
    if found.n_not_stated:
        print(f"{found.n_not_stated:,} of them do not say which SAE they are of; they are taken as this one's, and marked so")


def _counted(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{n:,} {source}" for source, n in sorted(counts) if n)
