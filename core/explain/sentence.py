"""The sentence that explains a reward or a margin, the same one for command, page and file (METHOD.md section 4).

1. Latents whose directions are nearly collinear count as one. They are ranked by their response part, or by whole
   contributions where only one response to the prompt is known.
2. At most three are named, by label where there is one; none whose sign differs between the heads of different seeds.
3. The reasons to doubt the sentence follow it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core.explain.attribution import same_sign
from core.explain.latent_names import name_in_sentence
from core.explain.stability import BOUND, Stability
from core.latents.labels import Labels
from core.statistics.significance import TOO_RARE
from core.types import JsonFields

MOST_NAMED = 3
DETECTION = 0.8  # below this AUROC a projection is a weak sign of the latent's activity (METHOD.md section 1)
NOTHING_KEPT = "No known responses are kept with this reward model, so what the prompt does and what the response does cannot be told apart."
ONE_KNOWN = "Only this response to the prompt is known, so what the prompt does and what the response does cannot be told apart."


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a sentence is made from, a column a latent: `value` is what ranks (response parts, contributions, or shares
    of a margin), `by_head` the same of each seed's head, `moved` how far the projection lies from what it is compared
    with. `activation` is f of whichever has the higher projection, NaN where it is missing. `table`: selection rows."""

    latent_ids: Int[np.ndarray, " k"]
    value: Float[np.ndarray, " k"]
    by_head: Float[np.ndarray, "heads k"]
    contribution_by_head: Float[np.ndarray, "heads k"]
    moved: Float[np.ndarray, " k"]
    groups: tuple[tuple[int, ...], ...]
    table: Sequence[Mapping[str, Any]]
    stability: Stability
    activation: Float[np.ndarray, " k"] | None = None
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Named:
    """A latent in the sentence: its name, whether its projection is `high` or `low`, its collinear group's sum."""

    latent_id: int
    name: str
    level: str
    value: float
    collinear: tuple[int, ...]

    def clause(self, more: str) -> str:
        """`low on latent 12 (-0.41)`; `more` turns low into lower."""
        beside = f", with {len(self.collinear)} nearly collinear {'latent' if len(self.collinear) == 1 else 'latents'}" if self.collinear else ""
        return f"{self.level}{more} on {self.name}{beside} ({self.value:+.2f})"


@dataclass(frozen=True, kw_only=True)
class Why(JsonFields):
    """The sentence, the latents it names, and its weaknesses, a sentence each. `str()` joins them."""

    text: str
    named: tuple[Named, ...]
    weaknesses: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.text, *self.weaknesses))


def why_response(evidence: Evidence, *, reward: float, percentile: float, n_known: int) -> Why:
    """Why a response got its reward. `n_known`: known responses to its prompt with itself; 0: none are kept at all."""
    named = choose(evidence)
    others = n_known - 1
    against = f"{others} other known {'response' if others == 1 else 'responses'} to this prompt" if others > 0 else "the average training response"
    body = _because("it", named, more="") or "no latent can be named, since the heads of different seeds disagree on what each does"
    unsplit = [] if others > 0 else [ONE_KNOWN if n_known else NOTHING_KEPT]
    text = f"Scored {reward:.2f}, {rank_in_words(percentile)}: against {against}, {body}."
    return Why(text=text, named=named, weaknesses=(*unsplit, *weaknesses(evidence, named)))


def why_pair(evidence: Evidence, *, margin: float, probability: float) -> Why:
    """Why the chosen response wins or loses. The prompt's part cancels within a pair."""
    named = choose(evidence)
    chance = f"P(chosen wins) = {probability:.2f}"
    if margin > 0:
        start, who = f"The chosen response wins by {margin:.2f} ({chance})", "it"
    elif margin < 0:
        start, who = f"The rejected response wins by {-margin:.2f}, so the pair is mis-ranked ({chance})", "the chosen one"
    else:
        return Why(text="The two responses tie: the reward model sees no difference between them.", named=(), weaknesses=weaknesses(evidence, ()))
    body = _because(who, named, more="er") or "no latent can be named, since the heads of different seeds disagree on what each does"
    return Why(text=f"{start}: {body}.", named=named, weaknesses=weaknesses(evidence, named))


def choose(evidence: Evidence) -> tuple[Named, ...]:
    """Latents to name, strongest first, one a collinear group; all heads agree on the signs of it and its group."""
    sure = same_sign(evidence.contribution_by_head) & same_sign(np.concatenate([evidence.value[None], evidence.by_head]))
    candidates = [_of_group(evidence, sure, group) for group in evidence.groups]
    return tuple(sorted((named for named in candidates if named), key=lambda named: -abs(named.value))[:MOST_NAMED])


def _of_group(evidence: Evidence, sure: np.ndarray, group: tuple[int, ...]) -> Named | None:
    columns = np.array(group)
    total = float(evidence.value[columns].sum())
    totals = np.append(evidence.by_head[:, columns].sum(axis=1), total)
    fits = [i for i in group if sure[i] and evidence.value[i] * total > 0]
    if not fits or not same_sign(totals):
        return None
    best = max(fits, key=lambda i: abs(evidence.value[i]))
    latent = int(evidence.latent_ids[best])
    return Named(
        latent_id=latent,
        name=name_in_sentence(latent, evidence.labels.get(latent)),
        level="high" if evidence.moved[best] > 0 else "low",
        value=total,
        collinear=tuple(int(evidence.latent_ids[i]) for i in group if i != best),
    )


def rank_in_words(percentile: float) -> str:
    """Where a percentile among held-out responses lies, in words."""
    if 40 <= percentile <= 60:
        return "near the middle of held-out responses"
    side, share = ("lowest", percentile) if percentile < 50 else ("highest", 100 - percentile)
    return f"in the {side} {max(1, math.ceil(share))} % of held-out responses"


def _because(who: str, named: Sequence[Named], more: str) -> str:
    """`it lost by being low on A (-0.41), and gained by being high on C (+0.11)`; empty without latents."""
    lost, gained = ([latent.clause(more) for latent in named if (latent.value > 0) is up] for up in (False, True))
    verbs = [f"{verb} by being {_and(clauses)}" for verb, clauses in (("lost", lost), ("gained", gained)) if clauses]
    if named and named[0].value > 0:
        verbs.reverse()
    return f"{who} {', and '.join(verbs)}" if verbs else ""


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def weaknesses(evidence: Evidence, named: Sequence[Named]) -> tuple[str, ...]:
    """Reasons to doubt the sentence: its stability, then each named latent's projection, activity and label."""
    return (*_unstable(evidence.stability), *(weakness for latent in named for weakness in _of_latent(evidence, latent)))


def _unstable(stability: Stability) -> tuple[str, ...]:
    overlap = "not known" if stability.overlap is None else f"{stability.overlap:.2f}"
    correlation = "not known" if stability.rank_correlation is None else f"{stability.rank_correlation:.2f}"
    figures = f"top-K overlap over resamples {overlap}, rank correlation of the heads {correlation}; both should be at least {BOUND}"
    if stability.verdict == "unstable":
        return (f"Explanations of this reward model are unstable: another draw of prompts or another seed may name other latents ({figures}).",)
    return () if stability.verdict == "stable" else (f"Whether explanations of this reward model are stable is not known ({figures}).",)


def _of_latent(evidence: Evidence, named: Named) -> list[str]:
    column = int(np.flatnonzero(evidence.latent_ids == named.latent_id)[0])
    label = evidence.labels.get(named.latent_id)
    sentences = [_detection(evidence.table[column] if column < len(evidence.table) else {}, named.name)]
    if evidence.activation is not None and evidence.activation[column] <= 0:
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
