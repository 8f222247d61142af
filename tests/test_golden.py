"""Golden numbers of a fit of the tiny preset: they move when a step computes something else, and then its number in VERSIONS must be raised.

Otherwise everyone's cache would keep serving what the old code computed. Figures are compared as loosely as another processor's arithmetic needs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from core.backbone.presets import preset
from core.reward.extraction import load_hidden_states
from core.reward.model import SparseRM
from core.runs.store import Artefact, Store
from core.steps import VERSIONS, read_json, value_of

# step: (its version, its figures). On a failure: is the change meant? Then raise VERSIONS[step] and put the new figures here.
GOLDEN: dict[str, tuple[int, dict[str, Any]]] = {
    "pairs": (1, {"content": "6c6a94679166c587", "splits": {"test": 50, "train": 39, "unused": 0, "validation": 11}}),
    "extraction": (1, {"mean": 0.38749, "first": [0.068096, 0.12102, -1.1077], "tokens": 2126}),
    "frequencies": (1, {"active": 1855.0, "separation": 29.769, "low": -2.934}),
    "heads": (1, {"bce": 1.4524, "bradley-terry": 1.4098, "margin": 1.3122, "latents": [2, 5, 6, 8, 13, 16, 19, 26], "detection": 0.7786}),
    "controls": (
        1,
        {
            "difference-of-means": 2.7974,
            "linear-probe": 0.032513,
            "wording-only": 0.64378,
            "length-only": 1.58,
            "activations": 0.87073,
            "dense": 1.842,
            "random-isotropic": 1.477,
            "random-rows": 1.2709,
        },
    ),
    "curve": (
        1,
        {
            "sparserm 4": 1.0,
            "random-isotropic 4": 1.0,
            "random-rows 4": 0.90909,
            "activations 4": 0.90909,
            "sparserm 8": 0.90909,
            "random-isotropic 8": 1.0,
            "random-rows 8": 0.90909,
            "activations 8": 1.0,
        },
    ),
    "evaluation": (1, {"length-only": [0.38, 0.26, 0.5098], "wording-only": [1.0, 0.88649, 1.0]}),
    "reward_model": (1, {"scale": 2.1501, "median": 0.65514, "mean": 0.12025}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artefact]:
    from core.pipeline import fit

    config, store = preset("tiny"), Store(tmp_path_factory.mktemp("golden"))
    head, selection = replace(config.head, seeds=2, epochs=10), replace(config.selection, resamples=20)
    fit(replace(config, head=head, selection=selection, random_draws=2, curve=(4, 8)), store)
    return {artefact.step: artefact for _, artefact in store.all() if isinstance(artefact, Artefact)}


def figures(made: dict[str, Artefact], step: str) -> dict[str, Any]:
    """What a step made, in a few figures: whole numbers and texts must be equal, others near."""
    artefact = made[step]
    if step == "pairs":
        return {"content": artefact.manifest["said"]["content"][:16], "splits": artefact.manifest["said"]["splits"]}
    if step == "extraction":
        hidden = load_hidden_states(artefact.path, 1, "response_end")
        return {
            "mean": float(np.abs(hidden.states).mean()),
            "first": hidden.states[0, :3].astype(float).tolist(),
            "tokens": int(hidden.n_tokens.sum()),
        }
    if step == "frequencies":
        value = value_of(artefact.path, "frequencies")
        return {"active": float(value.n_active.sum()), "separation": float(np.abs(value.separation).sum()), "low": float(np.nansum(value.low))}
    if step == "heads":
        sparse = value_of(artefact.path, "heads")
        margins = {loss: float(np.abs(family.margins).mean()) for loss, family in sparse.losses.items()}
        return {**margins, "latents": sorted(sparse.selected.latent_ids.tolist())[:8], "detection": float(np.nanmean(sparse.detection))}
    if step == "controls":
        controls = value_of(artefact.path, "controls")
        probes = {probe.kind: float(np.abs(probe.margins).mean()) for probe in controls.probes}
        return probes | {kind: float(np.abs(family.margins).mean()) for kind, family in controls.families.items()}
    if step == "curve":
        points = read_json(artefact.file("curve.json"))
        return {f"{point['kind']} {point['k']}": float(point["accuracy"]) for point in points}
    if step == "evaluation":
        table = read_json(artefact.file("evaluation.json"))
        return {name: [float(entry[key]) for key in ("accuracy", "low", "high")] for name, entry in table["controls"].items() if "only" in name}
    parts = SparseRM.load(artefact.path).parts
    return {"scale": parts.margin_scale, "median": float(np.abs(parts.reward_quantiles).mean()), "mean": float(np.abs(parts.projection_mean).mean())}


def near(found: Any, golden: Any) -> bool:
    if isinstance(golden, dict):
        return set(found) == set(golden) and all(near(found[name], golden[name]) for name in golden)
    if isinstance(golden, list) and golden and isinstance(golden[0], float):
        return len(found) == len(golden) and all(near(a, b) for a, b in zip(found, golden, strict=True))
    return bool(found == pytest.approx(golden, rel=0.05, abs=2e-3)) if isinstance(golden, float) else bool(found == golden)


@pytest.mark.parametrize("step", list(VERSIONS))
def test_a_step_that_computes_something_else_has_another_version(made: dict[str, Artefact], step: str) -> None:
    version, golden = GOLDEN[step]
    found = figures(made, step)
    assert version == VERSIONS[step], f"new figures of {step}: {found}"
    assert near(found, golden), f"{step} computes something else: raise VERSIONS['{step}'] and GOLDEN; found {found}, golden {golden}"
