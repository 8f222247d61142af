"""The outcomes of `doctor`, `spaces` and `latents`, the runs that are made of a reward model, as tables for a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.cli import explanation_view, latent_view, tables
from core.config import Config, DoctorRunConfig, LatentsRunConfig
from core.doctor.report import Check, load_report
from core.explain.spaces import Spaces, load_spaces
from core.latents.find_pages import selected_latents
from core.latents.label_book import labels_of
from core.latents.pages import load_pages
from core.reward.folder import ModelFolder

Result = Mapping[str, Any]


def print_doctor_outcome(result: Result, config: Config) -> None:
    assert isinstance(config, DoctorRunConfig)
    report = load_report(Path(result["artefact"]))
    rows = [(check.name, check.status, check.figure) for check in report.checks]
    tables.table(f"Doctor: {config.model}", ("check", "status", "figure"), rows, left=3)
    print_remedies(report.checks)
    print(", ".join(f"{n} {status}" for status, n in report.counts.items()) + f"; report: {result['artefact']}")


def print_remedies(checks: Sequence[Check]) -> None:
    """For each check that does not pass: its bound, why it is there, and what to do."""
    for check in checks:
        if check.remedy:
            print(f"{check.status}: {check.name}\n  bound: {check.bound}\n  why: {check.reason}\n  to do: {check.remedy}")


def print_spaces_outcome(result: Result, config: Config) -> None:
    print_spaces(load_spaces(Path(result["artefact"])))
    print(f"points and figures: {result['artefact']}")


def print_spaces(spaces: Spaces) -> None:
    """A line a space: both figures, and how far the sparse space is ahead."""
    chance = "" if spaces.chance is None else f", chance {spaces.chance:.3f}"
    columns = ("space", "neighbours' accuracy", "sparse is ahead by", "silhouette", "sparse is ahead by")
    names = ("neighbours", "neighbours_lead", "silhouette", "silhouette_lead")
    rows = [
        (space, *(_cell(getattr(figures, name), sign="lead" in name or "sil" in name) for name in names)) for space, figures in spaces.figures.items()
    ]
    tables.table(f"Chosen against rejected, {spaces.n_held_out:,} held-out responses{chance}", columns, rows)
    if n_left_out := spaces.made.get("n_left_out", 0):
        print(f"{n_left_out:,} of {n_left_out + len(spaces.rows):,} known responses were not drawn (--points)")


def _cell(estimate: Any, *, sign: bool) -> str:
    form = "+.3f" if sign else ".3f"
    return "" if estimate is None else f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def print_latents_outcome(result: Result, config: Config) -> None:
    """The pages of the latents that were asked for, else an overview of those that the model selects."""
    assert isinstance(config, LatentsRunConfig)
    folder, pages = ModelFolder(config.model), load_pages(Path(result["artefact"]))
    labels = labels_of(folder)
    if config.latent:
        parts = [part for latent in config.latent for part in latent_view.page_parts(pages.page(latent), labels)]
        explanation_view.show([*parts, latent_view.read_on(pages)])
    else:
        explanation_view.show(list(latent_view.overview(pages, selected_latents(folder), labels)))
    print(f"pages of {len(pages):,} latents: {pages.folder}")
