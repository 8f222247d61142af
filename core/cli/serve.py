"""`sparserm serve`: a reward model behind localhost HTTP, for trainers and for the workbench, which finds the same process.

core.cli.serve_run does the work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.cli.options import add_command

EXAMPLES = {
    "serve": "examples:\n  sparserm serve my_reward_model\n  sparserm serve my_reward_model --detach --json\n  sparserm serve my_reward_model --stop",
}


def add_serving(commands: Any) -> None:
    """Adds `serve`."""
    parser = add_command(
        commands, "serve", "core.cli.serve_run:serve_command", "serve a reward model to trainers and to the workbench, on this machine only", EXAMPLES
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder of a reward model or of one of its controls")
    parser.add_argument("--port", metavar="N", type=int, default=0, help="port (default: a free one)")
    parser.add_argument("--device", metavar="TEXT", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument("--idle", metavar="SECONDS", type=float, help="end when nobody has asked for so long (default: never; with --detach 900)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--detach", action="store_true", help="serve in the background, and return when the model is ready")
    how.add_argument("--stop", action="store_true", help="end the process that serves this model")
