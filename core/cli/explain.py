"""`sparserm explain`: why a response or a pair gets its reward, for a person or as JSON, and a table for a whole file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cli.options import add_command, print_json, reader
from core.errors import ConfigError
from core.runs.progress import Display

if TYPE_CHECKING:
    from rich.console import RenderableType

    from core.explain.explainer import Explainer
    from core.explain.full_explanation import FullExplanation, ResponseDetail
    from core.latents.labels import Labels
    from core.reward.dialogues import Item
    from core.types import PreferencePair

EXAMPLES = {
    "explain": "examples:\n"
    '  sparserm explain my_reward_model --prompt "Is the Earth flat?" --response "No, it is round."\n'
    "  sparserm explain my_reward_model --pairs pairs.jsonl --most-misranked\n"
    "  sparserm explain my_reward_model --worst\n"
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
    how.add_argument("--latent", metavar="N", type=int, help="mark the text by this latent (default: the first one the sentence names)")
    how.add_argument(
        "--span", metavar="FROM:TO", action="append", default=[], help="delete these characters of the response (default: its sentences)"
    )
    how.add_argument("--edit", metavar="TEXT", action="append", default=[], help="try this response instead; repeated, each starts from the last")
    how.add_argument("--off", metavar="N,N,...", type=reader(tuple[int, ...]), default=(), help="hold these latents at their training means")
    how.add_argument("--device", metavar="TEXT", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")


def explain_command(arguments: argparse.Namespace, display: Display) -> None:
    _check(arguments)
    from core.reward.model import SparseRM

    explainer = SparseRM.load(arguments.model, device=arguments.device).explainer
    if arguments.out:
        from core.explain.batch import explain_file

        _print_table(explain_file(explainer, arguments.pairs, arguments.out, display), arguments, display)
        return
    from core.explain.full_explanation import explain_fully

    spans = [_span(text) for text in arguments.span]
    subject = _subject(explainer, arguments, display)
    full = explain_fully(explainer, subject, spans=spans, edits=arguments.edit, off=arguments.off)
    if arguments.latent is not None:
        full.sides[0].tokens.of_latent(arguments.latent)  # an unknown latent is an error before anything is printed
    display.close()
    if arguments.json:
        print_json(full.to_json())
    else:
        from core.cli import explanation_view

        explanation_view.show(list(_report(explainer, full, arguments.latent)))


def _check(arguments: argparse.Namespace) -> None:
    texts, chosen = arguments.prompt is not None, arguments.row is not None or arguments.worst or arguments.most_misranked or arguments.out
    if texts and (arguments.pairs or chosen):
        raise ConfigError("--prompt and --pairs can't be explained together", remedy="give either texts or a file")
    if texts and arguments.response is None:
        raise ConfigError("a prompt alone has no reward", remedy="give --response")
    if not texts and (arguments.response is not None or arguments.rejected is not None):
        raise ConfigError("a response alone has no reward", remedy="give --prompt")
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


def _subject(explainer: Explainer, arguments: argparse.Namespace, display: Display) -> PreferencePair | Item:
    """The response or the pair that is meant."""
    from core.explain.batch import pick, pick_known, read_rows
    from core.explain.features import item_of
    from core.types import PreferencePair

    if arguments.prompt is not None:
        prompt, response = item_of(arguments.prompt, arguments.response)
        if arguments.rejected is None:
            return prompt, response
        return PreferencePair(pair_id="given", prompt=prompt, chosen=response, rejected=item_of(arguments.prompt, arguments.rejected)[1])
    which = "worst" if arguments.worst else "misranked"
    if arguments.pairs:
        rows = read_rows(arguments.pairs, display)
        return rows.at(arguments.row) if arguments.row is not None else pick(explainer, rows, which, display)
    number, side = pick_known(explainer.parts, explainer.known, which)
    assert explainer.known is not None and explainer.known.pairs is not None  # pick_known has looked
    pair = explainer.known.pairs[number]
    return (pair.prompt, (pair.chosen, pair.rejected)[side]) if arguments.worst else pair


def _print_table(report: dict[str, Any], arguments: argparse.Namespace, display: Display) -> None:
    display.close()
    if arguments.json:
        print_json(report)
        return
    for row in report["refused"]:
        display.say(f"row {row['row']} is left out: {row['field']}: {row['reason']}")
    print(f"{report['n_explained']} rows explained: {report['table']}")


def _report(explainer: Explainer, full: FullExplanation, latent: int | None) -> Iterator[RenderableType]:
    """All of it, in the order in which a person asks."""
    from core.cli import explanation_view as view
    from core.explain.explanation import Explanation

    explanation, labels = full.explanation, explainer.labels
    if isinstance(explanation, Explanation):
        response, of_a_pair = explanation, ""
        yield from view.response_parts(explanation, labels)
    else:
        response, of_a_pair = explanation.chosen, " (of the chosen response)"
        yield from view.pair_parts(explanation, labels)
    for side in full.sides:
        yield view.heading(f"{side.name.capitalize()}, token by token")
        yield from _side(explainer, side, latent if latent is not None else _first_latent(full), labels)
    for edit in full.edits:
        yield view.heading("Edit" if edit.parent else "Before the edits")
        yield from view.edited(edit, labels)
    if full.off is not None and full.plain is not None:
        yield view.heading(f"Latents switched off{of_a_pair}")
        yield view.switched(full.off, full.plain)
    if response.neighbours:
        yield view.heading(f"Most similar training responses{of_a_pair}")
        yield view.similar(response.neighbours)
    yield view.heading("Can this be believed?")
    yield view.removals(explanation.curves)
    yield view.trust(explanation)


def _side(explainer: Explainer, side: ResponseDetail, latent: int, labels: Labels) -> Iterator[RenderableType]:
    from rich.text import Text

    from core.cli import explanation_view as view

    rows = {row["latent_id"]: row for row in explainer.parts.selection}
    yield view.marked(side.tokens, latent, str(rows.get(latent, {}).get("side", "")), labels)
    yield Text("running reward: ") + view.running(side.tokens)
    yield Text("what each part of the text adds (scored again without it):")
    yield view.deleted(side.deletions)
    yield Text("the reward is most sensitive to (norm of its gradient): ") + view.leaning(side.tokens, side.gradient)


def _first_latent(full: FullExplanation) -> int:
    """The first latent that the sentence names; where it names none, the one of largest contribution."""
    named, attribution = full.explanation.why.named, full.explanation.attribution
    return named[0].latent_id if named else int(attribution.latent_ids[abs(attribution.contribution).argmax()])
