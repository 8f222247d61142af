"""Pages of latents for a person at a terminal: figures, tokens, and texts with the activation marked. No text is
trusted.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from core.cli.explanation_view import SHADES, SPARK, heading, short
from core.explain.latent_names import name_in_sentence
from core.latents.labels import Labels
from core.latents.page_maker import Activation, Feature
from core.latents.pages import LatentPages
from core.text_safety import for_terminal

LINE_END = "⏎"
TOKENS, TEXTS, CLOSEST = 10, 3, 5  # shown of a latent: tokens a side, texts of each interval, close latents


def overview(pages: LatentPages, latents: Iterable[int], labels: Labels) -> Iterator[RenderableType]:
    """A line a latent."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, justify in (("latent", "left"), ("active on", "right"), ("highest", "right"), ("promotes", "left"), ("where it is highest", "left")):
        table.add_column(column, justify="right" if justify == "right" else "left", overflow="fold")
    for latent in latents:
        page = pages.page(latent)
        table.add_row(
            Text(short(name_in_sentence(latent, labels.get(latent)))),
            f"{page['frac_nonzero']:.2%}",
            f"{page['maxActApprox']:.3g}",
            Text(" ".join(shown_token(token) for token in page["pos_str"][:4])),
            marked(page["activations"][0]) if page["activations"] else Text("nowhere"),
        )
    yield table
    yield read_on(pages)


def read_on(pages: LatentPages) -> Text:
    """On what text the pages stand."""
    names = ", ".join(f"{source['tokens']:,} of {source['name']}" for source in pages.corpus["sources"])
    lines = [f"measured on {pages.corpus['tokens']:,} tokens ({for_terminal(names)}); template's and first tokens are not counted"]
    return Text("\n".join([*lines, *(line for source in pages.corpus["sources"] for line in not_read(source))]))


def not_read(source: Mapping[str, Any]) -> Iterator[str]:
    """What of a source is not among the tokens, in a sentence; nothing where an older version did not count it."""
    parts = []
    if unread := source.get("n_dialogues", 0) - source.get("n_read", 0):
        parts.append(f"{unread:,} of {source['n_dialogues']:,} dialogues were not needed for --tokens")
    if source.get("n_unreadable"):
        parts.append(f"{source['n_unreadable']:,} dialogues can't be read")
    if source.get("n_documents_cut"):
        parts.append(f"{source['n_documents_cut']:,} documents were cut to --context and lost {source['n_tokens_cut']:,} tokens")
    parts += [f"{n:,} left out before: {why}" for why, n in source.get("left_out", {}).items()]
    if parts:
        yield for_terminal(f"of {source['name']}: {'; '.join(parts)}")


def page_parts(page: Feature, labels: Labels) -> Iterator[RenderableType]:
    """One latent."""
    latent = int(page["index"])
    yield heading(for_terminal(f"{name_in_sentence(latent, labels.get(latent))}  ({page['modelId']} {page['layer']})"))
    yield Text(f"active on {page['frac_nonzero']:.2%} of tokens, highest activation {page['maxActApprox']:.3g}")
    if page["freq_hist_data_bar_heights"]:
        yield Text(f"activations   {blocks(page['freq_hist_data_bar_heights'])}  from 0 to {page['maxActApprox']:.3g} (height: root of count)")
    yield Text("promotes      ") + _tokens(page["pos_str"], page["pos_values"])
    yield Text("suppresses    ") + _tokens(page["neg_str"], page["neg_values"])
    pairs = zip(page["topkCosSimIndices"][:CLOSEST], page["topkCosSimValues"], strict=False)
    yield Text("closest       " + ", ".join(f"{for_terminal(name_in_sentence(index, labels.get(index)))} ({value:+.2f})" for index, value in pairs))
    for number, (bounds, group) in enumerate(itertools.groupby(page["activations"], key=_bounds)):
        yield Text(_bounds_in_words(*bounds), style="bold")
        yield from (_line(text) for text in (group if not number else itertools.islice(group, TEXTS)))


def blocks(heights: Sequence[int]) -> str:
    """Bars as a line of blocks, a space where nothing is; by the root of the count, or the many small activations would
    hide all others.
    """
    most = max(heights, default=0) or 1
    return "".join(SPARK[min(int((height / most) ** 0.5 * len(SPARK)), len(SPARK) - 1)] if height else " " for height in heights)


def marked(window: Activation) -> Text:
    """A window, darker where the latent is more active, its maximum in «», what belongs to the template dim."""
    text, shades, template = Text(), SHADES["blue"], set(window["template"])
    for place, (token, value) in enumerate(zip(window["tokens"], window["values"], strict=True)):
        piece = for_terminal(token.replace("\n", LINE_END).replace("\t", " "))
        piece = f"«{piece}»" if place == window["maxValueTokenIndex"] and value > 0 else piece
        share = value / window["maxValue"] if value > 0 else 0.0
        style = f"black on {shades[min(int(share * len(shades)), len(shades) - 1)]}" if share else "dim" if place in template else ""
        text.append(piece, style=style)
    return text


def shown_token(token: str) -> str:
    """A token in quotes, so that its spaces can be seen."""
    return f"'{for_terminal(token.replace(chr(10), LINE_END))}'"


def _line(window: Activation) -> Text:
    return Text(f"{window['maxValue']:8.3g}  ") + marked(window)


def _tokens(texts: Sequence[str], values: Sequence[float]) -> Text:
    return Text("  ".join(f"{shown_token(text)} {value:+.2f}" for text, value in list(zip(texts, values, strict=True))[:TOKENS]))


def _bounds(window: Activation) -> tuple[float, float, float]:
    return window["binMin"], window["binMax"], window["binContains"]


def _bounds_in_words(low: float, high: float, share: float) -> str:
    return "highest" if low < 0 else f"{low:.3g} to {high:.3g}, {share:.1%} of its activations"
