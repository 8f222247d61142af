"""The sentence that explains a reward or a margin, the same one for command, page and file (METHOD.md section 4).

Where the reward splits over words it quotes the words first (core.explain.quotes), then names the latents that read them,
and says which share of the difference these words and the prompt carry. Else it names latents alone:

1. Latents whose directions are nearly collinear count as one. They are ranked by their response part, or by whole
   contributions where only one response to the prompt is known.
2. At most three are named, by label where there is one; none whose sign differs between the heads of different seeds.
   What pulls the way the reward went stands first.
3. The reasons to doubt the sentence follow it; a latent that is not active in the text, or whose label is no better than
   chance, is marked where it stands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from core.explain.attribution import same_sign
from core.explain.latent_names import name_in_sentence
from core.explain.quotes import Passage, passages
from core.explain.stability import BOUND, Stability
from core.explain.words import PairWords, WordTable
from core.latents.labels import Label, Labels, shown_score
from core.statistics.significance import TOO_RARE
from core.types import JsonFields

MOST_NAMED = 3
MOST_READERS = 2  # latents named behind the first quote; one behind each further one
INACTIVE = 0.25  # an inactive latent is named before an active one only where it adds more than four times as much
CHANCE = 0.5  # of a label's score
NOT_ACTIVE, NOT_ACTIVE_THERE, CHANCE_LABEL = "not active in this text", "not active in these words", "its label is no better than chance"
DETECTION = 0.8  # below this AUROC a projection is a weak sign of the latent's activity (METHOD.md section 1)
NOTHING_KEPT = "No known responses are kept with this reward model, so what the prompt does and what the response does cannot be told apart."
NONE_NAMED = "no latent can be named, since the heads of different seeds disagree on what each does"
NONE_WITH_IT = "no latent that all heads agree on explains that way; "
SIDES = {"chosen": "the chosen response's ", "rejected": "the rejected response's "}
TIE = 1e-9
ONE_KNOWN = "Only this response to the prompt is known, so what the prompt does and what the response does cannot be told apart."


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a sentence is made from, a column a latent: `value` is what ranks (response parts, contributions, or shares
    of a margin), `by_head` the same of each seed's head, `moved` how far the projection lies from what it is compared
    with. `activation` is f of whichever has the higher projection, NaN where it is missing. `active`: whether it is active
    in any of the texts, None where no SAE is at hand. `table`: selection rows."""

    latent_ids: Int[np.ndarray, " k"]
    value: Float[np.ndarray, " k"]
    by_head: Float[np.ndarray, "heads k"]
    contribution_by_head: Float[np.ndarray, "heads k"]
    moved: Float[np.ndarray, " k"]
    groups: tuple[tuple[int, ...], ...]
    table: Sequence[Mapping[str, Any]]
    stability: Stability
    activation: Float[np.ndarray, " k"] | None = None
    active: Bool[np.ndarray, " k"] | None = None
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Named:
    """A latent in the sentence: its name, whether its projection is `high` or `low` (empty behind quoted words), its
    collinear group's sum, and what makes its name doubtful here (`marks`)."""

    latent_id: int
    name: str
    level: str
    value: float
    collinear: tuple[int, ...]
    marks: tuple[str, ...] = ()

    def clause(self, more: str) -> str:
        """`low on latent 12 (-0.41)`; `more` turns low into lower."""
        beside = f", with {len(self.collinear)} nearly collinear {'latent' if len(self.collinear) == 1 else 'latents'}" if self.collinear else ""
        return f"{self.level}{more} on {self.name}{beside}{self._marks} ({self.value:+.2f})"

    @property
    def reader(self) -> str:
        """`latent 12 (-0.41)`, behind quoted words."""
        return f"{self.name}{self._marks} ({self.value:+.2f})"

    @property
    def _marks(self) -> str:
        return f" [{', '.join(self.marks)}]" if self.marks else ""


