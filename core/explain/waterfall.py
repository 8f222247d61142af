"""The bars of an explanation as values, which a terminal and a page draw.

Latents whose directions are nearly collinear share one bar. The bars stand in order of size; the latents that get no
bar of their own are summed in the last one, so that start, bars and end always add up (METHOD.md section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from core.explain.attribution import Attribution, same_sign
from core.explain.explanation import Explanation, PairExplanation
from core.explain.latent_names import name_in_list
from core.latents.labels import Labels

MOST_BARS = 8  # bars of latents; what is smaller is summed
MOST_NAMED = 8  # collinear latents that a note names
TOTALS = ("start", "end")


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a waterfall or of a row of changes, in units of the reward.

    `kind`: `start` and `end` stand at `value`; every other bar adds `value`: `prompt` (the prompt part of all latents),
    `latents` (one latent, or several with nearly collinear directions), `rest` (all latents that have no bar of their
    own), `part` (anything else, such as a sentence). `latent_ids` are the latents behind it, the strongest first.
    `deviation` is the standard deviation of `value` over the heads of all seeds, None where there is one head; `agreed`
    is False where not all heads give the sign of `value`. `note` is for a hover box.
    """

    label: str
    value: float
    kind: str = "part"
    latent_ids: tuple[int, ...] = ()
    deviation: float | None = None
    agreed: bool = True
    note: str = ""

    @property
    def latent_id(self) -> int | None:
        """The latent that a click on this bar means."""
        return self.latent_ids[0] if self.kind == "latents" else None


def waterfall_steps(explanation: Explanation | PairExplanation, labels: Labels, *, most: int = MOST_BARS) -> list[Bar]:
    """The bars from start to end: from the average training response to this one, or from rejected to chosen."""
    if isinstance(explanation, PairExplanation):
        return _margin_steps(explanation, labels, most)
    return _response_steps(explanation, labels, most)


def change_steps(change: Attribution, groups: Sequence[tuple[int, ...]], labels: Labels, *, most: int = MOST_BARS) -> list[Bar]:
    """What each latent did to the reward between two texts: the bars sum to the change. `groups`: collinear columns."""
    return _latent_bars(change, change.contribution, change.by_head, groups, labels, most)


def residual_of(steps: Sequence[Bar]) -> float:
    """What start and parts leave unexplained of the end: 0 but for rounding."""
    start, end = (next((step.value for step in steps if step.kind == kind), 0.0) for kind in TOTALS)
    return end - start - sum(step.value for step in steps if step.kind not in TOTALS)


def _margin_steps(pair: PairExplanation, labels: Labels, most: int) -> list[Bar]:
    margin = pair.margin
    start = Bar(label="Rejected response", value=margin.baseline_reward, kind="start")
    end = Bar(label="Chosen response", value=margin.reward, kind="end")
    return [start, *_latent_bars(margin, margin.contribution, margin.by_head, pair.chosen.figures.groups, labels, most), end]


def _response_steps(explanation: Explanation, labels: Labels, most: int) -> list[Bar]:
    """The prompt part is one bar, then come the response parts. Where no other response to the prompt is known the two
    can't be told apart, and the bars are whole contributions (METHOD.md section 4)."""
    attribution, groups, n_known = explanation.attribution, explanation.figures.groups, explanation.n_known
    start = Bar(label="Average training response", value=attribution.baseline_reward, kind="start")
    end = Bar(label="This response", value=attribution.reward, kind="end")
    if n_known < 2:
        return [start, *_latent_bars(attribution, attribution.contribution, attribution.by_head, groups, labels, most), end]
    prompt = Bar(
        label=f"Prompt part ({n_known} known responses)",
        value=float(explanation.prompt_part.sum()),
        kind="prompt",
        deviation=_deviation(explanation.prompt_by_head.sum(axis=1)),
        note=f"of all latents, mean over the {n_known} known responses to this prompt",
    )
    response_by_head = attribution.by_head - explanation.prompt_by_head
    return [start, prompt, *_latent_bars(attribution, explanation.response_part, response_by_head, groups, labels, most), end]


def _latent_bars(
    attribution: Attribution,
    value: Float[np.ndarray, " k"],
    by_head: Float[np.ndarray, "heads k"],
    groups: Sequence[tuple[int, ...]],
    labels: Labels,
    most: int,
) -> list[Bar]:
    """A bar a group of collinear latents, the largest first; the groups beyond `most` summed in one more bar."""
    ranked = sorted(groups, key=lambda group: -abs(value[list(group)].sum()))
    bars = [_group_bar(attribution, group, value, by_head, labels) for group in ranked[:most]]
    rest = [column for group in ranked[most:] for column in group]
    if rest:
        label = f"{len(rest)} other {'latent' if len(rest) == 1 else 'latents'}"
        bars.append(_bar("rest", label, rest, attribution, value, by_head))
    return bars


def _group_bar(attribution: Attribution, group: Sequence[int], value: np.ndarray, by_head: np.ndarray, labels: Labels) -> Bar:
    sure = same_sign(attribution.by_head) & same_sign(np.concatenate([value[None], by_head]))  # as the sentence names them
    total = value[list(group)].sum()
    columns = sorted(group, key=lambda column: (not (sure[column] and value[column] * total > 0), -abs(value[column])))
    strongest, *others = attribution.latent_ids[columns].tolist()
    label = name_in_list(strongest, labels.get(strongest)) + (f" (+{len(others)})" if others else "")
    note = f"with nearly collinear {', '.join(map(str, sorted(others)[:MOST_NAMED]))}" if others else ""
    return _bar("latents", label, columns, attribution, value, by_head, note)


def _bar(kind: str, label: str, columns: Sequence[int], attribution: Attribution, value: np.ndarray, by_head: np.ndarray, note: str = "") -> Bar:
    total, totals = float(value[list(columns)].sum()), by_head[:, list(columns)].sum(axis=1)
    agreed = bool(same_sign(np.append(totals, total)))
    notes = [note, "" if agreed or kind == "rest" else "the heads disagree on its sign"]
    return Bar(
        label=label,
        value=total,
        kind=kind,
        latent_ids=tuple(attribution.latent_ids[list(columns)].tolist()),
        deviation=_deviation(totals),
        agreed=agreed,
        note="; ".join(filter(None, notes)),
    )


def _deviation(by_head: Float[np.ndarray, " heads"]) -> float | None:
    return float(by_head.std(ddof=1)) if len(by_head) > 1 else None
