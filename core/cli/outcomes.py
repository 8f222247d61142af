"""The outcome of a finished run, by its kind: as tables for a person (`print_outcome`), as one JSON object (`outcome_json`).

What is made of a reward model is printed by core.cli.model_outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.by_name import by_name, load
from core.cli import tables
from core.config import Config
from core.errors import MissingError, StoreError
from core.files import read_json

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
    if kind in ("doctor", "pairs"):
        return {"artefact": str(artefact), **read_json(artefact / "report.json")}
    if kind == "spaces":
        return {"artefact": str(artefact), **load("core.explain.spaces:load_spaces")(artefact).to_json()}
    if kind == "latents":
        return {"artefact": str(artefact), **load("core.latents.pages:load_pages")(artefact).corpus}
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


PRINTERS = {
    "fit": lambda result, config: tables.print_fit(result["outcome"]),
    "sweep": lambda result, config: tables.print_sweep(result["outcome"]),
    "sae-train": lambda result, config: tables.print_training(result["outcome"]),
    "align": lambda result, config: tables.print_align(result["outcome"]),
    "pairs": _print_pairs,
    "doctor": by_name("core.cli.model_outcomes:print_doctor_outcome"),
    "spaces": by_name("core.cli.model_outcomes:print_spaces_outcome"),
    "latents": by_name("core.cli.model_outcomes:print_latents_outcome"),
}
