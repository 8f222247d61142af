"""`sparserm sae`: training a sparse autoencoder, and sampling text for one."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.cli.options import add_command, add_options, override, print_json
from core.cli.run_command import add_run_command
from core.config import BackboneConfig, SampleConfig
from core.runs.progress import Display
from core.runs.store import Store

EXAMPLES = {
    "sae": "example:\n  sparserm sae train --layer 16",
    "sae train": "example:\n  sparserm sae train --layer 16 --width 4608 --k 32 --tokens 1200000",
    "sae sample": "example:\n  sparserm sae sample --prompts pairs.jsonl --per-prompt 2 --out answers.jsonl",
}


def add_sae(commands: Any) -> None:
    """Adds `sae` and its commands."""
    sae = add_command(commands, "sae", None, "sparse autoencoders", EXAMPLES).add_subparsers(metavar="command", required=True)
    add_run_command(sae, "sae-train", "train a sparse autoencoder on a backbone's activations", EXAMPLES)
    sample = add_command(sae, "sae sample", sample_command, "write the backbone's own answers, as text to train an SAE on", EXAMPLES)
    sample.add_argument("--out", metavar="FILE", type=Path, required=True, help="new .jsonl file, for --corpus of sae train")
    add_options(sample, SampleConfig(), "what is sampled")
    add_options(sample, BackboneConfig(), "language model")


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
