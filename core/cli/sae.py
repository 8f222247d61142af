"""`sparserm sae`: training a sparse autoencoder, and sampling text for one (core.cli.sae_sample)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.cli.options import add_command, add_options
from core.cli.run_command import add_run_command
from core.config import BackboneConfig, SampleConfig

EXAMPLES = {
    "sae": "example:\n  sparserm sae train --layer 16",
    "sae train": "example:\n  sparserm sae train --layer 16 --width 4608 --k 32 --tokens 1200000",
    "sae sample": "example:\n  sparserm sae sample --prompts pairs.jsonl --per-prompt 2 --out answers.jsonl",
}


def add_sae(commands: Any) -> None:
    """Adds `sae` and its commands."""
    sae = add_command(commands, "sae", None, "sparse autoencoders", EXAMPLES).add_subparsers(metavar="command", required=True)
    add_run_command(sae, "sae-train", "train a sparse autoencoder on a backbone's activations", EXAMPLES)
    sample = add_command(
        sae, "sae sample", "core.cli.sae_sample:sample_command", "write the backbone's own answers, as text to train an SAE on", EXAMPLES
    )
    sample.add_argument("--out", metavar="FILE", type=Path, required=True, help="new .jsonl file, for --corpus of sae train")
    add_options(sample, SampleConfig(), "what is sampled")
    add_options(sample, BackboneConfig(), "language model")
