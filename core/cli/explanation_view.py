"""Explanations for a person at a terminal: the sentence, a waterfall of bars, the text with a latent's activity marked,
and what was tried on it.

Texts come from data and models and are not trusted: nothing of theirs is read as markup, and control characters are
shown, not sent to the terminal. Blue stands for what raises the reward and for chosen, orange for what lowers it and
for rejected.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from core.cli.word_view import MarkedTexts
from core.explain.curves import Curves
from core.explain.edits import Edit
from core.explain.explanation import INACTIVE, NO_SAE, Explanation, PairExplanation
from core.explain.latent_names import name_in_list, name_in_sentence
from core.explain.neighbours import Neighbour
from core.explain.sentence import Why
from core.explain.switch import SwitchedOff
from core.explain.token_values import RESPONSE, Deletion, TokenGradient, TokenView
from core.explain.trust import TrustRow, trust_rows
from core.explain.waterfall import Bar, change_steps, residual_of, waterfall_steps
from core.explain.word_bars import texts_of, word_bars
from core.explain.word_rows import TEXT, deletion_bars, gradient_words, latent_words, strongest, word_rows
from core.latents.labels import Labels
from core.text_safety import for_terminal

BLUE, ORANGE = "#4c9be8", "#e8853d"
SHADES = {"blue": ("#dbeafc", "#a9cdf5", "#6daaec", "#2f7fd1"), "orange": ("#fce6d6", "#f6c29b", "#ee9a5c", "#d0681a")}
HALF = 14  # characters of a bar's longer half
MOST_BARS, MOST_SPANS, MOST_TOKENS, LONGEST = 10, 12, 8, 240
LEGEND = (
    "?: the heads of different seeds disagree on the sign; ±: deviation over heads; f: activation; at mean: change of the reward where the "
    f"projection is set to its training mean; removed: where the latent is taken out of the residual stream ({INACTIVE})"
)
PARTS = {"response_part": "response part", "contribution": "share of margin"}
WIDE = 120  # columns where the output is no terminal
SPARK = "▁▂▃▄▅▆▇█"


def short(text: str) -> str:
    """On one line, and cut where it is long."""
    line = for_terminal(" ".join(text.split()))
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def show(parts: Sequence[RenderableType]) -> None:
    """Prints to standard output."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDE
    for part in parts:
        console.print(part, markup=False, highlight=False, emoji=False)


def heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def sentence(why: Why) -> RenderableType:
    """The sentence, then its weaknesses as a list."""
    return Group(Text(for_terminal(why.text), style="bold"), *(Text(f"  ! {for_terminal(weakness)}") for weakness in why.weaknesses))


def response_parts(explanation: Explanation, labels: Labels) -> Iterator[RenderableType]:
    """One response: its sentence, its marked words, its waterfalls and its latents."""
    yield sentence(explanation.why)
    yield from words(explanation)
    yield heading("From the average training response to this one, by latent")
    yield waterfall(waterfall_steps(explanation, labels, most=MOST_BARS))
    yield heading("Latents")
    yield latents(explanation.latents, "response_part", labels)


def pair_parts(pair: PairExplanation, labels: Labels) -> Iterator[RenderableType]:
    """A pair: its sentence, its marked words, its margin by latent, and where either response stands."""
    yield sentence(pair.why)
    yield from words(pair)
    yield heading("From the rejected to the chosen response, by latent")
    yield waterfall(waterfall_steps(pair, labels, most=MOST_BARS))
    yield heading("Latents")
    yield latents(pair.latents, "contribution", labels)
    for name, explanation in (("Chosen", pair.chosen), ("Rejected", pair.rejected)):
        yield heading(name)
        yield sentence(explanation.why)


def words(explanation: Explanation | PairExplanation) -> Iterator[RenderableType]:
    """The texts with their words marked and the bars by sentence; or why there is no such split."""
    yield heading("Words")
    if explanation.words is None:
        yield Text(explanation.no_words)
        return
    yield MarkedTexts(texts=texts_of(explanation.words))
    start, end = ("rejected", "the chosen response") if isinstance(explanation, PairExplanation) else ("average training", "this one")
    yield heading(f"From the {start} response to {end}, by sentence")
    yield waterfall(word_bars(explanation))


