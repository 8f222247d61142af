"""The `sparserm` command: fit, score, sae train, sweep, cache.

Every command is a thin shell: options become a config, the config goes to `core.pipeline`, the outcome is printed for a person or as one JSON
line. Errors are printed as problem, expected, found and remedy; the exit code tells the kind (core/errors.py). Start-up is a feature: nothing
heavier than the configs is imported before a command runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core import console
from core.config import BackboneConfig, FitConfig, SAETrainConfig, SweepConfig
from core.errors import Cancelled, ConfigError, SparseRMError, StoreError
from core.options import add_options, override
from core.runs.store import Artefact, Store

INTERRUPTED = 130
EMBEDDED = "smollm2-135m"
EXAMPLES = {
    "": "examples:\n  sparserm fit --preset tiny\n  sparserm fit --pairs pairs.jsonl --layer 16 --sae my_sae --k 32",
    "fit": "example:\n  sparserm fit --pairs TruthfulQA.csv --protocol truthfulqa --layer 16 --sae my_sae --k 32 --out my_reward_model",
    "score": "example:\n  sparserm score my_reward_model answers.jsonl --out scores.jsonl",
    "sae": "example:\n  sparserm sae train --layer 16",
    "sae train": "example:\n  sparserm sae train --layer 16 --width 4608 --k 32 --tokens 1200000",
    "sweep": "example:\n  sparserm sweep --pairs pairs.jsonl --layers 9,16 --saes sae_9,sae_16 --ks 8,32,128",
    "cache": "examples:\n  sparserm cache list\n  sparserm cache verify",
    "cache list": "example:\n  sparserm cache list --json",
    "cache verify": "example:\n  sparserm cache verify",
    "cache clean": "example:\n  sparserm cache clean --everything",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. 0 done, 1 to 8 an error that a person can mend (core/errors.py), 130 interrupted."""
    arguments = build_parser().parse_args(argv)
    with console.Display(quiet=arguments.json) as display:
        console.log_to(display.say)
        code, said = _run(arguments, display)
    if said:
        print(said, file=sys.stderr)
    return code


def _run(arguments: argparse.Namespace, display: console.Display) -> tuple[int, str]:
    """Exit code, and what to say to the person."""
    try:
        arguments.run(arguments, display)
    except (KeyboardInterrupt, Cancelled):
        return INTERRUPTED, "stopped; finished steps are kept, and the same command goes on from there"
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read our output has gone: the rest is for nobody
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        return _told(error)
    return 0, ""


def _told(error: Exception) -> tuple[int, str]:
    if isinstance(error, SparseRMError):
        return error.exit_code, str(error)
    if isinstance(error, OSError):
        return 1, f"{error.strerror or error}\n  found: {error.filename or type(error).__name__}"
    return 1, f"unexpected {type(error).__name__}\n  found: {error}\n  to do: this is a bug; --debug shows where, please report it"


