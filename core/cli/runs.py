"""`sparserm runs`: what runs in the background, and `--detach`, which puts it there.

A run is named by its id or any part of it that no other id has; where the name may be left out, the newest run is meant.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from core.cli import tables
from core.cli.follow import Follower, error_of, short
from core.cli.options import Parser, add_command, add_options, override, parts_of, print_json
from core.cli.outcomes import print_outcome
from core.cli.run_command import detach, follow_up_text, print_started
from core.config import Config
from core.jobs.follow_up import PREPARES, preparation
from core.jobs.kinds import SECTIONS, asked_config, config_of, kind_of, resolved_config
from core.jobs.start import resume
from core.runs.launch import cancel, remove, run_size
from core.runs.progress import Display, date, duration, size
from core.runs.registry import Run, find_run, summaries
from core.text_safety import for_terminal

STOPPED_LOOKING = 130
EXAMPLES = {
    "runs": "examples:\n  sparserm runs list\n  sparserm runs follow",
    "runs list": "example:\n  sparserm runs list",
    "runs show": "example:\n  sparserm runs show 4f1c2a",
    "runs follow": "example:\n  sparserm runs follow 4f1c2a",
    "runs log": "example:\n  sparserm runs log 4f1c2a",
    "runs cancel": "example:\n  sparserm runs cancel 4f1c2a",
    "runs resume": "example:\n  sparserm runs resume 4f1c2a",
    "runs rerun": "example:\n  sparserm runs rerun 4f1c2a --k 64 --epochs 50",
    "runs remove": "example:\n  sparserm runs remove 4f1c2a",
    "runs verify": "example:\n  sparserm runs verify 4f1c2a",
}


def add_runs(commands: Any) -> None:
    """Adds `runs` and its commands."""
    runs = add_command(commands, "runs", None, "look after runs in the background", EXAMPLES).add_subparsers(metavar="command", required=True)
    add_command(runs, "runs list", list_command, "list all runs, newest last", EXAMPLES)
    newest = {
        "runs show": (show_command, "show what a run was asked, made with, how it stands and what came out"),
        "runs follow": (follow_command, "show a run's progress until it ends, and end with its exit code; Ctrl-C leaves the run alone"),
        "runs log": (log_command, "print what a run's process has printed"),
    }
    for name, (run, help_) in newest.items():
        add_command(runs, name, run, help_, EXAMPLES).add_argument("id", metavar="ID", nargs="?", default="", help="run (default: the newest)")
    named: dict[str, tuple[Any, str]] = {
        "runs cancel": (cancel_command, "end a run within two seconds; finished steps are kept"),
        "runs resume": (resume_command, "continue a run that failed, was cancelled or interrupted: the same run, one attempt more"),
        "runs verify": ("core.cli.runs_verify:verify_command", "do a run again in a fresh temporary cache and compare every artefact"),
    }
    for name, (run, help_) in named.items():
        add_command(runs, name, run, help_, EXAMPLES).add_argument("id", metavar="ID", help="run")
    add_command(runs, "runs remove", remove_command, "remove the folders of runs that ended (their artefacts stay)", EXAMPLES).add_argument(
        "ids", metavar="ID", nargs="+", help="run"
    )
    rerun = add_command(runs, "runs rerun", rerun_command, "start a new run with another run's configuration and some options changed", EXAMPLES)
    rerun.add_argument("id", metavar="ID", help="run")
    rerun.add_argument("options", nargs=argparse.REMAINDER, metavar="OPTION ...", help="options of the command that the run stands for, after ID")


# --- looking -------------------------------------------------------------------------------------------------------


def list_command(arguments: argparse.Namespace, display: Display) -> None:
    rows = summaries()
    if arguments.json:
        print_json({"runs": rows})
    else:
        columns = ("run", "kind", "state", "progress", "time", "from")
        tables.table(f"{len(rows)} runs", columns, [(row["run"], row["kind"], row["state"], *_cells(row)) for row in rows])


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str]:
    progress, seconds = row["progress"], row["seconds"]
    at = "" if progress is None or row["state"] == "succeeded" else f"{progress['step']} {progress['fraction'] or 0:.0%}"
    parent, prepared_for = ((row[name] or "").rpartition("_")[2] for name in ("parent", "prepared_for"))
    return at, "" if seconds is None else duration(seconds), f"prepared for {prepared_for}" if prepared_for else parent


def show_command(arguments: argparse.Namespace, display: Display) -> None:
    run = find_run(arguments.id)
    config = config_of(run)
    summary, made_with = run.summary(), run.provenance()
    if arguments.json:
        more = {"path": str(run.path), "bytes": run_size(run), "asked": run.config(), "provenance": made_with, "result": run.result()}
        prepared = {"preparation": preparation(run)} if run.prepares_pages else {}
        print_json({**summary, **more, **prepared, "config": config.to_dict()})
        return
    tables.table(run.id, ("what", "value"), _head(run, summary))
    for title, part in (("configuration", config.to_dict()), ("made with", made_with or {})):
        tables.table(title, ("what", "value"), tables.figures_of(part))
    _print_end(run)


def _head(run: Run, summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The summary for a person: what is known of it."""
    progress, estimate = summary["progress"] or {}, summary["estimate"] or {}
    moments = [(name, date(summary[name])) for name in ("queued", "started", "ended") if summary[name]]
    memory = [(name, size(progress[name])) for name in ("rss", "peak") if progress.get(name)]
    expected = [(f"estimated {name}", size(estimate[name])) for name in ("memory", "disk") if estimate.get(name)]
    seconds = [("estimated time", duration(estimate["seconds"]))] if estimate.get("seconds") else []
    at, took, _ = _cells(summary)
    state = [("state", f"{summary['state']}, attempt {summary['attempt']}"), ("progress", at), ("time", took), ("made from", summary["parent"] or "")]
    state += [("prepared for", summary["prepared_for"] or ""), *_prepared(run)]
    places = [("devices", ", ".join(summary["devices"] or ())), ("result", summary["artefact"] or ""), ("folder", str(run.path))]
    return [(name, value) for name, value in (*state, *moments, *seconds, *expected, *memory, *places) if value]


