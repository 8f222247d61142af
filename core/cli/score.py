"""`sparserm score`: the rewards of pairs or responses in a file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from core.by_name import by_name
from core.cli.options import add_command, print_json
from core.cli.tables import score_lines
from core.runs.progress import Display

SCORE_FILE = by_name("core.reward.scoring:score_file")  # its module loads torch, which takes seconds
EXAMPLES = {"score": "example:\n  sparserm score my_reward_model answers.jsonl --out scores.jsonl"}


def add_score(commands: Any) -> None:
    """Adds `score`."""
    score = add_command(commands, "score", score_command, "score pairs or responses from a file with a fitted reward model", EXAMPLES)
    score.add_argument("model", metavar="MODEL", help="folder of a reward model or of one of its controls")
    score.add_argument(
        "input", metavar="FILE", type=Path, help="preference pairs in any format of docs/FORMATS.md, or rows with a prompt and a response"
    )
    score.add_argument("--out", metavar="FILE", type=Path, help="write the scored rows here (default: standard output)")
    score.add_argument("--device", metavar="TEXT", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")


def score_command(arguments: argparse.Namespace, display: Display) -> None:
    report = SCORE_FILE(arguments.model, arguments.input, arguments.out, device=arguments.device, progress=display)
    if arguments.json and arguments.out:
        print_json(report)
        return
    if arguments.json:  # standard output holds the rows, so the report goes to standard error
        print(json.dumps(report, ensure_ascii=False, allow_nan=False), file=sys.stderr)
        return
    for row in report["refused"]:
        display.say(f"row {row['row']} is left out: {row['field']}: {row['reason']}")
    for line in score_lines(report):
        display.say(line)
