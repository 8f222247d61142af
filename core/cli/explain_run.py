"""What `sparserm explain` does: explains a response, a pair or a whole file, and prints the result for a person or as
JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from core.cli import explanation_view as view
from core.cli.options import print_json
from core.doctor.word_figures import word_trust_rows
from core.errors import ConfigError
from core.explain.batch import explain_file, pick, pick_known, read_rows
from core.explain.explainer import Explainer
from core.explain.explanation import Explanation
from core.explain.features import item_of
from core.explain.full_explanation import FullExplanation, ResponseDetail, explain_fully
from core.explain.token_values import Span
from core.explain.word_bars import table_lines
from core.latents.labels import Labels
from core.reward.dialogues import Item
from core.reward.folder import ModelFolder
from core.reward.model import SparseRM
from core.reward.scoring import check_target, write_table
from core.runs.progress import Display
from core.types import PreferencePair


def explain(arguments: argparse.Namespace, spans: Sequence[Span], display: Display) -> None:
    explainer = SparseRM.load(arguments.model, device=arguments.device).explainer
    if arguments.out:
        _print_table(explain_file(explainer, arguments.pairs, arguments.out, display), arguments, display)
        return
    subject = _subject(explainer, arguments, display)
    if arguments.csv:
        check_target(arguments.csv)
    full = explain_fully(explainer, subject, spans=spans, edits=arguments.edit, off=arguments.off)
    if arguments.latent is not None:
        full.sides[0].tokens.of_latent(arguments.latent)  # an unknown latent is an error before anything is printed
    if arguments.csv:
        _write_words(full, arguments.csv)
    display.close()
    if arguments.json:
        print_json(full.to_json())
    else:
        view.show(list(_report(explainer, full, arguments.latent)))


def _subject(explainer: Explainer, arguments: argparse.Namespace, display: Display) -> PreferencePair | Item:
    """The response or the pair that is meant."""
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


def _write_words(full: FullExplanation, target: Path) -> None:
    """The table of words x latents. Raises ConfigError where the reward does not split over words."""
    if full.explanation.words is None:
        raise ConfigError("this explanation has no table of words", found=full.explanation.no_words)
    write_table(table_lines(full.explanation.words), target)


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
    folder = explainer.model.folder
    yield view.trust(explanation, word_trust_rows(ModelFolder(folder)) if folder is not None else ())


def _side(explainer: Explainer, side: ResponseDetail, latent: int, labels: Labels) -> Iterator[RenderableType]:
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
