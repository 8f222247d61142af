"""The outcome of a finished run, by its kind: as tables for a person (`print_outcome`), as one JSON object (`outcome_json`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cli import tables
from core.config import Config, DoctorRunConfig, LatentsRunConfig
from core.errors import MissingError, StoreError
from core.files import read_json

if TYPE_CHECKING:
    from core.doctor.report import Check
    from core.explain.spaces import Spaces

Result = Mapping[str, Any]
SHOWN, FIRST = 20, 5  # reasons that are listed, and the row numbers of each


def print_outcome(kind: str, result: Result, config: Config) -> None:
    """Prints what came out of a run (`result.json`); its mere figures where the artefact that holds the rest has been removed."""
    try:
        if kind in PRINTERS:
            PRINTERS[kind](result, config)
            return
    except (MissingError, StoreError, FileNotFoundError):
        pass
    tables.table(kind, ("what", "value"), tables.figures_of(result["outcome"]))


def outcome_json(kind: str, result: Result) -> dict[str, Any]:
    """One JSON object of the outcome. Raises StoreError where the artefact that holds it has been removed."""
    outcome, artefact = dict(result["outcome"]), Path(result["artefact"] or ".")
    if kind == "doctor":
        return {"artefact": str(artefact), **read_json(artefact / "report.json")}
    if kind == "pairs":
        return {"artefact": str(artefact), **read_json(artefact / "report.json")}
    if kind == "spaces":
        from core.explain.spaces import load_spaces

        return {"artefact": str(artefact), **load_spaces(artefact).to_json()}
    if kind == "latents":
        from core.latents.pages import load_pages

        return {"artefact": str(artefact), **load_pages(artefact).corpus}
    return outcome


# --- pairs ---------------------------------------------------------------------------------------------------------


def _print_pairs(result: Result, config: Config) -> None:
    print_report(read_json(Path(result["artefact"]) / "report.json"))
    print(f"pairs and report: {result['artefact']}")


def print_report(report: Mapping[str, Any]) -> None:
    """What came of reading, and how far shortcuts get."""
    data, splits = report["data"], report["split"]
    counted = [(name, f"{data[name]:,}") for name in ("n_rows", "n_used", "n_pairs", "n_prompts")]
    counted += [("n_pairs left out by --limit", f"{data['n_over_limit']:,}")] if data["n_over_limit"] else []
    counted += [(f"pairs in {name}", f"{n:,}") for name, n in splits["n_pairs"].items() if n]
    counted += [(f"{kind} duplicates", f"{data['duplicates'][f'n_{kind}_extra']:,}") for kind in ("exact", "near", "contradictory")]
    counted += [(f"prompts in {sides}", f"{n:,}") for sides, n in splits["shared_prompts"].items()]
    tables.table(f"{data['source']}, format {data['format']}", ("what", "number"), counted)
    if data["refused"]:
        reasons = list(data["refused_by_reason"].items())
        lines = [(reason, f"{n:,}", _first_rows(data["refused"], reason)) for reason, n in reasons[:SHOWN]]
        rest = [("other reasons", f"{sum(n for _, n in reasons[SHOWN:]):,}", "")] if len(reasons) > SHOWN else []
        tables.table(f"{len(data['refused']):,} of {data['n_rows']:,} rows refused", ("reason", "rows", "the first"), [*lines, *rest])
    rows = [(name, *tables.accuracy_cells(value), value["note"]) for name, value in report["shortcuts"].items()]
    split = next((value["split"] for value in report["shortcuts"].values()), "test")
    title = f"Without any model, on all {split} pairs (a fit leaves out those that its language model can't read)"
    tables.table(title, ("seen", "accuracy", "95 % interval", "pairs", "how"), rows)
    for note in (*data["notes"], *splits["notes"]):
        print(note)


def _first_rows(refused: Sequence[Mapping[str, Any]], reason: str) -> str:
    numbers = [str(row["row"]) for row in refused if f"{row['field']}: {row['reason']}" == reason]
    return ", ".join(numbers[:FIRST]) + (" ..." if len(numbers) > FIRST else "")


# --- doctor, spaces, latents ---------------------------------------------------------------------------------------


def _print_doctor(result: Result, config: Config) -> None:
    from core.doctor.report import load_report

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


def _print_spaces(result: Result, config: Config) -> None:
    from core.explain.spaces import load_spaces

    print_spaces(load_spaces(Path(result["artefact"])))
    print(f"points and figures: {result['artefact']}")


def print_spaces(found: Spaces) -> None:
    """A line a space: both figures, and how far the sparse space is ahead."""
    chance = "" if found.chance is None else f", chance {found.chance:.3f}"
    columns = ("space", "neighbours' accuracy", "sparse is ahead by", "silhouette", "sparse is ahead by")
    names = ("neighbours", "neighbours_lead", "silhouette", "silhouette_lead")
    rows = [(space, *(_cell(getattr(one, name), sign="lead" in name or "sil" in name) for name in names)) for space, one in found.figures.items()]
    tables.table(f"Chosen against rejected, {found.n_held_out:,} held-out responses{chance}", columns, rows)
    if n_left_out := found.made.get("n_left_out", 0):
        print(f"{n_left_out:,} of {n_left_out + len(found.rows):,} known responses were not drawn (--points)")


def _cell(estimate: Any, *, sign: bool) -> str:
    form = "+.3f" if sign else ".3f"
    return "" if estimate is None else f"{estimate.value:{form}} ({estimate.low:{form}} to {estimate.high:{form}})"


def _print_latents(result: Result, config: Config) -> None:
    """The pages of the latents that were asked for, else an overview of those that the model selects."""
    from core.cli import explanation_view, latent_view
    from core.latents.find_pages import selected_latents
    from core.latents.label_book import labels_of
    from core.latents.pages import load_pages
    from core.reward.folder import ModelFolder

    assert isinstance(config, LatentsRunConfig)
    folder, pages = ModelFolder(config.model), load_pages(Path(result["artefact"]))
    labels = labels_of(folder)
    if config.latent:
        parts = [part for latent in config.latent for part in latent_view.page_parts(pages.page(latent), labels)]
        explanation_view.show([*parts, latent_view.read_on(pages)])
    else:
        explanation_view.show(list(latent_view.overview(pages, selected_latents(folder), labels)))
    print(f"pages of {len(pages):,} latents: {pages.folder}")


PRINTERS = {
    "fit": lambda result, config: tables.print_fit(result["outcome"]),
    "sweep": lambda result, config: tables.print_sweep(result["outcome"]),
    "sae-train": lambda result, config: tables.print_training(result["outcome"]),
    "align": lambda result, config: tables.print_align(result["outcome"]),
    "pairs": _print_pairs,
    "doctor": _print_doctor,
    "spaces": _print_spaces,
    "latents": _print_latents,
}
