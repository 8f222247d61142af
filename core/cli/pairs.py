"""`sparserm pairs`: look at preference pairs before anything is fitted on them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from core.cli import tables
from core.cli.options import add_command, add_options, override, print_json
from core.cli.runs import DETACH_HELP, detach
from core.config import DataConfig, PairsRunConfig
from core.files import read_json
from core.runs.progress import Display
from core.runs.store import Store

SHOWN, FIRST = 20, 5  # reasons that are listed, and the row numbers of each
EXAMPLES = {
    "pairs": "examples:\n  sparserm pairs --pairs pairs.jsonl\n  sparserm pairs --pairs table.csv --columns prompt=question,chosen=good,rejected=bad"
}


def add_pairs(commands: Any) -> None:
    """Adds `pairs`."""
    help_ = "check preference pairs: mapping, refused rows, duplicates, splits, and what wording or length alone can tell"
    parser = add_command(commands, "pairs", pairs_command, help_, EXAMPLES)
    add_options(parser, DataConfig(), "preference pairs")
    parser.add_argument("--detach", action="store_true", help=DETACH_HELP)


def pairs_command(arguments: argparse.Namespace, display: Display) -> None:
    from core.fit.pairs_check import REPORT, check_pairs
    from core.jobs.pairs import completed

    config = completed(PairsRunConfig(data=override(DataConfig(), vars(arguments))))
    if arguments.detach:
        detach("pairs", config, arguments, display)
        return
    found = check_pairs(config.data, Store(), display)
    report = read_json(found.file(REPORT))
    display.close()
    if arguments.json:
        print_json({"artefact": str(found.path), **report})
    else:
        print_report(report)
        print(f"pairs and report: {found.path}")


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