@dataclass(frozen=True, kw_only=True)
class Quote(JsonFields):
    """Quoted words: characters `start` to `stop` of the text of `side` (`response`, `chosen` or `rejected`), what is shown
    of them, what they add, and the latents that read them."""

    side: str
    start: int
    stop: int
    text: str
    value: float
    named: tuple[Named, ...]

    @property
    def clause(self) -> str:
        read = f", read by {_and([latent.reader for latent in self.named])}" if self.named else ""
        return f"“{self.text}” ({self.value:+.2f}){read}"


@dataclass(frozen=True, kw_only=True)
class Why(JsonFields):
    """The sentence, the latents it names, and its weaknesses, a sentence each. `str()` joins them. Where it quotes words:
    `quotes`, and the `share` of the difference that quotes and prompt carry together (above 1: the rest pulls back)."""

    text: str
    named: tuple[Named, ...]
    weaknesses: tuple[str, ...]
    quotes: tuple[Quote, ...] = ()
    share: float | None = None

    def __str__(self) -> str:
        return " ".join((self.text, *self.weaknesses))


def why_response(evidence: Evidence, *, reward: float, percentile: float, n_known: int, words: WordTable | None = None) -> Why:
    """Why a response got its reward. `n_known`: known responses to its prompt with itself; 0: none are kept at all."""
    others = n_known - 1
    unsplit = [] if others > 0 else [ONE_KNOWN if n_known else NOTHING_KEPT]
    place = rank_in_words(percentile)
    if words is not None and abs(words.end - words.start) > TIE:
        total = words.end - words.start
        start = f"Scored {reward:.2f}, {place} and {abs(total):.2f} {'above' if total > 0 else 'below'} the average training response"
        return _quoting(evidence, start, {"response": words}, total, words.prompt_share if others > 0 else None, unsplit)
    named = choose(evidence, float(evidence.value.sum()))
    against = f"{others} other known {'response' if others == 1 else 'responses'} to this prompt" if others > 0 else "the average training response"
    body = _because("it", named, "", float(evidence.value.sum())) or NONE_NAMED
    text = f"Scored {reward:.2f}, {place}: against {against}, {body}."
    return Why(text=text, named=named, weaknesses=(*unsplit, *weaknesses(evidence, named)))


def why_pair(evidence: Evidence, *, margin: float, probability: float, words: PairWords | None = None) -> Why:
    """Why the chosen response wins or loses. The prompt's part cancels within a pair."""
    chance = f"P(chosen wins) = {probability:.2f}"
    if margin > 0:
        start, who = f"The chosen response wins by {margin:.2f} ({chance})", "it"
    elif margin < 0:
        start, who = f"The rejected response wins by {-margin:.2f}, so the pair is mis-ranked ({chance})", "the chosen one"
    else:
        return Why(text="The two responses tie: the reward model sees no difference between them.", named=(), weaknesses=weaknesses(evidence, ()))
    if words is not None and abs(margin) > TIE:
        return _quoting(evidence, start, words.texts, margin, None, [])
    named = choose(evidence, margin)
    body = _because(who, named, "er", margin) or NONE_NAMED
    return Why(text=f"{start}: {body}.", named=named, weaknesses=weaknesses(evidence, named))


def _quoting(evidence: Evidence, start: str, texts: Mapping[str, WordTable], total: float, prompt: float | None, unsplit: Sequence[str]) -> Why:
    """Quotes the words that carry the difference `total`, of which the prompt gives `prompt` (None: not known, or none)."""
    agreed = next(iter(texts.values())).agreed
    quotes: list[Quote] = []
    for passage in passages(texts, total, prompt or 0.0):
        named = _readers(evidence, passage, agreed, 1 if quotes else MOST_READERS)
        place = {"start": passage.start, "stop": passage.stop}
        quotes.append(Quote(side=passage.side, text=passage.quote, value=passage.value, named=named, **place))
    parts = [f"{SIDES.get(quote.side, '')}{quote.clause}" for quote in quotes]
    if prompt is not None:
        parts.append(f"the prompt itself gives {prompt:+.2f}")
    carried = sum(quote.value for quote in quotes)
    named = tuple({latent.latent_id: latent for quote in reversed(quotes) for latent in reversed(quote.named)}.values())[::-1]
    return Why(
        text=f"{start}: {'; '.join(parts) or 'no words pull that way'}. {_share(carried, prompt, total, bool(quotes))}".rstrip(),
        named=named,
        weaknesses=(*unsplit, *weaknesses(evidence, named, marked=True)),
        quotes=tuple(quotes),
        share=(carried + (prompt or 0.0)) / total,
    )


