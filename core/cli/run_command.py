"""Every long command is a run: it is launched and followed, and its outcome is printed when it has succeeded.

`--detach` does not follow. Ctrl-C cancels the run, from the moment at which it is launched; a second Ctrl-C leaves at
once. A command whose terminal is closed or that is killed leaves the run alone: `sparserm runs follow` shows it, as
does the page Runs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from core.cli.config_file import read_config_file, with_values, write_config_file
from core.cli.follow import Follower, error_of, short
from core.cli.options import HelpAll, add_command, add_config_options, override, print_json
from core.cli.outcomes import outcome_json, print_outcome
from core.config import Config
from core.errors import Cancelled, ConfigError
from core.jobs.follow_up import PREPARES, follow_up_names, follow_up_runs
from core.jobs.kinds import EMBEDDED, asked_config, config_of, kind_of, load_job
from core.jobs.start import launch
from core.runs.launch import cancel, wait_started
from core.runs.progress import Display
from core.runs.registry import Run, find_run
from core.runs.store import Store, cache_root

DETACH_HELP = "only start the run, and print its id"
PREPARE_HELP = "afterwards make the doctor's report, the spaces and the latents' pages, by runs in the background"
LOG_TAIL = 8000  # characters of a run's log that --debug shows
Save = Callable[[Run, argparse.Namespace, Display], Mapping[str, Any]]


def add_run_command(
    parent: Any, kind: str, help: str, examples: Mapping[str, str], run: Callable[..., int | None] | None = None
) -> argparse.ArgumentParser:
    """Adds the command of a kind of run with all its options. `run` stands for `run_command` where a command does more."""
    entry = kind_of(kind)
    parser = add_command(parent, " ".join(entry.command), run or run_command, help, examples)
    parser.set_defaults(kind=kind, save=None, prepare_pages=False)
    if kind in PREPARES:
        parser.add_argument("--prepare-pages", action="store_true", help=PREPARE_HELP)
    if entry.first_fields:
        parser.add_argument("--help-all", action=HelpAll, help="show every option and exit")
    if entry.presets:
        parser.add_argument("--preset", choices=sorted(entry.presets), default="", help=f"start from this (default: {entry.default_preset})")
    parser.add_argument("--config", metavar="FILE", type=Path, help="set what this .toml or .json file sets")
    parser.add_argument("--save-config", metavar="FILE", type=Path, help="write all fields to this .toml or .json file, and end")
    parser.add_argument("--detach", action="store_true", help=DETACH_HELP)
    parser.add_argument("--estimate", action="store_true", help="say what it will take, and end")
    add_config_options(parser, entry)
    return parser


def config_from(arguments: argparse.Namespace) -> Config:
    """The config of a command: its preset, what the file of `--config` sets, then the options. Raises ConfigError.

    Without a preset the embedded model's holds, unless another language model is named.
    """
    entry, given = kind_of(arguments.kind), vars(arguments)
    path: Path | None = arguments.config
    values = read_config_file(path) if path else {}
    model = given.get("model", "") if not entry.argument else ""
    of_file = values.get("fit", values).get("backbone", {}) if entry.presets else {}
    model = model or (of_file.get("model", "") if isinstance(of_file, Mapping) else "")
    base = entry.base(getattr(arguments, "preset", ""), model or EMBEDDED)
    config: Config = override(with_values(base, values, str(path)), given)
    return config


def run_command(arguments: argparse.Namespace, display: Display) -> int:
    """Launches and follows the run that the arguments describe, or does what `--save-config`, `--estimate` or `--detach` ask for."""
    config = config_from(arguments)
    if arguments.save_config:
        write_config_file(arguments.save_config, config)
        display.say(f"written: {arguments.save_config}")
    elif arguments.estimate:
        print_estimate(arguments.kind, config, arguments, display)
    elif arguments.detach:
        detach(arguments.kind, config, arguments, display, prepare_pages=arguments.prepare_pages)
    else:
        load_job(arguments.kind).check(config, Store())
        return follow_and_print(arguments.kind, config, arguments, display)
    return 0


def print_estimate(kind: str, config: Config, arguments: argparse.Namespace, display: Display) -> None:
    """Prints what a run would take."""
    store, job = Store(), load_job(kind)
    estimate = job.plan(job.complete(config, store, display.say), store, display)
    display.close()
    if arguments.json:
        print_json(vars(estimate))
    else:
        print(estimate)


def detach(
    kind: str, config: Config, arguments: argparse.Namespace, display: Display, *, parent: str | None = None, prepare_pages: bool = False
) -> None:
    """Starts a run and prints its id. Ctrl-C before the id is printed cancels the run."""
    _with_launched(
        lambda: find_run(launch(kind, config, parent=parent, prepare_pages=prepare_pages)), lambda run: print_started(run, arguments, display)
    )


def print_started(run: Run, arguments: argparse.Namespace, display: Display) -> None:
    """Waits until a run's worker has started, and prints the run's id."""
    wait_started(run)
    if arguments.json:
        print_json(run.summary())
    else:
        display.say(f"started; sparserm runs follow {short(run)}" + (f"; then {following(run)} by themselves" if run.prepares_pages else ""))
        print(run.id)


# --- following one's own run ---------------------------------------------------------------------------------------


def follow_and_print(kind: str, config: Config, arguments: argparse.Namespace, display: Display) -> int:
    """Launches a run, follows it to its end, copies and prints its outcome.

    Returns the exit code; raises the error that the run met, and Cancelled.
    """
    run = _with_launched(lambda: find_run(launch(kind, config, prepare_pages=arguments.prepare_pages)), partial(_follow, display=display))
    status = run.status()
    if status.state == "cancelled":
        raise Cancelled
    if status.state != "succeeded":
        if arguments.debug:
            print(run.log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:], file=sys.stderr)
        raise error_of(run, status, "--debug")
    save: Save | None = arguments.save
    changes = save(run, arguments, display) if save else {}
    display.close()
    result = run.result() or {}
    result = {**result, "outcome": {**result["outcome"], **changes}}
    if arguments.json:
        follow_ups = {"follow_ups": {each.kind: each.id for each in follow_up_runs(run)}} if run.prepares_pages else {}
        print_json({**outcome_json(run.kind, result), **follow_ups})
    else:
        print_outcome(run.kind, result, config_of(run))
        if run.prepares_pages:
            print(follow_up_text(run))
    return exit_code(run.kind, result)


def following(run: Run) -> str:
    """`Doctor, Spaces and Latents' pages follow`: what will follow a fit."""
    return f"{' and '.join(', '.join(follow_up_names(asked_config(run))).rsplit(', ', 1))} follow"


def follow_up_text(run: Run) -> str:
    """What goes on in the background after a fit that prepares pages and how to follow or end it; or how it ended."""
    runs = follow_up_runs(run)
    live = [each for each in runs if each.live()]
    if not runs:
        return "pages: nothing follows; what they need stands in the cache already"
    if not live:
        return "pages: " + ", ".join(f"{kind_of(each.kind).name} ({short(each)}) {each.status().state}" for each in runs)
    names, first = ", ".join(f"{kind_of(each.kind).name} ({short(each)})" for each in runs), short(live[0])
    commands = {"runs list": "how far each is", f"runs follow {first}": "watch one", f"runs cancel {first}": "end one; the others go on"}
    lines = [f"  sparserm {command:<{12 + len(first)}}  {what}" for command, what in commands.items()]
    return "\n".join([f"pages: prepared in the background by runs of their own, one after another: {names}", *lines])


def exit_code(kind: str, result: Mapping[str, Any]) -> int:
    """9 where a check of the doctor fails, else 0."""
    return 9 if kind == "doctor" and result["outcome"]["status"] == "fail" else 0


def _follow(run: Run, display: Display) -> None:
    """Shows the run until it ends. A closed standard error does not matter to the run."""
    try:
        Follower(run, display).until_the_end()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        _follow(run, display)


def _with_launched(start: Callable[[], Run], use: Callable[[Run], None]) -> Run:
    """The run that `start` launches, after `use` of it. Ctrl-C and SIGTERM from the launch on cancel the run.

    SIGTERM, by which supervisors end a command, is taken as Ctrl-C: nobody would look for a run that goes on. Raises KeyboardInterrupt where the
    run was cancelled before `use` ended.
    """
    run = None
    try:
        with _handled(signal.default_int_handler, signal.SIGTERM):
            noted: list[int] = []
            # An interrupt during the launch would leave a run that nobody can name; it acts as soon as the run is known.
            with _handled(lambda number, _: noted.append(number), signal.SIGINT, signal.SIGTERM):
                run = start()
            if noted:
                raise KeyboardInterrupt
            use(run)
    except KeyboardInterrupt:
        if run is None:
            raise
        with contextlib.suppress(ConfigError):  # it ended just now
            cancel(run)
        if run.status().state == "cancelled":
            raise
    return run


@contextlib.contextmanager
def _handled(handler: Callable[[int, Any], Any], *numbers: int) -> Iterator[None]:
    """These signals are taken by `handler`, but for those that the process ignores. Outside the main thread nothing changes."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)


def check_new_folder(arguments: argparse.Namespace, remedy: str) -> None:
    """Raises ConfigError where `--out` can't be a new folder. `remedy`: what to do instead where the run is detached."""
    if arguments.out and arguments.out.exists():
        raise ConfigError(f"{arguments.out} exists already", remedy="give --out a new folder, or remove this one")
    if arguments.out and arguments.detach:
        raise ConfigError("--out does not go with --detach", remedy=remedy)


def store_of(run: Run) -> Store:
    """The store of the cache that a run lies in."""
    return Store(run.root if run.root != cache_root().resolve() else cache_root())
