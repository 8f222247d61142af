"""`sparserm fit`, `sweep`, `pairs`, `doctor`, `spaces` and `latents`: each is a run (core.cli.run_command) with options from its config."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core.by_name import load
from core.cli.run_command import add_run_command, check_new_folder, run_command
from core.runs.progress import Display
from core.runs.registry import Run

EXAMPLES = {
    "fit": "example:\n  sparserm fit --pairs TruthfulQA.csv --protocol truthfulqa --layer 19 --sae my_sae --k 32 --out my_reward_model",
    "sweep": "example:\n  sparserm sweep --pairs pairs.jsonl --layers 9,16 --saes sae_9,sae_16 --ks 8,32,128",
    "pairs": "examples:\n  sparserm pairs --pairs pairs.jsonl\n  sparserm pairs --pairs table.csv --columns prompt=question,chosen=good,rejected=bad",
    "doctor": "examples:\n  sparserm doctor my_reward_model\n  sparserm doctor my_reward_model --swaps 100",
    "spaces": "example:\n  sparserm spaces my_reward_model",
    "latents": "examples:\n  sparserm latents my_reward_model\n"
    "  sparserm latents my_reward_model --latent 1234 --corpus pairs,more_texts.jsonl\n  sparserm latents my_reward_model --all",
}
HELP = {
    "fit": "fit a reward model, with every control, from preference pairs",
    "sweep": "compare layers and K on validation, from one extraction",
    "pairs": "check preference pairs: mapping, refused rows, duplicates, splits, and what wording or length alone can tell",
    "doctor": "check a fitted reward model: pass, warn or fail, with the figure and the remedy",
    "spaces": "compare dense and sparse space: t-SNE pictures, and figures that don't mislead",
    "latents": "show what latents are active on: texts, figures and promoted tokens, in Neuronpedia's fields",
}


def add_fit(commands: Any) -> None:
    """Adds `fit`, which can copy what it made."""
    parser = add_run_command(commands, "fit", HELP["fit"], EXAMPLES, fit_command)
    parser.add_argument("--out", metavar="DIR", type=Path, help="also copy the reward model to this new folder")
    parser.set_defaults(save=_copy_model)


def add_others(commands: Any, *kinds: str) -> None:
    """Adds the commands of these kinds."""
    for kind in kinds:
        add_run_command(commands, kind, HELP[kind], EXAMPLES)


def fit_command(arguments: argparse.Namespace, display: Display) -> int:
    check_new_folder(arguments, "copy the folder that sparserm runs show names when the run has ended")
    return run_command(arguments, display)


def _copy_model(run: Run, arguments: argparse.Namespace, display: Display) -> dict[str, str]:
    """The outcome's changes: where the copy lies, if one was asked for."""
    if arguments.out is None:
        return {}
    return {"artefact": str(load("core.fit.pipeline:copy_out")(Path((run.result() or {})["artefact"]), arguments.out))}