def waterfall(steps: Sequence[Bar]) -> Table:
    """A line a bar, with what they leave unexplained before the last one."""
    *before, end = steps
    return bars([*before, Bar(label="Residual", value=residual_of(steps)), end])


def bars(steps: Sequence[Bar]) -> Table:
    """A line a bar; `?` marks a sign that the heads do not agree on."""
    table = Table(box=None, show_header=False, padding=(0, 1))
    most = max([*(abs(step.value) for step in steps), 1e-12])
    for step in steps:
        label = f"{short(step.label)}{'' if step.agreed else ' ?'}"
        table.add_row(Text(label), Text("0" if abs(step.value) < 1e-9 else f"{step.value:+.3f}", justify="right"), bar(step.value, most))
    return table


def bar(value: float, most: float) -> Text:
    """A bar to the left of the middle for what lowers, to the right for what raises."""
    length = round(abs(value) / most * HALF)
    left, right = ("█" * length, "") if value < 0 else ("", "█" * length)
    return Text(left.rjust(HALF), style=ORANGE) + Text("│") + Text(right.ljust(HALF), style=BLUE)


def latents(rows: Sequence[Mapping[str, Any]], part: str, labels: Labels) -> RenderableType:
    """The latents of largest `part` with both interventions; `?` marks a sign that the heads do not agree on."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    part_name = PARTS[part]
    for number, column in enumerate(("latent", part_name, "contribution", "projection", "f", "at mean", "removed")):
        table.add_column(column, justify="right" if number else "left", no_wrap=bool(number))
    for row in sorted(rows, key=lambda row: -abs(row[part]))[:MOST_BARS]:
        latent, removed = row["latent_id"], row["removed"]
        cells = [
            name_in_list(latent, labels.get(latent)),
            f"{row[part]:+.3f}{'' if row['agreed'] else ' ?'}",
            f"{row['contribution']:+.3f} ± {row['deviation']:.3f}",
            f"{row['baseline']:.2f} to {row['projection']:.2f}",
            f"{row['activation']:.2f}" if "activation" in row else "",
            f"{row['at_mean']:+.3f}",
            f"{removed:+.3f}" if removed is not None else "" if row["removal"] == NO_SAE else INACTIVE.partition(":")[0],
        ]
        table.add_row(*(Text(for_terminal(cell)) for cell in cells))
    no_sae = any(row.get("removal") == NO_SAE for row in rows)
    return Group(table, Text(f"{LEGEND} ({NO_SAE})" if no_sae else LEGEND, style="dim"))


def trust(explanation: Explanation | PairExplanation, more: Sequence[TrustRow] = ()) -> RenderableType:
    """Whether the explanation can be believed, a line a figure; `more` figures stand at the end."""
    verdict = (explanation.chosen if isinstance(explanation, PairExplanation) else explanation).figures.stability.verdict
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in (*trust_rows(explanation), *more):
        table.add_row(row.name, row.value, row.expected and f"should be {row.expected}")
    return Group(Text(f"explanations of this reward model: {verdict}"), table)


def _interval(value: float, low: float, high: float) -> str:
    return f"{value:.2f} ({low:.2f} to {high:.2f})"


def removals(curves: Curves | None) -> Text:
    """What removing the active latents one by one does, beside chance."""
    if curves is None:
        return Text("too few latents are active to remove them one by one")
    lines = []
    for name, curve in (("deletion", curves.deletion), ("insertion", curves.insertion)):
        ordered, chance = (" ".join(f"{value:.2f}" for value in line[2::2]) for line in curve)
        lines.append(f"{name}: {ordered}, in random order {chance}")
    title = f"how far the reward has moved after 20, 40, ... 100 % of the {curves.n_latents} active latents are removed (strongest first) or put back"
    return Text("\n".join([title, *lines]))


def marked(tokens: TokenView, latent: int, side: str, labels: Labels) -> RenderableType:
    """The text, darker where the latent is more active, and where it is most active in words, for eyes and logs without
    colours.
    """
    words = latent_words(tokens, latent, TEXT)
    if tokens.activation is None:
        return Text(for_terminal("".join(word.text for word in words if word.kind == RESPONSE)))
    top, shades, text = strongest(words, MOST_TOKENS), SHADES["orange" if side == "rejected" else "blue"], Text()
    for place, word in enumerate(words):
        if place and word.place > words[place - 1].place + 1 and not text.plain.endswith("\n"):
            text.append("\n")  # tokens of the template stood here
        shade = shades[min(int(word.value / top[0].value * len(shades)), len(shades) - 1)] if word.value > 0 else ""
        text.append(for_terminal(word.text), style=f"black on {shade}" if shade else "" if word.kind == RESPONSE else "dim")
    active_on = ", ".join(f"{short(word.text) or '␣'} {word.value:.2f}" for word in top) or "nowhere in these texts"
    return Group(Text(f"{for_terminal(name_in_sentence(latent, labels.get(latent)))} is active on: {active_on}"), text)


def running(tokens: TokenView) -> Text:
    """The running reward at each of the response's own tokens, as a line of blocks."""
    values = np.array([word.running for word in word_rows(tokens, None)])
    low, high = float(values.min()), float(values.max())
    levels = np.round((values - low) / max(high - low, 1e-12) * (len(SPARK) - 1)).astype(int)
    line = "".join(SPARK[level] for level in levels[-LONGEST:])
    what = "the reward of the response up to each token" if tokens.so_far else "exploratory: the head was trained on the last token only"
    return Text(f"{line}  from {low:.2f} to {high:.2f} ({what})")


