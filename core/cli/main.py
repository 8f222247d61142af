"""The `sparserm` command: fit, score, sae train, sweep, cache; align, explain, runs, doctor, spaces, latents, labels and serve in core.*_cli.

Every command is a thin shell: options become a config, the config goes to `core.fit.pipeline`, the outcome is printed for a person or as one JSON
line. Errors are printed as problem, expected, found and remedy; the exit code tells the kind (core/errors.py). Start-up is a feature: nothing
heavier than the configs is imported before a command runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.cli import tables
from core.cli.align import add_align
from core.cli.doctor import add_doctor
from core.cli.explain import add_explain
from core.cli.labels import add_labels
from core.cli.latents import add_latents
from core.cli.options import Parser, add_command, add_options, override, print_json
from core.cli.pairs import add_pairs
from core.cli.runs import DETACH_HELP, add_runs, detach
from core.cli.serve import add_serving
from core.config import BackboneConfig, FitConfig, SAETrainConfig, SampleConfig, SweepConfig
from core.errors import Cancelled, ConfigError, SparseRMError, StoreError, error_to_dict
from core.files import read_json
from core.runs.progress import Display, date, log_to, size
from core.runs.store import Artefact, Store
from core.text_safety import for_terminal

INTERRUPTED = 130
EMBEDDED = "smollm2-135m"
EXAMPLES = {
    "": "examples:\n  sparserm fit --preset tiny\n  sparserm fit --pairs pairs.jsonl --layer 19 --sae my_sae --k 32",
    "fit": "example:\n  sparserm fit --pairs TruthfulQA.csv --protocol truthfulqa --layer 19 --sae my_sae --k 32 --out my_reward_model",
    "score": "example:\n  sparserm score my_reward_model answers.jsonl --out scores.jsonl",
    "sae": "example:\n  sparserm sae train --layer 16",
    "sae train": "example:\n  sparserm sae train --layer 16 --width 4608 --k 32 --tokens 1200000",
    "sae sample": "example:\n  sparserm sae sample --prompts pairs.jsonl --per-prompt 2 --out answers.jsonl",
    "sweep": "example:\n  sparserm sweep --pairs pairs.jsonl --layers 9,16 --saes sae_9,sae_16 --ks 8,32,128",
    "cache": "examples:\n  sparserm cache list\n  sparserm cache verify",
    "cache list": "example:\n  sparserm cache list --json",
    "cache verify": "example:\n  sparserm cache verify",
    "cache clean": "example:\n  sparserm cache clean --everything",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. 0 done, 1 to 8 an error to mend (core/errors.py), 9 a failing check, 130 stopped."""
    arguments = build_parser().parse_args(argv)
    with Display(quiet=arguments.json) as display:
        log_to(display.say, display.warn)
        code, said = _run(arguments, display)
    if said:
        print(for_terminal(said), file=sys.stderr)
    return code


def _run(arguments: argparse.Namespace, display: Display) -> tuple[int, str]:
    """Exit code, and what to say to the person."""
    try:
        return arguments.run(arguments, display) or 0, ""
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
    texts = error_to_dict(error)
    remedy = texts["remedy"].replace("the log shows where", "--debug shows where")
    return 1, f"{texts['problem']}\n  found: {texts['found']}\n  to do: {remedy}"


