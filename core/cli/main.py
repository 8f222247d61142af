"""The `sparserm` command: chooses the command and prints its error. The commands stand in the other files of core/cli.

Errors are printed as problem, expected, found and remedy; the exit code tells the kind (core/errors.py). Start-up is a feature: nothing heavier than
the configs is imported before a command runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from core.cli.align import add_align
from core.cli.cache import add_cache
from core.cli.explain import add_explain
from core.cli.labels import add_labels
from core.cli.long_commands import add_fit, add_others
from core.cli.options import Parser
from core.cli.runs import add_runs
from core.cli.sae import add_sae
from core.cli.score import add_score
from core.cli.serve import add_serving
from core.errors import Cancelled, SparseRMError, error_from_dict, error_to_dict
from core.runs.progress import Display, log_to
from core.text_safety import for_terminal

INTERRUPTED = 130
EXAMPLES = "examples:\n  sparserm fit --preset tiny\n  sparserm fit --pairs pairs.jsonl --layer 19 --sae my_sae --k 32"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. 0 done, 1 to 8 an error to mend (core/errors.py), 9 a failing check, 130 stopped."""
    arguments = build_parser().parse_args(argv)
    with Display(quiet=arguments.json) as display:
        log_to(display.say, display.warn)
        code, message = _run(arguments, display)
    if message:
        print(for_terminal(message), file=sys.stderr)
    return code


def _run(arguments: argparse.Namespace, display: Display) -> tuple[int, str]:
    """The exit code, and the message for the person."""
    try:
        return arguments.run(arguments, display) or 0, ""
    except (KeyboardInterrupt, Cancelled):
        return INTERRUPTED, "stopped; finished steps are kept, and the same command goes on from there"
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader closed the pipe; discard the rest
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        mendable = error if isinstance(error, SparseRMError) else error_from_dict(error_to_dict(error), "--debug")
        return mendable.exit_code, str(mendable)
    return 0, ""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = Parser(prog="sparserm", description="SparseRM reward models: fit, score, compare.", epilog=EXAMPLES)
    commands = parser.add_subparsers(metavar="command", required=True)
    add_fit(commands)
    add_score(commands)
    add_sae(commands)
    add_others(commands, "sweep")
    add_cache(commands)
    add_align(commands)
    add_others(commands, "pairs")
    add_explain(commands)
    add_serving(commands)
    add_runs(commands)
    add_others(commands, "doctor", "spaces", "latents")
    add_labels(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
