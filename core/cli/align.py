"""`sparserm align`: the policy generates, the reward model filters, DPO learns, round after round.

It is a run like every long command, but under `accelerate launch` its processes work here, where the launcher has started them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core.align.distributed import n_processes
from core.by_name import load
from core.cli.run_command import add_run_command, check_new_folder, run_command
from core.config import AlignConfig
from core.errors import ConfigError
from core.jobs.kinds import resolved_config
from core.runs.progress import Display
from core.runs.registry import Run
from core.runs.store import Store

HELP = "align the policy by rounds of generated pairs, the reward model's filter and DPO"
EXAMPLES = {
    "align": "examples:\n  sparserm align --preset tiny\n  sparserm align --preset demo\n"
    "  sparserm align --reward-model my_reward_model --prompts questions.jsonl --arm none --rounds 3 --out my_adapter",
}


def add_align(commands: Any) -> None:
    """Adds `align`."""
    parser = add_run_command(commands, "align", HELP, EXAMPLES, align_command)
    parser.add_argument("--out", metavar="DIR", type=Path, help="also copy the chosen round's adapter to this new folder")
    parser.add_argument("--merge", action="store_true", help="with --out: the whole model, the adapter merged into it")
    parser.set_defaults(save=_save_adapter)


def align_command(arguments: argparse.Namespace, display: Display) -> int:
    if arguments.merge and not arguments.out:
        raise ConfigError("--merge needs a folder to save the merged model in", remedy="--out DIR")
    check_new_folder(arguments, "take adapter/ of the folder that sparserm runs show names when the run has ended")
    if n_processes() > 1:
        load("core.cli.align_together:align_together")(arguments, display)
        return 0
    return run_command(arguments, display)


def _save_adapter(run: Run, arguments: argparse.Namespace, display: Display) -> dict[str, str]:
    """Copies the chosen adapter, if that was asked for; the outcome stays as it is."""
    if arguments.out is not None:
        config = resolved_config(run)
        assert isinstance(config, AlignConfig)
        outcome = load("core.jobs.align_work:outcome_of")(Path((run.result() or {})["artefact"]), config, Store(run.root))
        outcome.save(arguments.out, merge=arguments.merge, progress=display)
    return {}
