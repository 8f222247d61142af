"""Golden figures of the steps after a fit (doctor, spaces, latents), and of a check of pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from golden_helpers import Figures, digest, only, spread
from left_out_helpers import lost, pair

from core.config import DataConfig, DoctorConfig, LatentsConfig, SpacesConfig
from core.data.pairs_file import read_pairs
from core.doctor.checks_left_out import left_out_differ
from core.doctor.doctor import doctor_report
from core.doctor.report import Check
from core.explain.model_spaces import model_spaces
from core.explain.spaces import picture, separation_scores
from core.explain.stability import prompt_share
from core.fit.pairs_check import PAIRS, REPORT, check_pairs
from core.latents.make_pages import make_pages
from core.latents.pages import SNIPPETS
from core.reward.folder import ModelFolder
from core.runs.store import Store
from core.types import PreferencePairs

ESTIMATE = ("value", "low", "high", "n", "n_prompts")
WINDOW = ("dataIndex", "maxValueTokenIndex", "binMin", "binMax", "binContains")


@dataclass(frozen=True, kw_only=True)
class FittedWorld:
    """A fitted reward model's folder, its cache, and a scratch folder."""

    folder: Path
    store: Store
    scratch: Path


def doctor(world: FittedWorld) -> Figures:
    report, _ = doctor_report(ModelFolder(world.folder, world.store), DoctorConfig(swaps=3, responses=8, dialogues=10))
    checks = {check.name: [check.status, check.n] for check in report.checks}
    values = {check.name: [check.value, check.low, check.high] for check in report.checks}
    details = {check.name: check.details for check in report.checks}
    counted = ("split leakage", "duplicates", "pairs left out", "label-swap null", "wording shortcut")
    whole = {name: details[name] for name in counted}
    figures = {"checks": checks, "counts": report.counts, "details": whole, "left out": dict(_left_out().details)}
    # Of twelve rewards to five prompts.
    figures["prompt share"] = prompt_share(np.array([0.0, 1, 1, 3, 4, 2, 2, 3, 6, 5, 9, 7]), np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4])).to_json()
    return Figures(figures=figures, loose={"values": values})