def deleted(deletions: Sequence[Deletion]) -> Table:
    """What each span adds, strongest first."""
    table = Table(box=None, show_header=False, padding=(0, 1))
    ranked = sorted(deletion_bars(deletions), key=lambda step: -abs(step.value))[:MOST_SPANS]
    for step in ranked:
        table.add_row(Text(f"{step.value:+.3f}", justify="right"), bar(step.value, abs(ranked[0].value) or 1.0), Text(short(step.label)))
    if not ranked:
        table.add_row(Text("nothing can be left out without leaving nothing"))
    return table


def leaning(tokens: TokenView, gradient: TokenGradient) -> Text:
    """The tokens to whose embeddings the reward is most sensitive."""
    top = strongest(gradient_words(tokens, gradient, TEXT), MOST_TOKENS)
    return Text(", ".join(f"{short(word.text) or '␣'} {word.value:.3g}" for word in top))


def similar(neighbours: Sequence[Neighbour]) -> Table:
    """Training responses, nearest first."""
    table = Table(box=box.SIMPLE_HEAD)
    for number, column in enumerate(("distance", "reward", "judged", "response")):
        table.add_column(column, justify="left" if number > 1 else "right")
    for neighbour in neighbours:
        response = Text(short(neighbour.response or "(its text is not kept)"))
        table.add_row(f"{neighbour.distance:.2f}", f"{neighbour.reward:.2f}", " and ".join(neighbour.sides), response)
    return table


def edited(edit: Edit, labels: Labels) -> Iterator[RenderableType]:
    """A step of a chain: what it did to the reward, by latent."""
    yield Text(short(edit.explanation.response))
    if edit.change is not None:
        change = edit.change
        moved = change.reward - change.baseline_reward
        yield Text(f"reward {change.baseline_reward:.3f} to {change.reward:.3f} ({moved:+.3f}); {edit.n_computed} of {edit.n_tokens} tokens computed")
        yield bars(change_steps(change, edit.explanation.figures.groups, labels, most=MOST_BARS))


def switched(off: SwitchedOff, all_on: SwitchedOff) -> Text:
    """Reward, accuracy and correlation with length, with all latents on and with some off."""
    lines = []
    for name, figures in (("all on", all_on), (f"off: {', '.join(map(str, off.latent_ids))}", off)):
        reward = "" if figures.reward is None else f"reward {figures.reward:.3f}, "
        accuracy = f"accuracy {_interval(figures.accuracy.accuracy, figures.accuracy.low, figures.accuracy.high)} ({figures.measured_on})"
        length = _interval(figures.length.value, figures.length.low, figures.length.high)
        lines.append(f"{name}: {reward}{accuracy}, correlation with length {length}")
    return Text("\n".join(lines))
