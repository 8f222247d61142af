"""`sparserm labels`: what latents are called, where from, and how well that fits; a family of commands over core.latents.label_book.

core.cli.label_commands does what needs no model, core.cli.label_work what may have to make the latents' pages first.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core.cli.options import add_command, add_options
from core.config import EndpointConfig, LatentsConfig

EXAMPLES = {
    "labels": "examples:\n"
    "  sparserm labels list my_reward_model\n"
    '  sparserm labels set my_reward_model 1234 "apologies"\n'
    "  sparserm labels auto my_reward_model\n"
    "  sparserm labels score my_reward_model",
    "labels list": "examples:\n  sparserm labels list my_reward_model\n  sparserm labels list my_reward_model --latent 1234",
    "labels set": 'examples:\n  sparserm labels set my_reward_model 1234 "apologies"\n  sparserm labels set my_reward_model 1234 ""',
    "labels import": "examples:\n"
    "  sparserm labels import my_reward_model\n"
    "  sparserm labels import my_reward_model v1/gemma-2-2b/13-gemmascope-res-16k\n"
    "  sparserm labels import my_reward_model labels.jsonl",
    "labels auto": "example:\n  sparserm labels auto my_reward_model --all",
    "labels ask": "example:\n  sparserm labels ask my_reward_model --endpoint http://localhost:8000/v1 --endpoint-model my-model",
    "labels score": "example:\n  sparserm labels score my_reward_model",
    "labels export": "example:\n  sparserm labels export my_reward_model --source person --out labels.jsonl",
}
LATENT_HELP = "only this latent; repeat it for more (default: those the reward model selects)"


def add_labels(commands: Any) -> None:
    """Adds `labels` and its commands."""
    family = add_command(commands, "labels", None, "what latents are called: your own labels, imported, automatic, and their scores", EXAMPLES)
    parent = family.add_subparsers(metavar="command", required=True)

    listed = _command(parent, "labels list", "core.cli.label_commands:list_command", "list the latents' labels, best first")
    _add_latents(listed, "every latent that has a label")
    named = _command(parent, "labels set", "core.cli.label_commands:set_command", "label a latent yourself; an empty text takes your label away")
    named.add_argument("latent", metavar="LATENT", type=int, help="number of the latent")
    named.add_argument("text", metavar="TEXT", help="what it is active on")
    named.add_argument("--author", metavar="NAME", default="", help="who says so")
    fetched = _command(
        parent, "labels import", "core.cli.label_commands:import_command", "add labels from Neuronpedia, or from a file that labels export wrote"
    )
    fetched.add_argument("path", metavar="PATH", type=Path, nargs="?", help="file or folder (default: downloaded from Neuronpedia's public bucket)")
    fetched.add_argument("--neuronpedia", metavar="MODEL/SOURCE", default="", help="which of Neuronpedia's sources this SAE is (presets know theirs)")
    fetched.add_argument("--any-sae", action="store_true", help="take labels of another SAE too; they stay marked as that SAE's")
    for name, run, help_, everything in (
        (
            "labels auto",
            "core.cli.label_work:auto_command",
            "label latents by their distinctive tokens and words; needs no model",
            "every latent that has a page",
        ),
        (
            "labels ask",
            "core.cli.label_work:ask_command",
            "have a language model label latents from their strongest texts",
            "every latent that has a page",
        ),
        (
            "labels score",
            "core.cli.label_work:score_command",
            "measure how well labels tell active texts from others",
            "every latent that has a label and a page",
        ),
    ):
        parser = _command(parent, name, run, help_)
        _add_latents(parser, everything)
        parser.add_argument("--device", metavar="TEXT", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
        if name == "labels ask":
            add_options(parser, EndpointConfig(), "endpoint")
        add_options(parser, LatentsConfig(), "latents' pages, as `sparserm latents` makes them; made first where they are not there")
    given = _command(
        parent, "labels export", "core.cli.label_commands:export_command", "write labels, with their scores, as JSON lines in Neuronpedia's format"
    )
    given.add_argument("--out", metavar="FILE", type=Path, required=True, help="a new file")
    given.add_argument("--source", metavar="SOURCE", default="", help="only labels of this source")


def _command(parent: Any, name: str, run: Any, help_: str) -> argparse.ArgumentParser:
    parser = add_command(parent, name, run, help_, EXAMPLES)
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder of a reward model")
    return parser


def _add_latents(parser: argparse.ArgumentParser, everything: str) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--latent", metavar="N", type=int, action="append", default=[], help=LATENT_HELP)
    which.add_argument("--all", action="store_true", help=everything)
