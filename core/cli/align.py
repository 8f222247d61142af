"""`sparserm align`: the policy generates, the reward model filters, DPO learns, round after round.

It is a run like every long command, but under `accelerate launch` its processes work here, where the launcher has started them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core.align.distributed import is_leader, join_processes, n_processes, shutdown
from core.cli.options import print_json
from core.cli.run_command import add_run_command, check_new_folder, config_from, run_command
from core.cli.tables import print_align
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
        _together(arguments, display)
        return 0
    return run_command(arguments, display)


def _save_adapter(run: Run, arguments: argparse.Namespace, display: Display) -> dict[str, str]:
    """Copies the chosen adapter, if that was asked for; the outcome stays as it is."""
    if arguments.out is not None:
        from core.jobs.align import outcome_of

        config = resolved_config(run)
        assert isinstance(config, AlignConfig)
        outcome = outcome_of(Path((run.result() or {})["artefact"]), config, Store(run.root))
        outcome.save(arguments.out, merge=arguments.merge, progress=display)
    return {}


# --- under `accelerate launch` -------------------------------------------------------------------------------------


def _together(arguments: argparse.Namespace, display: Display) -> None:
    """The first process aligns, the others train along until it is done."""
    from core.align.dpo import follow_leader
    from core.jobs.align import ALIGN, checked, completed, run_alignment
    from core.jobs.job import foreground_turn

    join_processes()
    if not is_leader():
        follow_leader()
        return
    store, config = Store(), config_from(arguments)
    assert isinstance(config, AlignConfig)
    config = completed(checked(config), store, display.say)
    with foreground_turn(ALIGN.backbone(config), store, display.say):
        outcome = run_alignment(config, store, display)
        if arguments.out:
            outcome.save(arguments.out, merge=arguments.merge, progress=display)
    shutdown()
    display.close()
    if arguments.json:
        print_json(outcome.to_json())
    else:
        print_align(outcome.to_json())
