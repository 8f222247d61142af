"""`sparserm pairs`: look at preference pairs before anything is fitted on them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from core import console
from core.config import DataConfig, PairsRunConfig
from core.options import add_command, add_options, override, print_json
from core.runs.store import Store
from core.runs_cli import DETACH_HELP, detach

SHOWN = 20  # reasons that are listed
EXAMPLES = {
    "pairs": "examples:\n  sparserm pairs --pairs pairs.jsonl\n  sparserm pairs --pairs table.csv --columns prompt=question,chosen=good,rejected=bad"
}


def add_pairs(commands: Any) -> None:
    """Adds `pairs`."""
    help_ = "check preference pairs: mapping, refused rows, duplicates, splits, and what wording or length alone can tell"
    parser = add_command(commands, "pairs", pairs_command, help_, EXAMPLES)
    add_options(parser, DataConfig(), "preference pairs")
    parser.add_argument("--detach", action="store_true", help=DETACH_HELP)


def pairs_command(arguments: argparse.Namespace, display: console.Display) -> None:
    from core.pairs_check import REPORT, check_pairs
    from core.pairs_job import completed

    config = completed(PairsRunConfig(data=override(DataConfig(), vars(arguments))))
    if arguments.detach:
        detach("pairs", config, arguments, display)
        return
    found = check_pairs(config.data, Store(), display)
    report = json.loads(found.file(REPORT).read_text(encoding="utf-8"))
    display.close()
    if arguments.json:
        print_json({"artefact": str(found.path), **report})
    else:
        print_report(report)
        print(f"pairs and report: {found.path}")


def print_report(report: Mapping[str, Any]) -> None:
    """What came of reading, and how far shortcuts get."""
    data, split = report["data"], report["split"]
    counted = [(name, f"{data[name]:,}") for name in ("n_rows", "n_used", "n_pairs", "n_prompts")]
    counted += [(f"pairs in {name}", f"{n:,}") for name, n in split["n_pairs"].items() if n]
    counted += [(f"{kind} duplicates", f"{data['duplicates'][f'n_{kind}_extra']:,}") for kind in ("exact", "near", "contradictory")]
    counted += [(f"prompts in {sides}", f"{n:,}") for sides, n in split["shared_prompts"].items()]
    console.table(f"{data['source']}, format {data['format']}", ("what", "number"), counted)
    if data["refused"]:
        reasons = list(data["refused_by_reason"].items())[:SHOWN]
        console.table(f"{len(data['refused']):,} rows refused", ("reason", "rows"), [(reason, f"{n:,}") for reason, n in reasons])
    rows = [(name, *console.accuracy_cells(value), value["note"]) for name, value in report["shortcuts"].items()]
    console.table("Without any model", ("seen", "accuracy", "95 % interval", "pairs", "how"), rows)
    for note in (*data["notes"], *split["notes"]):
        print(note)
