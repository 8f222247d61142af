"""Golden numbers of a fit of the tiny preset: they move when a step computes something else, and then its number in VERSIONS must be raised.

Otherwise everyone's cache would keep serving what the old code computed. Figures are compared as loosely as another processor's arithmetic needs.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.backbone.presets import preset
from core.reward.extraction import load_hidden_states
from core.reward.known import read_known
from core.reward.model import SparseRM
from core.runs.store import Artefact, Store
from core.steps import VERSIONS, read_json, value_of

# {step: {"version": ..., "figures": ...}}. On a failure: is the change meant? Then raise VERSIONS[step] and write the new figures:
# UPDATE_GOLDEN=1 pytest tests/test_golden.py
GOLDEN = Path(__file__).with_name("golden.json")


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
    if step == "known":
        known = read_known(artefact.path, 32)
        assert known is not None
        return {"projections": float(np.abs(known.projections).mean()), "activations": float(known.activations.mean()), "n": len(known)}
    parts = SparseRM.load(artefact.path).parts
    return {"scale": parts.margin_scale, "median": float(np.abs(parts.reward_quantiles).mean()), "mean": float(np.abs(parts.projection_mean).mean())}


def near(found: Any, golden: Any) -> bool:
    if isinstance(golden, dict):
        return set(found) == set(golden) and all(near(found[name], golden[name]) for name in golden)
    if isinstance(golden, list) and golden and isinstance(golden[0], float):
        return len(found) == len(golden) and all(near(a, b) for a, b in zip(found, golden, strict=True))
    return bool(found == pytest.approx(golden, rel=0.05, abs=2e-3)) if isinstance(golden, float) else bool(found == golden)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def test_a_step_that_computes_something_else_has_another_version(made: dict[str, Artefact]) -> None:
    found = {step: {"version": version, "figures": rounded(figures(made, step))} for step, version in VERSIONS.items()}
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert {step: entry["version"] for step, entry in golden.items()} == VERSIONS, "write the new figures: UPDATE_GOLDEN=1"
    moved = {step: found[step]["figures"] for step in VERSIONS if not near(found[step]["figures"], golden[step]["figures"])}
    assert moved == {}, f"raise VERSIONS of {', '.join(moved)}, then UPDATE_GOLDEN=1"


def test_near_tells_numbers_apart() -> None:
    assert near({"a": [1.0, 2.0], "n": 3}, {"a": [1.01, 2.0], "n": 3})
    assert not near({"a": [1.0, 2.0], "n": 3}, {"a": [1.1, 2.0], "n": 3})
    assert not near({"a": [1.0, 2.0], "n": 4}, {"a": [1.0, 2.0], "n": 3})
    assert not near({"a": 1.0}, {"a": 1.0, "b": 1.0})
