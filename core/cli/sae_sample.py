"""What `sparserm sae sample` does: the backbone answers prompts, and its answers become a file to train an SAE on."""

from __future__ import annotations

import argparse
from dataclasses import replace

from core.cli.options import override, print_json
from core.config import SampleConfig
from core.fit.defaults import DEMO_PAIRS
from core.jobs.job import hold_device
from core.runs.progress import Display
from core.runs.store import Store
from core.sae.sampling import sample_answers


def sample_command(arguments: argparse.Namespace, display: Display) -> None:
    config: SampleConfig = override(SampleConfig(), vars(arguments))
    config = config if config.prompts else replace(config, prompts=str(DEMO_PAIRS))
    with hold_device(config.backbone, Store(), display.say):
        counts = sample_answers(config, arguments.out, progress=display)
    display.close()
    if arguments.json:
        print_json({"file": str(arguments.out), **counts})
    else:
        rows = f"; {counts['rows_refused']} rows of the prompts' files can't be used" if counts["rows_refused"] else ""
        print(f"{counts['answers']} answers to {counts['prompts']} prompts in {arguments.out}; {counts['left_out']} answers left out{rows}")
