"""The real fit of TruthfulQA on SmolLM2: METHOD.md's verdict says stable there, and unstable where labels were swapped.

Slow (minutes of extraction, unless the checkout's cache holds it), and skipped where the data or the embedded model is absent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_data import real_data
from reward_helpers import swap_labels

from core.backbone.presets import preset
from core.config import DataConfig, FitConfig
from core.errors import SparseRMError
from core.explain.explainer import Explainer
from core.explain.faithfulness import faithfulness
from core.explain.stability import stability
from core.fit.defaults import complete, known_sae
from core.fit.steps import Steps, pairs_of
from core.reward.fit_responses import FitResponses, collect_responses
from core.reward.fitting import SparseFit, fit_sparserm
from core.reward.hidden_states import HiddenStates
from core.reward.model import SparseRM
from core.reward.parts import RewardParts
from core.reward.parts_from_fit import PartsFromFit
from core.reward.projection import activations, project
from core.reward.selection import latent_frequencies
from core.runs.store import Store
from core.sae.autoencoder import load_sae
from core.types import PreferencePairs, no_progress

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
LAYER = preset("smollm2-135m").backbone.layer
NO_TABLE: dict[str, Any] = {"accuracy": None, "low": 0.0, "high": 1.0, "n": 0, "validation": {"n": 0}}


@dataclass
class Real:
    """The extraction of TruthfulQA, and whatever a fit of it needs."""

    config: FitConfig
    hidden: HiddenStates
    pairs: PreferencePairs
    backbone: Any

    def fit(self, hidden: HiddenStates) -> tuple[RewardParts, FitResponses]:
        """Selection and heads on these labels, and what explaining needs of them."""
        sae = load_sae(self.config.sae)
        frequencies, resamples = latent_frequencies(hidden, self.pairs, sae, self.config.selection, self.config.selection.k)
        sparse: SparseFit = fit_sparserm(hidden, self.pairs, sae, frequencies, resamples, self.config)
        maker = PartsFromFit(config=self.config, backbone=self.backbone, sae=sae, frequencies=frequencies, method={})
        seen = project(hidden.states, sparse.selected.directions), activations(hidden.states, sparse.selected.latent_ids, sae)
        return maker.sparserm(sparse, NO_TABLE), collect_responses(hidden, self.pairs, *seen)


@pytest.fixture(scope="module")
def real() -> Real:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSERM_CACHE", str(ROOT / "cache"))  # where a person's SAE and extractions lie
        config, store = preset("smollm2-135m"), Store(ROOT / "cache")
        truthfulqa = real_data("truthfulqa/TruthfulQA.csv")
        try:
            missing = known_sae(config.backbone, store) is None
        except SparseRMError as error:
            pytest.skip(f"the embedded model is not at hand: {error.problem}")
        if missing:
            pytest.skip("no SAE of the embedded model")
        asked = replace(config, data=DataConfig(pairs=str(truthfulqa), protocol="truthfulqa"))
        work = Steps(config=complete(asked, store, lambda _: None), store=store, progress=no_progress)
        pairs = work.pairs()
        states = work.extraction(pairs, work.layer_sae)[LAYER]
        hidden, aligned = states.load(pairs_of(pairs.path))
        return Real(config=work.config, hidden=hidden, pairs=aligned, backbone=states.backbone)


def test_the_real_fit_is_stable_faithful_and_complete(real: Real) -> None:
    parts, known = real.fit(real.hidden)
    found = stability(parts, known)
    print(f"\nreal: {found.to_json()}")
    assert found.verdict == "stable"
    measured = faithfulness(parts, known)
    assert measured.deletion is not None and measured.insertion is not None and measured.agreement is not None
    print(f"deletion {measured.deletion.area}, insertion {measured.insertion.area}, agreement {measured.agreement}, residual {measured.residual:.1e}")
    assert measured.deletion.area.low > 0 and measured.insertion.area.low > 0 and measured.agreement.low > 0
    assert measured.residual < 1e-9 and measured.n_pairs >= 200


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_swapped_labels_it_is_unstable(real: Real, seed: int) -> None:
    parts, known = real.fit(swap_labels(real.hidden, real.pairs, seed))
    found = stability(parts, known)
    print(f"\nswapped {seed}: {found.to_json()}")
    assert found.verdict == "unstable"


def test_explanations_hold_together(real: Real) -> None:
    """The most mis-ranked pair and the clearest one, from what is kept alone."""
    parts, known = real.fit(real.hidden)
    explainer = Explainer(SparseRM(parts, lambda items: (np.zeros((0, parts.d_model), dtype=np.float32), {})))
    explainer.builder.known = known
    rewards = parts.head.reward(known.projections)
    margins = rewards[known.chosen_rows] - rewards[known.rejected_rows]
    for number in (
        int(known.held_out_pairs[margins[known.held_out_pairs].argmin()]),
        int(known.held_out_pairs[margins[known.held_out_pairs].argmax()]),
    ):
        found = explainer.explain_known(number)
        print(f"\n{found.chosen.prompt[-1]['content']}\n+ {found.chosen.response}\n- {found.rejected.response}\n{found.why}")
        assert abs(found.margin.residual) < 1e-9 and 1 <= len(found.why.named) <= 3
        assert found.margin.reward - found.margin.baseline_reward == pytest.approx(margins[number], abs=1e-6)
