"""`sparserm explain`: its options and what they may be together. core.cli.explain_run does the work."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from core.by_name import by_name
from core.cli.options import add_command, reader
from core.errors import ConfigError
from core.runs.progress import Display

EXPLAIN = by_name("core.cli.explain_run:explain")  # its module loads torch, which takes seconds: the options are checked before
EXAMPLES = {
    "explain": "examples:\n"
    '  sparserm explain my_reward_model --prompt "Is the Earth flat?" --response "No, it is round."\n'
    "  sparserm explain my_reward_model --pairs pairs.jsonl --most-misranked\n"
    "  sparserm explain my_reward_model --worst --csv words.csv\n"
    "  sparserm explain my_reward_model --pairs pairs.jsonl --out explained.csv",
}


def add_explain(commands: Any) -> None:
    """Adds `explain`."""
    help_ = "explain why a response, or a pair, gets its reward, and whether that can be believed"
    parser = add_command(commands, "explain", explain_command, help_, EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help="folder of a reward model")
    what = parser.add_argument_group("what is explained")
    what.add_argument("--prompt", metavar="TEXT", help="a prompt")
    what.add_argument("--response", metavar="TEXT", help="the response to it; with --rejected the chosen one")
    what.add_argument("--rejected", metavar="TEXT", help="another response to it: the pair is explained")
    what.add_argument(
        "--pairs", metavar="FILE", type=Path, help="pairs or responses, as `sparserm score` reads them (default: the model's held-out pairs)"
    )
    which = what.add_mutually_exclusive_group()
    which.add_argument("--row", metavar="N", type=int, help="the row of the file with this number")
    which.add_argument("--worst", action="store_true", help="the response of lowest reward")
    which.add_argument("--most-misranked", action="store_true", help="the pair whose rejected response wins by most")
    which.add_argument("--out", metavar="FILE", type=Path, help="all rows of the file, as a table (.jsonl or .csv)")
    how = parser.add_argument_group("what is tried and shown")
    how.add_argument(
        "--csv", metavar="FILE", type=Path, help="write what each word adds by each latent as a table (models that read whole responses)"
    )
    how.add_argument("--latent", metavar="N", type=int, help="mark the text by this latent (default: the first one the sentence names)")
    how.add_argument(
        "--span", metavar="FROM:TO", action="append", default=[], help="delete these characters of the response (default: its sentences)"
    )
    how.add_argument("--edit", metavar="TEXT", action="append", default=[], help="try this response instead; repeated, each starts from the last")
    how.add_argument("--off", metavar="N,N,...", type=reader(tuple[int, ...]), default=(), help="hold these latents at their training means")
    how.add_argument("--device", metavar="TEXT", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")


def explain_command(arguments: argparse.Namespace, display: Display) -> None:
    _check(arguments)
    EXPLAIN(arguments, [_span(text) for text in arguments.span], display)


def _check(arguments: argparse.Namespace) -> None:
    texts, chosen = arguments.prompt is not None, arguments.row is not None or arguments.worst or arguments.most_misranked or arguments.out
    if texts and (arguments.pairs or chosen):
        raise ConfigError("--prompt and --pairs can't be explained together", remedy="give either texts or a file")
    if texts and arguments.response is None:
        raise ConfigError("a prompt alone has no reward", remedy="give --response")
    if not texts and (arguments.response is not None or arguments.rejected is not None):
        raise ConfigError("a response alone has no reward", remedy="give --prompt")
    if arguments.csv and arguments.out:
        raise ConfigError("--csv and --out can't be given together", remedy="--csv is about one response or pair, --out about a whole file")
    if not texts and not chosen:
        remedy = "give --prompt and --response, or --pairs with --row, --worst, --most-misranked or --out"
        raise ConfigError("nothing to explain", remedy=remedy)
    if not texts and not arguments.pairs and (arguments.row is not None or arguments.out):
        raise ConfigError("--row and --out are about a file", remedy="give --pairs")


def _span(text: str) -> tuple[int, int]:
    start, colon, stop = text.partition(":")
    if not colon or not start.strip().isdigit() or not stop.strip().isdigit():
        raise ConfigError("--span is no range of characters", expected="FROM:TO, such as 0:17", found=text)
    return int(start), int(stop)