# --- parser --------------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from core.backbone.presets import PRESETS

    parser = Parser(prog="sparserm", description="SparseRM reward models: fit, score, compare.", epilog=EXAMPLES[""])
    commands = parser.add_subparsers(metavar="command", required=True)
    defaults = PRESETS[EMBEDDED]

    fit = add_command(commands, "fit", fit_command, "fit a reward model, with every control, from preference pairs", EXAMPLES)
    fit.add_argument("--preset", choices=sorted(PRESETS), help=f"start from this configuration; options override it (default: {EMBEDDED})")
    fit.add_argument("--out", metavar="DIR", type=Path, help="also copy the reward model to this new folder")
    _add_fit_options(fit, defaults)

    score = add_command(commands, "score", score_command, "score pairs or responses from a file with a fitted reward model", EXAMPLES)
    score.add_argument("model", metavar="MODEL", help="folder of a reward model or of one of its controls")
    score.add_argument(
        "input", metavar="FILE", type=Path, help="preference pairs in any format of docs/FORMATS.md, or rows with a prompt and a response"
    )
    score.add_argument("--out", metavar="FILE", type=Path, help="write the scored rows here (default: standard output)")
    score.add_argument("--device", metavar="TEXT", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")

    sae = add_command(commands, "sae", None, "sparse autoencoders", EXAMPLES).add_subparsers(metavar="command", required=True)
    train = add_command(sae, "sae train", train_command, "train a sparse autoencoder on a backbone's activations", EXAMPLES)
    add_options(train, SAETrainConfig(), "autoencoder and training")
    add_options(train, BackboneConfig(), "backbone")

    sample = add_command(sae, "sae sample", sample_command, "write the backbone's own answers, as text to train an SAE on", EXAMPLES)
    sample.add_argument("--out", metavar="FILE", type=Path, required=True, help="new .jsonl file, for --corpus of sae train")
    add_options(sample, SampleConfig(), "what is sampled")
    add_options(sample, BackboneConfig(), "backbone")

    sweep = add_command(commands, "sweep", sweep_command, "compare layers and K on validation, from one extraction", EXAMPLES)
    sweep.add_argument("--preset", choices=sorted(PRESETS), help=f"start from this configuration; options override it (default: {EMBEDDED})")
    add_options(sweep, SweepConfig(), "what is compared")
    _add_fit_options(sweep, defaults)

    cache = add_command(commands, "cache", None, "look after the artefacts in the cache", EXAMPLES).add_subparsers(metavar="command", required=True)
    add_command(cache, "cache list", list_command, "list artefacts, newest last", EXAMPLES)
    add_command(cache, "cache verify", verify_command, "read every byte of every artefact and move damaged ones aside", EXAMPLES)
    clean = add_command(cache, "cache clean", clean_command, "remove what was left half-done or set aside", EXAMPLES)
    clean.add_argument("--everything", action="store_true", help="remove all artefacts too (models stay)")
    add_align(commands)
    add_pairs(commands)
    add_explain(commands)
    add_serving(commands)
    add_runs(commands)
    add_doctor(commands)
    add_latents(commands)
    add_labels(commands)
    for long in (fit, train, sweep):
        long.add_argument("--detach", action="store_true", help=DETACH_HELP)
        long.add_argument("--estimate", action="store_true", help="say what it will take, and end")
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


def _estimated(kind: str, config: Any, arguments: argparse.Namespace, display: Display) -> bool:
    """Says what the run would take, if that is what was asked for."""
    if not arguments.estimate:
        return False
    from core.jobs.kinds import load_job

    store, job = Store(), load_job(kind)
    estimate = job.plan(job.complete(config, store, display.say), store, display)
    display.close()
    if arguments.json:
        print_json(vars(estimate))
    else:
        print(estimate)
    return True


def fit_command(arguments: argparse.Namespace, display: Display) -> None:
    _check_out(arguments)
    if _estimated("fit", fit_config(arguments), arguments, display):
        return
    if arguments.detach:
        detach("fit", fit_config(arguments), arguments, display)
        return
    from core.fit.defaults import complete
    from core.jobs.job import foreground_turn

    store = Store()
    config = complete(fit_config(arguments), store, display.say)
    from core.fit.pipeline import copy_out, fit

    with foreground_turn(config.backbone, store, display.say):
        outcome = fit(config, store, display)
    display.close()
    path = copy_out(outcome.artefact, arguments.out) if arguments.out else outcome.artefact
    found = {**outcome.to_json(), "artefact": str(path)}
    if arguments.json:
        print_json(found)
    else:
        tables.print_fit(found)


def _check_out(arguments: argparse.Namespace) -> None:
    if arguments.out and arguments.out.exists():
        raise ConfigError(f"{arguments.out} exists already", remedy="give --out a new folder, or remove this one")
    if arguments.out and arguments.detach:
        raise ConfigError("--out does not go with --detach", remedy="copy the folder that sparserm runs show names when the run has ended")


def sweep_command(arguments: argparse.Namespace, display: Display) -> None:
    config: SweepConfig = override(SweepConfig(fit=fit_config(arguments)), vars(arguments))
    if _estimated("sweep", config, arguments, display):
        return
    if arguments.detach:
        detach("sweep", config, arguments, display)
        return
    from core.fit.defaults import complete_sweep
    from core.jobs.job import foreground_turn

    store = Store()
    configs = complete_sweep(config, store, display.say)
    from core.fit.pipeline import sweep

    with foreground_turn(config.fit.backbone, store, display.say):
        outcome = sweep(configs, store, display).to_json()
    display.close()
    if arguments.json:
        print_json(outcome)
    else:
        tables.print_sweep(outcome)


def train_command(arguments: argparse.Namespace, display: Display) -> None:
    config: SAETrainConfig = override(SAETrainConfig(), vars(arguments))
    if _estimated("sae-train", config, arguments, display):
        return
    if arguments.detach:
        detach("sae-train", config, arguments, display)
        return
    from core.jobs.job import foreground_turn
    from core.sae.training import CARD, train_sae

    with foreground_turn(config.backbone, Store(), display.say):
        folder = train_sae(config, progress=display)
    display.close()
    outcome = {"artefact": str(folder), "card": read_json(folder / CARD)}
    if arguments.json:
        print_json(outcome)
    else:
        tables.print_training(outcome)


def sample_command(arguments: argparse.Namespace, display: Display) -> None:
    from core.fit.defaults import DEMO_PAIRS
    from core.jobs.job import foreground_turn
    from core.sae.sampling import sample_answers

    config: SampleConfig = override(SampleConfig(), vars(arguments))
    config = config if config.prompts else replace(config, prompts=str(DEMO_PAIRS))
    with foreground_turn(config.backbone, Store(), display.say):
        counts = sample_answers(config, arguments.out, progress=display)
    display.close()
    if arguments.json:
        print_json({"file": str(arguments.out), **counts})
    else:
        rows = f"; {counts['rows_refused']} rows of the prompts' files can't be used" if counts["rows_refused"] else ""
        print(f"{counts['answers']} answers to {counts['prompts']} prompts in {arguments.out}; {counts['left_out']} answers left out{rows}")


def score_command(arguments: argparse.Namespace, display: Display) -> None:
    from core.reward.scoring import score_file

    report = score_file(arguments.model, arguments.input, arguments.out, device=arguments.device, progress=display)
    if arguments.json and arguments.out:
        print_json(report)
        return
    if arguments.json:  # standard output holds the rows, so the report goes to standard error
        print(json.dumps(report, ensure_ascii=False, allow_nan=False), file=sys.stderr)
        return
    for row in report["refused"]:
        display.say(f"row {row['row']} is left out: {row['field']}: {row['reason']}")
    for line in tables.score_lines(report):
        display.say(line)


def list_command(arguments: argparse.Namespace, display: Display) -> None:
    rows = sorted((_listed(path, found) for path, found in Store().all()), key=lambda row: row["created"] or 0.0)
    total = sum(row["bytes"] for row in rows)
    if arguments.json:
        print_json({"artefacts": rows, "bytes": total})
        return
    shown = [(row["step"], date(row["created"]) if row["created"] else "damaged", size(row["bytes"]), row["path"]) for row in rows]
    tables.table(f"{len(rows)} artefacts, {size(total)}", ("step", "made", "size", "folder"), shown)


def _listed(path: Path, found: Artefact | StoreError) -> dict[str, Any]:
    created = found.manifest["time_created"] if isinstance(found, Artefact) else None
    n_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {"step": path.parent.parent.name, "path": str(path), "bytes": n_bytes, "created": created}


def verify_command(arguments: argparse.Namespace, display: Display) -> None:
    found = list(Store().verify())
    damaged = {str(path): error for path, error in found if error}
    for error in damaged.values():
        display.say(str(error))
    if arguments.json:
        print_json({"artefacts": len(found), "damaged": sorted(damaged)})
    else:
        print(f"{len(found)} artefacts read, {len(damaged)} damaged")
    if damaged:
        raise StoreError(f"{len(damaged)} of {len(found)} artefacts were damaged and moved aside", remedy="the next run computes them again")


def clean_command(arguments: argparse.Namespace, display: Display) -> None:
    freed = Store().clean(everything=arguments.everything)
    if arguments.json:
        print_json({"bytes": freed})
    else:
        print(f"{size(freed)} freed")


if __name__ == "__main__":
    sys.exit(main())