def _readers(evidence: Evidence, passage: Passage, agreed: Bool[np.ndarray, " k"], most: int) -> tuple[Named, ...]:
    """The latents that read a passage the way it pulls, one a collinear group, those that are active in it first among
    equals; none on whose weight the heads disagree."""
    candidates = []
    for group in evidence.groups:
        columns = np.array(group)
        total = float(passage.row[columns].sum())
        fits = [i for i in group if agreed[i] and passage.row[i] * passage.value > 0]
        if not fits or total * passage.value <= 0:
            continue
        best = max(fits, key=lambda i: abs(passage.row[i]))
        active = passage.active is None or bool(passage.active[best])
        others = tuple(int(evidence.latent_ids[i]) for i in group if i != best)
        named = _named(evidence, best, value=total, level="", collinear=others, active=active)
        candidates.append((abs(total) * (1 if active else INACTIVE), named))
    return tuple(named for _, named in sorted(candidates, key=lambda candidate: -candidate[0])[:most])


def _share(carried: float, prompt: float | None, total: float, quoted: bool) -> str:
    """Which share of the difference quotes and prompt carry, in a sentence."""
    together = (carried + (prompt or 0.0)) / total
    rest = total - carried - (prompt or 0.0)
    if not quoted:
        return ""
    subject = "These words" if prompt is None else "These words and the prompt"
    if together > 1.005:
        verb = "carry" if prompt is None else "together carry"
        return f"{subject} {verb} {together:.2f} of it: the other words pull back by {rest:+.2f}."
    if prompt is None:
        return f"{subject} carry {together:.2f} of it."
    return f"These words carry {carried / total:.2f} of it, with the prompt {together:.2f}."


def choose(evidence: Evidence, direction: float) -> tuple[Named, ...]:
    """Latents to name, strongest first, one a collinear group; all heads agree on the signs of it and its group. At least
    one pulls in the `direction` (a number of its sign) where any does."""
    sure = same_sign(evidence.contribution_by_head) & same_sign(np.concatenate([evidence.value[None], evidence.by_head]))
    candidates = [_of_group(evidence, sure, group) for group in evidence.groups]
    ranked = sorted((named for named in candidates if named), key=lambda named: -abs(named.value))
    with_it = next((number for number, named in enumerate(ranked) if named.value * direction > 0), 0)
    return tuple(ranked[:MOST_NAMED] if with_it < MOST_NAMED else [*ranked[: MOST_NAMED - 1], ranked[with_it]])


def _of_group(evidence: Evidence, sure: np.ndarray, group: tuple[int, ...]) -> Named | None:
    columns = np.array(group)
    total = float(evidence.value[columns].sum())
    totals = np.append(evidence.by_head[:, columns].sum(axis=1), total)
    fits = [i for i in group if sure[i] and evidence.value[i] * total > 0]
    if not fits or not same_sign(totals):
        return None
    best = max(fits, key=lambda i: abs(evidence.value[i]))
    others = tuple(int(evidence.latent_ids[i]) for i in group if i != best)
    active = evidence.active is None or bool(evidence.active[best])
    return _named(evidence, best, value=total, level="high" if evidence.moved[best] > 0 else "low", collinear=others, active=active)