# --- parser --------------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from core.backbone.presets import PRESETS

    parser = _Parser(prog="sparserm", description="SparseRM reward models: fit, score, compare.", epilog=EXAMPLES[""])
    commands = parser.add_subparsers(metavar="command", required=True)
    defaults = PRESETS[EMBEDDED]

    fit = _command(commands, "fit", fit_command, "fit a reward model, with every control, from preference pairs")
    fit.add_argument("--preset", choices=sorted(PRESETS), help=f"start from this configuration; options override it (default: {EMBEDDED})")
    fit.add_argument("--out", metavar="DIR", type=Path, help="also copy the reward model to this new folder")
    _add_fit_options(fit, defaults)

    score = _command(commands, "score", score_command, "score pairs or responses from a file with a fitted reward model")
    score.add_argument("model", metavar="MODEL", help="folder of a reward model or of one of its controls")
    score.add_argument("input", metavar="FILE", type=Path, help="JSONL rows with prompt, chosen, rejected, or with prompt, response")
    score.add_argument("--out", metavar="FILE", type=Path, help="write the scored rows here (default: standard output)")
    score.add_argument("--device", metavar="TEXT", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")

    sae = _command(commands, "sae", None, "sparse autoencoders").add_subparsers(metavar="command", required=True)
    train = _command(sae, "sae train", train_command, "train a sparse autoencoder on a backbone's activations")
    add_options(train, SAETrainConfig(), "autoencoder and training")
    add_options(train, BackboneConfig(), "backbone")

    sweep = _command(commands, "sweep", sweep_command, "compare layers and K on validation, from one extraction")
    sweep.add_argument("--preset", choices=sorted(PRESETS), help=f"start from this configuration; options override it (default: {EMBEDDED})")
    add_options(sweep, SweepConfig(), "what is compared")
    _add_fit_options(sweep, defaults)

    cache = _command(commands, "cache", None, "look after the artefacts in the cache").add_subparsers(metavar="command", required=True)
    _command(cache, "cache list", list_command, "list artefacts, newest last")
    _command(cache, "cache verify", verify_command, "read every byte of every artefact and move damaged ones aside")
    clean = _command(cache, "cache clean", clean_command, "remove what was left half-done or set aside")
    clean.add_argument("--everything", action="store_true", help="remove all artefacts too (models stay)")
    return parser


class _Parser(argparse.ArgumentParser):
    """argparse with readable epilogs, and no abbreviations: scripts that use them would break when an option is added."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)


def _command(parent: Any, name: str, run: Callable[..., None] | None, help: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = parent.add_parser(name.split()[-1], help=help, description=help + ".", epilog=EXAMPLES[name])
    if run:
        parser.set_defaults(run=run)
        parser.add_argument("--json", action="store_true", help="one JSON line on standard output, for machines")
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _add_fit_options(parser: argparse.ArgumentParser, defaults: FitConfig) -> None:
    titles = {"preference pairs": defaults.data, "backbone": defaults.backbone, "sparse autoencoder": defaults.sae, "selection": defaults.selection}
    for title, part in {**titles, "head": defaults.head, "controls": defaults}.items():
        add_options(parser, part, title)


def fit_config(arguments: argparse.Namespace) -> FitConfig:
    """Preset and options as one config. Without a preset the embedded model's holds, unless another model is named. Raises ConfigError."""
    from core.backbone.presets import preset

    given = vars(arguments)
    named = arguments.preset or (EMBEDDED if given.get("model", EMBEDDED) == EMBEDDED else "")
    config: FitConfig = override(preset(named) if named else FitConfig(), given)
    return config


# --- commands ------------------------------------------------------------------------------------------------------


def fit_command(arguments: argparse.Namespace, display: console.Display) -> None:
    if arguments.out and arguments.out.exists():
        raise ConfigError(f"{arguments.out} exists already", remedy="give --out a new folder, or remove this one")
    from core.defaults import complete

    store = Store()
    config = complete(fit_config(arguments), store, display.say)
    from core.pipeline import copy_out, fit

    outcome = fit(config, store, display)
    path = copy_out(outcome.artefact, arguments.out) if arguments.out else outcome.artefact
    if arguments.json:
        _print_json({**outcome.to_json(), "artefact": str(path)})
    else:
        console.print_fit(outcome, path)


def sweep_command(arguments: argparse.Namespace, display: console.Display) -> None:
    from core.defaults import complete_sweep

    store = Store()
    config: SweepConfig = override(SweepConfig(fit=fit_config(arguments)), vars(arguments))
    configs = complete_sweep(config, store, display.say)
    from core.pipeline import sweep

    outcome = sweep(configs, store, display)
    if arguments.json:
        _print_json(outcome.to_json())
        return
    console.print_curve("Validation accuracy", outcome.points)
    best = outcome.best
    print(f"best on validation: layer {best['layer']}, K = {best['k']}, {' '.join(console.accuracy_cells(best))} pairs")


def train_command(arguments: argparse.Namespace, display: console.Display) -> None:
    from core.backbone.sae_training import CARD, train_sae

    folder = train_sae(override(SAETrainConfig(), vars(arguments)), progress=display)
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    if arguments.json:
        _print_json({"artefact": str(folder), "card": card})
    else:
        console.table("Sparse autoencoder", ("figure", "value"), console.figures_of(card["measured"]))
        print(f"SAE: {folder}")


def score_command(arguments: argparse.Namespace, display: console.Display) -> None:
    from core.reward.scoring import score_file

    report = score_file(arguments.model, arguments.input, arguments.out, device=arguments.device, progress=display)
    if arguments.json and arguments.out:
        _print_json(report)
        return
    for row in report["refused"]:
        display.say(f"row {row['row']} is left out: {row['field']}: {row['reason']}")
    accuracy = f", accuracy {' '.join(console.accuracy_cells(report['pairs']))} pairs" if "pairs" in report else ""
    display.say(f"{report['n_scored']} {report['kind']} scored{accuracy}")


def list_command(arguments: argparse.Namespace, display: console.Display) -> None:
    rows = sorted((_listed(path, found) for path, found in Store().all()), key=lambda row: row["created"] or 0.0)
    total = sum(row["bytes"] for row in rows)
    if arguments.json:
        _print_json({"artefacts": rows, "bytes": total})
        return
    shown = [(row["step"], console.date(row["created"]) if row["created"] else "damaged", console.size(row["bytes"]), row["path"]) for row in rows]
    console.table(f"{len(rows)} artefacts, {console.size(total)}", ("step", "made", "size", "folder"), shown)


def _listed(path: Path, found: Artefact | StoreError) -> dict[str, Any]:
    created = found.manifest["time_created"] if isinstance(found, Artefact) else None
    n_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {"step": path.parent.parent.name, "path": str(path), "bytes": n_bytes, "created": created}


def verify_command(arguments: argparse.Namespace, display: console.Display) -> None:
    found = list(Store().verify())
    damaged = {str(path): error for path, error in found if error}
    for error in damaged.values():
        display.say(str(error))
    if arguments.json:
        _print_json({"artefacts": len(found), "damaged": sorted(damaged)})
    else:
        print(f"{len(found)} artefacts read, {len(damaged)} damaged")
    if damaged:
        raise StoreError(f"{len(damaged)} of {len(found)} artefacts were damaged and moved aside", remedy="the next run computes them again")


def clean_command(arguments: argparse.Namespace, display: console.Display) -> None:
    freed = Store().clean(everything=arguments.everything)
    if arguments.json:
        _print_json({"bytes": freed})
    else:
        print(f"{console.size(freed)} freed")


def _print_json(value: Mapping[str, Any]) -> None:
    print(json.dumps(value, allow_nan=False), flush=True)


if __name__ == "__main__":
    sys.exit(main())
