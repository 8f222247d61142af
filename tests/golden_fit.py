"""Golden figures of a fit's nine steps (core/fit/steps.py), on the tiny preset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from golden_helpers import Figures, digest, only, spread

from core.backbone.presets import preset
from core.config import FitConfig
from core.data.pairs_file import read_pairs
from core.data.splits import apportion
from core.files import read_json
from core.fit.steps import value_of
from core.reward.fit_responses import read_responses
from core.reward.hidden_states import load_hidden_states
from core.reward.model import SparseRM
from core.reward.ranking import select
from core.runs.store import Artefact

ACCURACY = ("accuracy", "low", "high", "n")
FitArtefacts = Mapping[str, Artefact]


def fit_config() -> FitConfig:
    """The tiny preset, smaller."""
    config = preset("tiny")
    head, selection = replace(config.head, seeds=2, epochs=10), replace(config.selection, resamples=20)
    return replace(config, head=head, selection=selection, random_draws=2, curve=(4, 8))


def pairs(artefacts: FitArtefacts) -> Figures:
    manifest, split = artefacts["pairs"].facts, read_pairs(artefacts["pairs"].file("pairs.jsonl"))
    report = read_json(artefacts["pairs"].file("report.json"))
    return Figures(
        figures={
            "content": manifest["content"][:16],
            "texts": manifest["texts"][:16],
            "splits": manifest["splits"],
            "rows": {name: split.rows_of(name).tolist()[:12] for name in ("train", "validation", "test")},
            "report": sorted(report),
            "apportioned": apportion(10, (0.25, 0.25, 0.5)),  # of equal remainders the earlier is rounded up
            "data": {name: value for name, value in report["data"].items() if isinstance(value, int)},
        }
    )


def extraction(artefacts: FitArtefacts) -> Figures:
    artefact = artefacts["extraction"]
    hidden, report = load_hidden_states(artefact.path, 1, "response_end"), artefact.facts
    counts = {name: value for name, value in report.items() if isinstance(value, int)}
    rows = {name: digest(getattr(hidden, name)) for name in ("chosen_rows", "rejected_rows", "pair_rows", "n_tokens")}
    states = {"first": hidden.states[0, :4].astype(float).tolist(), "all": spread(hidden.states)}
    return Figures(figures={**rows, "counts": counts, "files": sorted(artefact.manifest["files"])}, float32=states)


def frequencies(artefacts: FitArtefacts) -> Figures:
    path = artefacts["frequencies"].path
    value, resamples = value_of(path, "frequencies"), value_of(path, "resamples")
    counts = {name: digest(getattr(value, name)) for name in ("n_active", "prompts_for", "prompts_against")}
    shares = {name: spread(getattr(value, name)) for name in ("chosen", "rejected", "p_value", "q_value", "held_out", "low", "high")}
    drawn = {name: getattr(resamples, name)[:3, :6].tolist() for name in ("chosen", "rejected")}
    return Figures(figures={**counts, **shares, "resamples": drawn, "all resamples": digest([digest(resamples.chosen), digest(resamples.rejected)])})


def _heads(family: Any) -> list[Any]:
    return [[head.seed, head.epoch, head.epochs, head.validation_accuracy] for head in family.heads]


def _family(family: Any) -> dict[str, Any]:
    chosen = None if family.latent_ids is None else family.latent_ids.tolist()
    return {"heads": _heads(family), "shipped": family.shipped, "latents": chosen, "right": int((family.margins > 0).sum())}


def heads(artefacts: FitArtefacts) -> Figures:
    sparse = value_of(artefacts["heads"].path, "heads")
    selected = sparse.selected
    return Figures(
        figures={
            "latents": selected.latent_ids.tolist(),
            "side": selected.side.tolist(),
            "separation": spread(selected.separation),
            "stability": spread(selected.stability),
            "summary": sparse.summary.to_json(),
            "losses": {loss: _heads(family) for loss, family in sparse.losses.items()},
            "shipped": {loss: family.shipped for loss, family in sparse.losses.items()},
            # Of equal separations the lower latent id is taken; a separation of zero is on neither side.
            "equal": [part.tolist() for part in select(np.array([0.2, 0.5, 0.0, 0.5, -0.1, 0.2, -0.1, -0.4]), 3)],
        },
        loose={
            "detection": spread(sparse.detection),
            "margins": {loss: spread(family.margins) for loss, family in sparse.losses.items()},
            "scale": {loss: family.margin_scale for loss, family in sparse.losses.items()},
            "quantiles": spread(sparse.sparserm.reward_quantiles),
        },
    )


def controls(artefacts: FitArtefacts) -> Figures:
    value = value_of(artefacts["controls"].path, "controls")
    probes = {probe.kind: [probe.note, probe.n_parameters, int((probe.margins > 0).sum())] for probe in value.probes}
    families = {kind: _family(family) for kind, family in value.families.items()}
    exact = {probe.kind: spread(probe.margins) for probe in value.probes if probe.kind == "length-only"}
    margins = {probe.kind: spread(probe.margins) for probe in value.probes} | {
        kind: spread(family.margins) for kind, family in value.families.items()
    }
    return Figures(figures={"probes": probes, "families": families, **exact}, loose=margins)


def curve(artefacts: FitArtefacts) -> Figures:
    points = read_json(artefacts["curve"].file("curve.json"))
    return Figures(figures={f"{p['kind']} {p['k']}": only(p, "n_directions", "n_heads", *ACCURACY) for p in points})


def evaluation(artefacts: FitArtefacts) -> Figures:
    table = read_json(artefacts["evaluation"].file("evaluation.json"))
    lines: dict[str, Callable[[Any], Any]] = {
        "test": lambda entry: only(entry, *ACCURACY),
        "mean": lambda entry: only(entry["mean"], *ACCURACY),
        "validation": lambda entry: only(entry["validation"], *ACCURACY),
        "lead": lambda entry: entry["sparserm_minus_this"],
        "subsets": lambda entry: {name: only(part, *ACCURACY) for name, part in entry["subsets"].items()},
        "shipped": lambda entry: entry["shipped"],
    }
    entries = {"sparserm": table["sparserm"], **table["controls"], **{f"loss {name}": entry for name, entry in table["losses"].items()}}
    figures = {name: {line: taken(entry) for line, taken in lines.items()} for name, entry in entries.items()}
    return Figures(figures={**figures, "n_prompts": table["n_prompts"], "measured_on": table["measured_on"], "pair_counts": table["pair_counts"]})


def known(artefacts: FitArtefacts) -> Figures:
    value = read_responses(artefacts["known"].path, 32)
    assert value is not None
    names = ("n_tokens", "prompt_ids", "response_ids", "chosen_rows", "rejected_rows", "split")
    active = [int(count) for count in (value.activations > 0).sum(axis=0)]
    return Figures(
        figures={name: digest(getattr(value, name)) for name in names} | {"n": len(value), "active": active},
        float32={
            "first": value.projections[0, :8].astype(float).tolist(),
            "projections": spread(value.projections),
            "activations": spread(value.activations),
        },
    )


def reward_model(artefacts: FitArtefacts) -> Figures:
    folder = artefacts["reward_model"].path
    parts, faithful = SparseRM.load(folder).parts, read_json(folder / "faithfulness.json")
    counts = {name: faithful[name] for name in ("n_pairs", "n_prompts", "n_left_out", "n_held_out")}
    curves = {name: {line: [sorted(p.items()) for p in points][::5] for line, points in faithful[name].items() if line != "area"}
              for name in ("deletion", "insertion")}  # fmt: skip
    files = sorted(name for name in artefacts["reward_model"].manifest["files"] if name.endswith(".json"))
    return Figures(
        figures={"seeds": list(parts.seeds), "latents": parts.latent_ids.tolist(), "faithful": counts, "files": files, "kind": parts.kind},
        loose={
            "scale": float(parts.margin_scale),
            "quantiles": spread(parts.reward_quantiles),
            "mean": spread(parts.projection_mean),
            "deviation": spread(parts.projection_std),
            "agreement": faithful["agreement"],
            "cues": faithful["cues"],
            "area": {name: faithful[name]["area"] for name in curves},
            "curves": curves,
        },
    )


FIGURES: Mapping[str, Callable[[FitArtefacts], Figures]] = {
    "pairs": pairs, "extraction": extraction, "frequencies": frequencies, "heads": heads, "controls": controls, "curve": curve,
    "evaluation": evaluation, "known": known, "reward_model": reward_model,
}  # fmt: skip
