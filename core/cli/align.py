"""`sparserm align`: the policy generates, the reward model filters, DPO learns, round after round."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core.align.presets import ALIGN_PRESETS, align_preset
from core.cli import tables
from core.cli.options import add_command, add_options, override, print_json
from core.cli.runs import DETACH_HELP, detach
from core.config import AlignConfig, BackboneConfig, Config
from core.errors import ConfigError
from core.runs.progress import Display
from core.runs.store import Store

EXAMPLES = {
    "align": "examples:\n  sparserm align --preset tiny\n  sparserm align --preset demo\n"
    "  sparserm align --reward-model my_reward_model --prompts questions.jsonl --arm none --rounds 3 --out my_adapter",
}


def add_align(commands: Any) -> None:
    """Adds `align`."""
    help_ = "align the policy by rounds of generated pairs, the reward model's filter and DPO"
    parser = add_command(commands, "align", align_command, help_, EXAMPLES)
    embedded = BackboneConfig().model
    parser.add_argument("--preset", choices=sorted(ALIGN_PRESETS), help=f"start from this configuration; options override it (default: {embedded})")
    parser.add_argument("--out", metavar="DIR", type=Path, help="also copy the chosen round's adapter (PEFT) to this new folder")
    parser.add_argument("--merge", action="store_true", help="with --out: the whole model with the adapter merged into its weights, not the adapter")
    defaults = ALIGN_PRESETS[embedded]
    add_options(parser, defaults, "alignment")
    fit, titled = defaults.fit, dict[str, Config]()
    titled |= {"candidates": defaults.candidates, "training": defaults.dpo, "evaluation": defaults.evaluation, "preference pairs": fit.data}
    titled |= {"backbone": fit.backbone, "sparse autoencoder": fit.sae, "selection": fit.selection, "head": fit.head, "controls": fit}
    for title, part in titled.items():
        add_options(parser, part, title)
    parser.add_argument("--detach", action="store_true", help=DETACH_HELP)
    parser.add_argument("--estimate", action="store_true", help="say what it will take, and end")


def align_config(arguments: argparse.Namespace) -> AlignConfig:
    """Preset and options as one config. Without a preset the embedded model's holds, unless another model is named. Raises ConfigError."""
    given, embedded = vars(arguments), BackboneConfig().model
    named = arguments.preset or (embedded if given.get("model", embedded) == embedded else "")
    config: AlignConfig = override(align_preset(named) if named else AlignConfig(), given)
    return config


def align_command(arguments: argparse.Namespace, display: Display) -> None:
    from core.jobs.align import checked

    config = checked(align_config(arguments))
    _check_out(arguments)
    if arguments.detach:
        detach("align", config, arguments, display)
    elif arguments.estimate:
        _estimate(config, arguments, display)
    else:
        _together(config, arguments, display)


def _together(config: AlignConfig, arguments: argparse.Namespace, display: Display) -> None:
    """Alone, or under `accelerate launch`: the first process aligns, the others train along until it is done."""
    from core.align.distributed import is_leader, join_processes, shutdown

    join_processes()
    if is_leader():
        _align(config, arguments, display)
        shutdown()
    else:
        from core.align.dpo import follow_leader

        follow_leader()


def _align(config: AlignConfig, arguments: argparse.Namespace, display: Display) -> None:
    from core.jobs.align import ALIGN, completed, run_alignment
    from core.jobs.job import foreground_turn

    store = Store()
    config = completed(config, store, display.say)
    with foreground_turn(ALIGN.backbone(config), store, display.say):
        outcome = run_alignment(config, store, display)
        if arguments.out:
            outcome.save(arguments.out, merge=arguments.merge, progress=display)
    display.close()
    found = outcome.to_json()
    if arguments.json:
        print_json(found)
    else:
        tables.print_align(found)


def _estimate(config: AlignConfig, arguments: argparse.Namespace, display: Display) -> None:
    from core.jobs.align import ALIGN

    store = Store()
    estimate = ALIGN.plan(ALIGN.complete(config, store, display.say), store, display)
    display.close()
    if arguments.json:
        print_json(vars(estimate))
    else:
        print(estimate)


def _check_out(arguments: argparse.Namespace) -> None:
    if arguments.merge and not arguments.out:
        raise ConfigError("--merge needs a folder to save the merged model in", remedy="--out DIR")
    if arguments.out and arguments.out.exists():
        raise ConfigError(f"{arguments.out} exists already", remedy="give --out a new folder, or remove this one")
    if arguments.out and arguments.detach:
        raise ConfigError(
            "--out does not go with --detach", remedy="take adapter/ of the folder that sparserm runs show names when the run has ended"
        )
