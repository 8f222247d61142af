"""`sparserm cache`: the artefacts in the cache."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core.cli import tables
from core.cli.options import add_command, print_json
from core.errors import StoreError
from core.runs.progress import Display, date, size
from core.runs.store import Artefact, Store

EXAMPLES = {
    "cache": "examples:\n  sparserm cache list\n  sparserm cache verify",
    "cache list": "example:\n  sparserm cache list --json",
    "cache verify": "example:\n  sparserm cache verify",
    "cache clean": "example:\n  sparserm cache clean --everything",
}


def add_cache(commands: Any) -> None:
    """Adds `cache` and its commands."""
    cache = add_command(commands, "cache", None, "look after the artefacts in the cache", EXAMPLES).add_subparsers(metavar="command", required=True)
    add_command(cache, "cache list", list_command, "list artefacts, newest last", EXAMPLES)
    add_command(cache, "cache verify", verify_command, "read every byte of every artefact and move damaged ones aside", EXAMPLES)
    clean = add_command(cache, "cache clean", clean_command, "remove what was left half-done or set aside", EXAMPLES)
    clean.add_argument("--everything", action="store_true", help="remove all artefacts too (models stay)")


def list_command(arguments: argparse.Namespace, display: Display) -> None:
    rows = sorted((_listed(path, content) for path, content in Store().all()), key=lambda row: row["created"] or 0.0)
    total = sum(row["bytes"] for row in rows)
    if arguments.json:
        print_json({"artefacts": rows, "bytes": total})
        return
    shown = [(row["step"], date(row["created"]) if row["created"] else "damaged", size(row["bytes"]), row["path"]) for row in rows]
    tables.table(f"{len(rows)} artefacts, {size(total)}", ("step", "made", "size", "folder"), shown)


def _listed(path: Path, content: Artefact | StoreError) -> dict[str, Any]:
    created = content.manifest["time_created"] if isinstance(content, Artefact) else None
    n_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {"step": path.parent.parent.name, "path": str(path), "bytes": n_bytes, "created": created}


def verify_command(arguments: argparse.Namespace, display: Display) -> None:
    checked = list(Store().verify())
    damaged = {str(path): error for path, error in checked if error}
    for error in damaged.values():
        display.say(str(error))
    if arguments.json:
        print_json({"artefacts": len(checked), "damaged": sorted(damaged)})
    else:
        print(f"{len(checked)} artefacts read, {len(damaged)} damaged")
    if damaged:
        raise StoreError(f"{len(damaged)} of {len(checked)} artefacts were damaged and moved aside", remedy="the next run computes them again")


def clean_command(arguments: argparse.Namespace, display: Display) -> None:
    freed = Store().clean(everything=arguments.everything)
    if arguments.json:
        print_json({"bytes": freed})
    else:
        print(f"{size(freed)} freed")