def _left_out() -> Check:
    """The check on sixty readable pairs and thirty others that are longer, more often of one subset, and mostly lost by
    the chosen answer.
    """
    every = [pair(i, chosen="a" * (i % 9 + i // 6), rejected="b" * (i % 7), subset="ab"[i % 3 == 0 or i > 85]) for i in range(90)]
    kept = PreferencePairs(pairs=tuple(every[:60]), split=("test",) * 60)
    return left_out_differ(kept, [lost(unread, "chosen" if i % 4 else "rejected") for i, unread in enumerate(every[60:])], 0.3)


def spaces(world: FittedWorld) -> Figures:
    # 150 of 200 responses and 2 draws, so that both seeds matter.
    config = SpacesConfig(points=150, perplexity=10, neighbours=5, random_draws=2)
    space_values, _ = model_spaces(ModelFolder(world.folder, world.store), config)
    steady = {name: value for name, value in space_values.figures.items() if not name.startswith("picture")}
    right = {
        name: [only(estimate and estimate.to_json(), *ESTIMATE) for estimate in (value.neighbours, value.neighbours_lead)]
        for name, value in steady.items()
    }
    silhouettes = {
        name: [only(estimate and estimate.to_json(), *ESTIMATE) for estimate in (value.silhouette, value.silhouette_lead)]
        for name, value in steady.items()
    }
    points = {name: digest(getattr(space_values, name)) for name in ("rows", "label", "prompt", "split")}
    settings = {name: value for name, value in space_values.made.items() if name != "library"}
    # A t-SNE of many points depends on rounding. On a ring of twelve points, neighbours in the picture are neighbours
    # on the ring.
    angles = 2 * np.pi * np.arange(12) / 12
    ring = picture(np.column_stack([np.cos(angles), np.sin(angles), np.zeros(12)]), config)
    distances = np.linalg.norm(ring[:, None] - ring[None], axis=2) + np.diag(np.full(12, np.inf))
    nearest = [sorted(row) for row in np.argsort(distances, axis=1)[:, :2].tolist()]
    # Eight points on a line, four neighbours each: where two vote for either label, the response counts as wrong.
    line, label = np.arange(8.0)[:, None] ** 1.5, np.array([1, 1, 1, 1, -1, -1, -1, -1])
    equal = separation_scores(line, label, np.arange(8), 4)[0].tolist()
    few = picture(np.array([[0.0, 0.0, 3.0], [1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, -3.0]]), config)
    return Figures(
        figures={
            "neighbours": right,
            **points,
            "made": settings,
            "n": space_values.n_held_out,
            "chance": space_values.chance,
            "ring": nearest,
            "equal votes": equal,
            "t-SNE": _asked_of_tsne(),
        },
        float32={"silhouette": silhouettes, "four points": np.abs(few).tolist()},
    )


def _asked_of_tsne() -> dict[str, Any]:
    """The options passed to scikit-learn, since a picture can't be compared across processors."""
    with patch("sklearn.manifold.TSNE") as tsne:
        tsne.return_value.fit_transform.return_value = np.zeros((6, 2))
        picture(np.zeros((6, 3)), SpacesConfig(seed=3, perplexity=10))
    return dict(tsne.call_args.kwargs)


def latents(world: FittedWorld) -> Figures:
    config = LatentsConfig(corpus="pairs", tokens=3000, window=12, top=3, intervals=3, per_interval=2, snippets=40, inactive=6)
    pages = make_pages(ModelFolder(world.folder, world.store), config)
    chosen = [pages[latent] for latent in list(pages)[:12]]
    texts = {page["index"]: [only(window, *WINDOW[:2]) for window in page["activations"]] for page in chosen}
    bins = {page["index"]: [only(window, *WINDOW[2:]) for window in page["activations"]][::2] for page in chosen}
    words = {page["index"]: [page["pos_str"][:3], page["neg_str"][:3], page["topkCosSimIndices"][:4], page["inactive"]] for page in chosen}
    snippets = [json.loads(line)["dataIndex"] for line in (pages.folder / SNIPPETS).open(encoding="utf-8")]
    return Figures(
        figures={
            "latents": list(pages),
            "corpus": {name: value for name, value in pages.corpus.items() if isinstance(value, (int, str))},
            "sources": pages.corpus["sources"],
            "windows": texts,
            "words": words,
            "snippets": snippets,
            "digits": max(len(f"{value:.9g}".replace(".", "").lstrip("0")) for page in chosen for value in page["topkCosSimValues"]),
            "share": [page["frac_nonzero"] for page in chosen],
            "density": [digest(page["freq_hist_data_bar_heights"]) for page in chosen[:4]],
        },
        loose={
            "bins": {index: spread([number for row in rows for number in row]) for index, rows in bins.items()},
            "highest": spread([page["maxActApprox"] for page in chosen]),
            "logits": [spread([*page["pos_values"], *page["neg_values"]]) for page in chosen],
            "cosines": [spread(page["topkCosSimValues"]) for page in chosen],
        },
    )


def pairs_check(world: FittedWorld) -> Figures:
    """Sixty prompts, every third with two pairs, of which length and wording classify some; with copies, a
    contradiction and a bad row.
    """
    rows: list[Any] = []
    for i in range(80):
        kind, rude = ("gladly", "fool") if i % 5 else ("fool", "gladly")
        long, short = "so it is done well and slowly, ", "done, "
        before = (long, short) if i % 3 else (short, long)
        rows.append({"prompt": f"How do I mend thing {i % 60}?", "chosen": f"{before[0]}{kind} {i}", "rejected": f"{before[1]}{rude} {i}"})
    turned = {**rows[4], "chosen": rows[4]["rejected"], "rejected": rows[4]["chosen"]}
    rows += [rows[3], turned, {"prompt": "only a prompt"}, {**rows[7], "rejected": rows[7]["chosen"]}]
    source = world.scratch / "golden-pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    artefact = check_pairs(DataConfig(pairs=str(source)), world.store)
    split, report = read_pairs(artefact.file(PAIRS)), json.loads(artefact.file(REPORT).read_text(encoding="utf-8"))
    shortcuts = {name: only(entry, "accuracy", "low", "high", "n", "note", "split", "unit") for name, entry in report["shortcuts"].items()}
    counts = {name: value for name, value in report["data"].items() if isinstance(value, int)}
    manifest = {name: value for name, value in artefact.facts.items() if name != "source"}
    return Figures(
        figures={
            "shortcuts": shortcuts,
            "counts": counts,
            "said": manifest,
            "splits": {name: digest(split.rows_of(name)) for name in ("train", "validation", "test")},
            "split": {name: value for name, value in report["split"].items() if isinstance(value, (int, str, float))},
            "report": {name: sorted(part) for name, part in report.items()},
        }
    )


FIGURES: Mapping[str, Callable[[FittedWorld], Figures]] = {"doctor": doctor, "spaces": spaces, "latents": latents, "pairs_check": pairs_check}