def _prepared(run: Run) -> list[tuple[str, str]]:
    """Of a fit that prepares pages: what follows it, and how long it took from asking for the fit to the pages."""
    if not run.prepares_pages:
        return []
    prepared = preparation(run)
    rows = [(f"prepares {kind_of(row['kind']).name}", f"{row['run'].rpartition('_')[2]}, {row['state']}") for row in prepared["runs"]]
    names = {"first_explanation": "first explanation after", "all_pages": "all pages after"}
    return [*rows, *((name, duration(prepared[key])) for key, name in names.items() if prepared[key] is not None)]


def log_command(arguments: argparse.Namespace, display: Display) -> None:
    run = find_run(arguments.id)
    text = run.log.read_text(encoding="utf-8", errors="replace")
    if arguments.json:
        print_json({"run": run.id, "log": text})
    else:
        print(for_terminal(text), end="")


def follow_command(arguments: argparse.Namespace, display: Display) -> int:
    run = find_run(arguments.id)
    try:
        status = Follower(run, display, as_json=arguments.json).until_the_end()
    except KeyboardInterrupt:
        display.say(f"the run goes on; sparserm runs cancel {short(run)} ends it")
        return STOPPED_LOOKING
    if arguments.json:
        print_json(run.summary())
    else:
        _print_end(run)
    return status.exit_code


def _print_end(run: Run) -> None:
    """What came out, as the command itself prints it; or why nothing did."""
    status, result = run.status(), run.result()
    if status.state == "succeeded" and result:
        print_outcome(run.kind, result, config_of(run))
        if run.prepares_pages:
            print(follow_up_text(run))
    elif status.error:
        print(for_terminal(str(error_of(run, status, f"sparserm runs log {short(run)}"))))
    else:
        print(f"{run.id}: {status.state}")


# --- doing ---------------------------------------------------------------------------------------------------------


def cancel_command(arguments: argparse.Namespace, display: Display) -> None:
    run = find_run(arguments.id)
    status = cancel(run)
    if arguments.json:
        print_json(run.summary())
    else:
        print(f"{run.id}: {status.state}")


def resume_command(arguments: argparse.Namespace, display: Display) -> None:
    run = find_run(arguments.id)
    resume(run)
    print_started(run, arguments, display)


def remove_command(arguments: argparse.Namespace, display: Display) -> None:
    freed = {run.id: remove(run) for run in [find_run(name) for name in arguments.ids]}
    if arguments.json:
        print_json({"removed": sorted(freed), "bytes": sum(freed.values())})
    else:
        print(f"{len(freed)} runs removed, {size(sum(freed.values()))} freed")


def rerun_command(arguments: argparse.Namespace, display: Display) -> None:
    run = find_run(arguments.id)
    parser = Parser(prog=f"sparserm runs rerun {arguments.id}", add_help=True)
    parser.add_argument("--json", action="store_true", default=arguments.json)
    parser.add_argument("--debug", action="store_true", default=arguments.debug)
    if run.kind in PREPARES:
        parser.add_argument("--prepare-pages", action=argparse.BooleanOptionalAction, default=run.prepares_pages)
    else:
        parser.set_defaults(prepare_pages=False)
    for path, part in parts_of(config_of(run)):
        add_options(parser, part, SECTIONS[path.rpartition(".")[2]])
    given = parser.parse_args(arguments.options)
    detach(run.kind, changed(run, vars(given)), given, display, parent=run.id, prepare_pages=given.prepare_pages)


def changed(run: Run, given: Mapping[str, Any]) -> Config:
    """The run's config, as it was filled in, with these options changed; an SAE that was filled in is left open where they change model or layer."""
    asked: Config = override(asked_config(run), given)
    resolved = resolved_config(run)
    if resolved is None:
        return asked
    config: Config = override(resolved, given)
    return config if _read_from(config) == _read_from(resolved) else asked


def _read_from(config: Any) -> tuple[Any, ...]:
    """Model and layers: what an SAE is filled in for."""
    fit = getattr(config, "fit", config)
    if not hasattr(fit, "backbone"):  # what is made of a reward model reads what that names
        return ()
    return fit.backbone.model, fit.backbone.revision, fit.backbone.layer, getattr(config, "layers", ())
