"""`sparserm align` under `accelerate launch`: its processes work here, where the launcher has started them, and not as a run."""

from __future__ import annotations

import argparse

from core.align.distributed import is_leader, join_processes, shutdown
from core.align.dpo import follow_leader
from core.cli.options import print_json
from core.cli.run_command import config_from
from core.cli.tables import print_align
from core.config import AlignConfig
from core.jobs.align import ALIGN, checked, completed
from core.jobs.align_work import run_alignment
from core.jobs.job import hold_device
from core.runs.progress import Display
from core.runs.store import Store


def align_together(arguments: argparse.Namespace, display: Display) -> None:
    """The first process aligns, the others train along until it is done."""
    join_processes()
    if not is_leader():
        follow_leader()
        return
    store, config = Store(), config_from(arguments)
    assert isinstance(config, AlignConfig)
    config = completed(checked(config), store, display.say)
    with hold_device(ALIGN.backbone(config), store, display.say):
        outcome = run_alignment(config, store, display)
        if arguments.out:
            outcome.save(arguments.out, merge=arguments.merge, progress=display)
    shutdown()
    display.close()
    if arguments.json:
        print_json(outcome.to_json())
    else:
        print_align(outcome.to_json())
