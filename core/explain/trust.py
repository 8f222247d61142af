"""Whether an explanation can be believed, as rows of a table for terminal and page (METHOD.md section 4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from core.explain.explanation import Explanation, ModelFigures, PairExplanation
from core.explain.stability import BOUND

AT_LEAST = f"at least {BOUND}"


@dataclass(frozen=True, kw_only=True)
class TrustRow:
    """A figure in words and what it should be (empty where nothing can be asked of it)."""

    name: str
    value: str
    expected: str = ""


def trust_rows(explanation: Explanation | PairExplanation) -> list[TrustRow]:
    """The figures of this explanation, then those of all explanations of its reward model."""
    figures = explanation.chosen.figures if isinstance(explanation, PairExplanation) else explanation.figures
    attribution = explanation.attribution
    return [
        TrustRow(name="Start and bars less the reward (residual)", value=f"{attribution.residual:+.1e}", expected="0 but for rounding"),
        TrustRow(name="Rank correlation of the heads, here", value=_number(attribution.rank_correlation), expected=AT_LEAST),
        *_model_rows(figures),
        *_measured_rows(figures.faithfulness),
    ]


def _model_rows(figures: ModelFigures) -> Iterator[TrustRow]:
    stability, share = figures.stability, figures.prompt_share
    correlation = _interval(stability.rank_correlation, stability.low, stability.high)
    yield TrustRow(name="Rank correlation of the heads, this model", value=f"{correlation}, n = {stability.n:,} responses", expected=AT_LEAST)
    yield TrustRow(name="Selected again over resampled prompts", value=_number(stability.overlap), expected=AT_LEAST)
    if share is not None:
        value = f"{_interval(share.share, share.low, share.high)}, n = {share.n_prompts:,} prompts"
        yield TrustRow(name="Share of the reward's variance that lies between prompts", value=value)


def _measured_rows(faithfulness: Mapping[str, Any] | None) -> Iterator[TrustRow]:
    """What the fit measured on test pairs (core.explain.faithfulness)."""
    agreement = "Agreement of contributions with removals"
    if not faithfulness:
        yield TrustRow(name=agreement, value="not measured")
        return
    n_pairs = f", n = {faithfulness['n_pairs']:,} pairs"
    rows = [(f"{name.capitalize()} curve above random order", (faithfulness.get(name) or {}).get("area")) for name in ("deletion", "insertion")]
    for name, figure in (*rows, (agreement, faithfulness["agreement"])):
        if figure and figure.get("mean") is not None:
            value = _interval(figure["mean"], figure["low"], figure["high"]) + n_pairs
            yield TrustRow(name=name, value=value, expected="well above 0")
    cues = faithfulness["cues"]
    if cues and cues.get("reward"):
        length = cues["reward"]
        value = f"{_interval(length['value'], length['low'], length['high'])}, n = {cues['n']:,} responses"
        yield TrustRow(name="Correlation of the reward with length", value=value, expected="near 0")


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.2f}"


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    return _number(value) if low is None or high is None else f"{_number(value)} ({low:.2f} to {high:.2f})"
