"""The commands of `sparserm labels` that read the latents' pages, and make them where they are missing: auto, ask, score.

The options are checked first, and torch is only loaded where pages are made or labels are scored.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.by_name import load
from core.cli import tables
from core.cli.label_commands import opened, print_figures
from core.cli.options import override, print_json
from core.config import EndpointConfig, LatentsConfig
from core.errors import MissingError
from core.jobs.job import hold_device
from core.latents.find_pages import find_pages, selected_latents
from core.latents.label_auto import automatic_label
from core.latents.label_endpoint import ask_labels, check_endpoint
from core.latents.labels import AUTOMATIC, POOR, SOURCES, Label, Score
from core.latents.pages import LatentPages
from core.reward.folder import ModelFolder
from core.runs.progress import Display
from core.statistics.bootstrap import RESAMPLES, SEED, percentile_interval


def auto_command(arguments: argparse.Namespace, display: Display) -> None:
    pages_config: LatentsConfig = override(LatentsConfig(), vars(arguments))
    book = opened(arguments.model)[1]
    pages, latents = _pages(arguments, pages_config, display)
    labels: list[Label] = []
    for number, latent in enumerate(latents):
        display("label", number, len(latents))
        label = automatic_label(pages.page(latent), pages.snippets)
        labels += [label] if label else []
    display("label", len(latents), len(latents), labels=len(labels))
    book.add(AUTOMATIC, labels)
    print_figures(arguments, display, {"labels": len(labels), "nothing_distinctive": len(latents) - len(labels)})


def ask_command(arguments: argparse.Namespace, display: Display) -> None:
    config: EndpointConfig = override(EndpointConfig(), vars(arguments))
    check_endpoint(config)
    pages_config: LatentsConfig = override(LatentsConfig(), vars(arguments))
    book = opened(arguments.model)[1]
    pages, latents = _pages(arguments, pages_config, display)
    done = ask_labels(book, (pages.page(latent) for latent in latents), config, total=len(latents), progress=display)
    print_figures(arguments, display, dict(done.__dict__))


def score_command(arguments: argparse.Namespace, display: Display) -> None:
    pages_config: LatentsConfig = override(LatentsConfig(), vars(arguments))
    book = opened(arguments.model)[1]
    embed = load("core.latents.label_scores:SentenceModel")()
    pages, latents = _pages(arguments, pages_config, display)
    labels = [(label, latent) for latent in latents for label in book.all(latent)]
    if not labels:
        raise MissingError("there is no label to score", remedy="sparserm labels auto MODEL; or by hand: sparserm labels set MODEL LATENT TEXT")
    pairs = ((label, pages.page(latent)) for label, latent in labels)
    scores = load("core.latents.label_scores:score_labels")(pairs, pages.snippets, embed, total=len(labels), progress=display)
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


def scores_by_source(scores: Sequence[tuple[Label, Score]]) -> dict[str, dict[str, Any]]:
    """How many labels of each source were scored, their median with a 95 % bootstrap interval over labels, and how many score poorly."""
    figures = {}
    for source in SOURCES:
        values = np.array([score.value for label, score in scores if label.source == source])
        if len(values):
            drawn = np.median(np.random.default_rng(SEED).choice(values, (RESAMPLES, len(values))), axis=1)
            low, high = map(float, percentile_interval(drawn))
            figures[source] = {"n": len(values), "median": float(np.median(values)), "low": low, "high": high, "poor": int((values < POOR).sum())}
    return figures


def _pages(arguments: argparse.Namespace, config: LatentsConfig, display: Display) -> tuple[LatentPages, list[int]]:
    """The latents' pages of the reward model, made where they do not stand, and the latents that are meant."""
    folder = ModelFolder(arguments.model)
    pages = find_pages(folder, config, arguments.latent, every=arguments.all)
    if pages is None:
        with hold_device(folder.parts.backbone_config, folder.store, display.say):
            make_pages = load("core.latents.make_pages:make_pages")
            pages = make_pages(folder, config, arguments.latent, every=arguments.all, device=arguments.device, progress=display)
    return pages, list(pages) if arguments.all else arguments.latent or selected_latents(folder)
