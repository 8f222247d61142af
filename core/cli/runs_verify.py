"""What `sparserm runs verify` does: a run is done again in a fresh temporary cache, and its artefacts are compared."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from core.cli import tables
from core.cli.options import print_json
from core.errors import ConfigError, StoreError
from core.jobs.job import devices_of, hold_device, input_hashes
from core.jobs.kinds import config_of, kind_of, load_job
from core.jobs.verify import verify
from core.runs.progress import Display
from core.runs.registry import find_run
from core.runs.store import Store


def verify_command(arguments: argparse.Namespace, display: Display) -> None:
    run = find_run(arguments.id)
    if not kind_of(run.kind).alone:
        problem = f"a run of kind {run.kind} reads what its fit left in the cache, and can't be done again in a fresh one"
        raise ConfigError(problem, remedy="verify the run of the fit")
    job, config = load_job(run.kind), config_of(run)
    with hold_device(job.backbone(config), Store(), display.say):
        report = verify(run, devices_of(job.backbone(config)), input_hashes(job, config), display, display.say)
    if arguments.json:
        print_json(report)
    else:
        _print_verified(report)
    if report["verdict"] == "different":
        raise StoreError(f"{run.id} came out differently", expected="the same artefacts", found=_differing(report), remedy=_remedy(report))


def _print_verified(report: Mapping[str, Any]) -> None:
    columns = ("artefact", "verdict", "files", "where")
    rows = [(entry["step"], entry["verdict"], str(len(entry["files"])), _where(entry)) for entry in report["artefacts"]]
    tables.table(f"{report['run']}: {report['verdict']}", columns, rows)
    if report["environment"]:
        changes = [(change["what"], str(change["then"]), str(change["now"])) for change in report["environment"]]
        tables.table("changed since", ("what", "then", "now"), changes)


def _where(entry: Mapping[str, Any]) -> str:
    differing = [file for file in entry["files"] if file["verdict"] not in ("identical", "not kept")]
    return "; ".join(f"{file['name']} {file['detail']}" + (f" by {file['largest']:.1e}" if file["largest"] else "") for file in differing)


def _differing(report: Mapping[str, Any]) -> str:
    return ", ".join(entry["step"] for entry in report["artefacts"] if entry["verdict"] in ("different", "close")) or "nothing to compare"


def _remedy(report: Mapping[str, Any]) -> str:
    changed = ", ".join(change["what"] for change in report["environment"])
    return f"changed since then: {changed}" if changed else "nothing around it changed: please report it"
