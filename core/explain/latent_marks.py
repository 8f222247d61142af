"""What speaks against reading much into a latent in one text, in few words: it is not active there, or its label is poor.

The marks stand wherever a page names the latent: beside its bar, in its card, below the sentence, which marks it in its
own words (core.explain.sentence; METHOD.md sections 1 and 4).
"""

from __future__ import annotations

import math

from core.explain.sentence import CHANCE, no_better_than_chance
from core.latents.labels import POOR, Label, Score, shown_score

NOT_ACTIVE = "not active here"
NO_LABEL = "no label"


def latent_marks(label: Label | None, activation: float | None, *, figures: bool = True) -> tuple[str, ...]:
    """The marks of a latent with this label and activation f (None or NaN: not known); none where nothing is wrong.
    `figures`: with the label's score."""
    inactive = activation is not None and not math.isnan(activation) and activation <= 0
    return tuple(filter(None, (NOT_ACTIVE if inactive else "", label_mark(label, figures=figures))))


def label_mark(label: Label | None, *, figures: bool = True) -> str:
    """Why not to rely on the label, with its score; empty where it is good enough, or its score is not known."""
    if label is None or label.score is None:
        return ""
    shown = f"{label.score:.2f}{_interval(label, ', {} to {}')}"
    if no_better_than_chance(label):
        return "label no better than chance" + (f" ({shown})" if figures else "")
    if label.score >= POOR:
        return ""
    return "weak label" + (f" ({shown}; chance is {CHANCE:.2f})" if figures else "")


def reliability(label: Label | None) -> str:
    """How well the label tells where its latent is active, in words: `label score 0.83 (0.76 to 0.90), 0.50 is chance`."""
    if label is None:
        return NO_LABEL
    if label.score is None:
        return "label not scored"
    return f"label score {label.score:.2f}{_interval(label, ' ({} to {})')}, {CHANCE:.2f} is chance"


def _interval(label: Label, form: str) -> str:
    score = _score(label)
    return "" if score is None or score.low is None or score.high is None else form.format(f"{score.low:.2f}", f"{score.high:.2f}")


def _score(label: Label) -> Score | None:
    """The score that is shown with the label, with its interval."""
    return shown_score(label.scores)
