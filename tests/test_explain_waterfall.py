"""The bars of an explanation: they add up, collinear latents share one, and a terminal and a page show the same figures."""

from __future__ import annotations

import numpy as np
import pytest
from explain_helpers import hand_made
from rich.console import Console

from core.cli import explanation_view
from core.explain.explanation import Explanation, PairExplanation
from core.explain.explanation_builder import ExplanationBuilder
from core.explain.features import ResponseFeatures
from core.explain.waterfall import change_steps, residual_of, waterfall_steps
from workbench.response.charts import waterfall


def explanations() -> tuple[Explanation, PairExplanation, Explanation]:
    """A response to a known prompt, a pair, and a response to a prompt of which nothing else is known."""
    parts, known = hand_made()
    builder = ExplanationBuilder(parts, known)
    texts = [(known.texts(row), row) for row in (0, 1)]
    features = [
        ResponseFeatures(item=item, v=known.projections[row].astype(np.float64), f=known.activations[row].astype(np.float64))
        for item, row in texts
        if item is not None
    ]
    stranger = ResponseFeatures(item=(({"role": "user", "content": "New?"},), "Yes."), v=features[0].v, f=features[0].f)
    return builder.response(features[0], {}), builder.pair(features[0], features[1], {}), builder.response(stranger, {})


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("most", [1, 2, 8])
def test_bars_add_up_however_many_are_shown(number: int, most: int) -> None:
    explanation = explanations()[number]
    start, *parts, end = waterfall_steps(explanation, {}, most=most)
    assert start.value + sum(bar.value for bar in parts) == pytest.approx(end.value, abs=1e-9)
    assert residual_of([start, *parts, end]) == pytest.approx(explanation.attribution.residual, abs=1e-12)
    latents = [latent for bar in parts for latent in bar.latent_ids]
    assert sorted(latents) == sorted(explanation.attribution.latent_ids.tolist()), "each latent stands behind one bar"
    assert [bar.kind for bar in parts][-1] == ("rest" if most < 4 else "latents")


@pytest.mark.parametrize("number", range(3))
def test_a_terminal_and_a_page_show_the_same_figures(number: int) -> None:
    explanation = explanations()[number]
    steps = waterfall_steps(explanation, {})
    rows = [row for row in waterfall(steps).rows if row["kind"] != "residual"]
    console = Console(width=160, highlight=False)
    with console.capture() as capture:
        console.print(explanation_view.bars(steps))
    lines = capture.get().splitlines()
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert row["bar"] in line and f"{row['value']:+.3f}" in line


def test_a_bar_without_a_heads_agreement_is_marked() -> None:
    explanation = explanations()[1]
    attribution = explanation.attribution
    bars = change_steps(attribution, [(column,) for column in range(5)], {})
    agreed = dict(zip(attribution.latent_ids.tolist(), attribution.agreed.tolist(), strict=True))
    assert {bar.latent_id: bar.agreed for bar in bars} == agreed
    assert all(("disagree" in bar.note) != bar.agreed for bar in bars)