def _named(evidence: Evidence, column: int, *, value: float, level: str, collinear: tuple[int, ...], active: bool) -> Named:
    latent = int(evidence.latent_ids[column])
    label = evidence.labels.get(latent)
    inactive = NOT_ACTIVE if level else NOT_ACTIVE_THERE
    marks = (*(() if active else (inactive,)), *((CHANCE_LABEL,) if no_better_than_chance(label) else ()))
    return Named(latent_id=latent, name=name_in_sentence(latent, label), level=level, value=value, collinear=collinear, marks=marks)


def no_better_than_chance(label: Label | None) -> bool:
    """Whether a label is scored and its score, or the low end of the score's interval, is not above chance."""
    if label is None or label.score is None:
        return False
    score = shown_score(label.scores)
    return (label.score if score is None or score.low is None else score.low) <= CHANCE


def rank_in_words(percentile: float) -> str:
    """Where a percentile among held-out responses lies, in words."""
    if 40 <= percentile <= 60:
        return "near the middle of held-out responses"
    side, share = ("lowest", percentile) if percentile < 50 else ("highest", 100 - percentile)
    return f"in the {side} {max(1, math.ceil(share))} % of held-out responses"


def _because(who: str, named: Sequence[Named], more: str, direction: float) -> str:
    """`it lost by being low on A (-0.41), and gained by being high on C (+0.11)`, what pulls in the `direction` first; empty
    without latents."""
    lost, gained = ([latent.clause(more) for latent in named if (latent.value > 0) is up] for up in (False, True))
    verbs = [f"{verb} by being {_and(clauses)}" for verb, clauses in (("lost", lost), ("gained", gained)) if clauses]
    if direction > 0:
        verbs.reverse()
    against = bool(named) and all(latent.value * direction < 0 for latent in named)
    return f"{NONE_WITH_IT if against else ''}{who} {', and '.join(verbs)}" if verbs else ""


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def weaknesses(evidence: Evidence, named: Sequence[Named], *, marked: bool = False) -> tuple[str, ...]:
    """Reasons to doubt the sentence: its stability, then each named latent's projection, activity and label. `marked`:
    whether a latent is active stands behind its name already."""
    return (*_unstable(evidence.stability), *(weakness for latent in named for weakness in _of_latent(evidence, latent, marked)))


def _unstable(stability: Stability) -> tuple[str, ...]:
    overlap = "not known" if stability.overlap is None else f"{stability.overlap:.2f}"
    correlation = "not known" if stability.rank_correlation is None else f"{stability.rank_correlation:.2f}"
    figures = f"top-K overlap over resamples {overlap}, rank correlation of the heads {correlation}; both should be at least {BOUND}"
    if stability.verdict == "unstable":
        return (f"Explanations of this reward model are unstable: another draw of prompts or another seed may name other latents ({figures}).",)
    return () if stability.verdict == "stable" else (f"Whether explanations of this reward model are stable is not known ({figures}).",)


def _of_latent(evidence: Evidence, named: Named, marked: bool) -> list[str]:
    column = int(np.flatnonzero(evidence.latent_ids == named.latent_id)[0])
    label = evidence.labels.get(named.latent_id)
    sentences = [_detection(evidence.table[column] if column < len(evidence.table) else {}, named.name)]
    if not marked and evidence.activation is not None and evidence.activation[column] <= 0:
        sentences.append(f"The SAE does not call {named.name} active where its projection is high.")
    if label and label.weakness:
        sentences.append(f"The label {named.name} {label.weakness}.")
    return [sentence for sentence in sentences if sentence]


def _detection(row: Mapping[str, Any], name: str) -> str:
    auroc, active = row.get("detection_auroc"), row.get("n_active")
    if auroc is not None:
        weak = f"The projection on {name} is a weak sign that the latent is active (detection AUROC {auroc:.2f}, should be at least {DETECTION})."
        return weak if auroc < DETECTION else ""
    if active is not None and active < TOO_RARE:
        times = f"{active} training {'response' if active == 1 else 'responses'}"
        return f"Too rare to say whether the projection on {name} shows that the latent is active: it is active in {times}."
    return f"Whether the projection on {name} shows that the latent is active is not known."
