"""One name, one number: wherever a page shows an accuracy it says of which heads it is, and of which pairs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pages_helpers import open_page
from streamlit.testing.v1 import AppTest

from core.backbone.presets import preset
from core.config import DoctorConfig, FitConfig
from core.doctor.doctor import doctor_report
from core.files import write_json
from core.fit.pipeline import fit
from core.reward.folder import ModelFolder
from core.runs import launch
from core.runs.registry import Run, Status
from core.runs.store import Store, cache_root
from workbench.frame import models

PAGES = ("overview", "preferences", "latents", "latent", "spaces", "doctor", "response", "compare", "align", "shift", "runs")
# A share that tells how often chosen is told from rejected: what calls itself so, and what a page says of wording or length alone.
ACCURACY = re.compile(r"accuracy|tells chosen from rejected|head, seed", re.IGNORECASE)
NUMBER = re.compile(r"\d\.\d+")
# What is said of wording and length alone is of no head; the doctor's null is a mean over swaps.
HEADS = re.compile(r"mean of \d+ heads|means of heads|shipped head|one head|only tells chosen from rejected|over \d+ swaps", re.IGNORECASE)
PAIRS = re.compile(r"(test|validation|shared|held-out|same) pairs", re.IGNORECASE)


@pytest.fixture(scope="module", autouse=True)
def cache() -> Iterator[Path]:
    """A cache of its own with two reward models of the same pairs, a report, and the run of a fit."""
    root = cache_root() / "accuracies"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSERM_CACHE", str(root))
        store, config = Store(root), preset("tiny")
        small = {"selection": replace(config.selection, resamples=20), "random_draws": 2, "curve": (4,)}
        for seeds in (2, 3):
            config = replace(preset("tiny"), head=replace(config.head, seeds=seeds, epochs=5), **small)
            outcome = fit(config, store)
        doctor_report(ModelFolder(outcome.artefact, store), DoctorConfig(swaps=3, responses=4, dialogues=2))
        _run(config, root, {"artefact": str(outcome.artefact), "artefacts": [], "outcome": outcome.to_json()})
        yield root


def _run(config: FitConfig, root: Path, result: dict[str, object]) -> None:
    run, lock = launch.new_run("fit", config.to_dict(), root.resolve(), None)
    run.write(Status(state="succeeded", attempt=1, queued=1.0, started=2.0, ended=3.0))
    lock.release()
    write_json(run.path / "result.json", json.loads(json.dumps(result)))


def blocks(at: AppTest) -> list[str]:
    """Texts that are read as one: a sentence or table, a figure with its name and what stands below it, a table's row with its heads, a chart."""
    texts = [part for kind in (at.text, at.caption, at.markdown) for one in kind for part in _parts(str(one.value))]
    below, _, further = next((str(one.value) for one in at.caption if "of the same pairs" in str(one.value)), "").partition("; ")
    texts += [f"accuracy {further}"]
    for metric in at.metric:
        said = [below] if metric.label.startswith("Test accuracy") else [str(metric.help)]
        texts.append(" ".join([metric.label, metric.value, str(metric.delta), *said]))
    for frame in at.dataframe:
        for row in frame.value.to_dict("records"):
            texts.append(" ".join(f"{name}: {value}" for name, value in row.items() if "accuracy" in str(name).lower() or "95 %" in str(name)))
    for chart in at.get("plotly_chart"):
        figure = json.loads(chart.proto.spec)
        axes = [figure["layout"].get(axis, {}).get("title", {}).get("text", "") for axis in ("xaxis", "yaxis")]
        texts += [f"{' '.join(axes)} 50.0 %"] if any("ccuracy" in one for one in axes) else []
        texts += [text for trace in figure["data"] for text in trace.get("hovertext", ()) if any("ccuracy" in one for one in axes)]
    return texts


def _parts(text: str) -> list[str]:
    """A text whole; of a table each cell of its accuracies with the table's name."""
    if not text.startswith("| Accuracy on"):
        return [text]
    name, *_ = (cell.strip() for cell in text.strip("| ").split("|"))
    cells = [cell for line in text.splitlines()[2:] for cell in line.strip("| ").split(" | ")[1:3]]
    return [text, *(f"{name}: {cell}" for cell in cells)]


def unlabelled(texts: list[str]) -> list[str]:
    """Texts that hold an accuracy without its heads or its pairs."""
    told = [text for text in texts if ACCURACY.search(text) and NUMBER.search(text)]
    return [text for text in told if not (HEADS.search(text) and PAIRS.search(text))]


def opened(page: str) -> AppTest:
    newest = models.models()[0]
    ids = {"runs": {"runs_open": next(iter(_runs()))}, "response": {"response_tab": "off"}}.get(page, {})
    at = open_page(page, model=newest.id, **ids)
    assert not at.exception, [one.value for one in at.exception]
    return at


def _runs() -> list[str]:
    return [Run(path).id for path in sorted((cache_root() / "runs").iterdir()) if path.is_dir()]


@pytest.mark.parametrize("page", PAGES)
def test_every_accuracy_says_its_heads_and_its_pairs(page: str) -> None:
    texts = blocks(opened(page))
    assert not unlabelled(texts)
    shown = [text for text in texts if ACCURACY.search(text) and NUMBER.search(text)]
    assert bool(shown) == (page in ("overview", "preferences", "latents", "doctor", "response", "compare", "runs")), shown


def test_overview_and_compare_show_the_same_two_numbers() -> None:
    newest = models.models()[0]
    table = newest.evaluation["sparserm"]
    mean = f"{100 * sum(head['accuracy'] for head in table['heads']) / len(table['heads']):.1f} %"
    shipped = f"{100 * table['heads'][table['shipped']]['accuracy']:.1f} %"
    overview = next(text for text in blocks(opened("overview")) if text.startswith("Test accuracy"))
    assert f"mean of 3 heads {mean}" in overview
    assert f"accuracy shipped head, seed {table['shipped']}: {shipped} of the same pairs" in blocks(opened("overview"))
    compare = next(text for text in blocks(opened("compare")) if text.startswith("| Accuracy on"))
    means, heads = compare.splitlines()[2:]
    n = table["n"]
    assert compare.startswith(f"| Accuracy on {n} test pairs |")
    assert means.startswith(f"| Means over heads | **{mean}** (") and heads.startswith(f"| Shipped heads | **{shipped}** (")
    off = next(text for text in blocks(opened("response")) if text.startswith("With these off"))
    assert f"shipped head, seed {table['shipped']}, {n} test pairs" in off and off.startswith(f"With these off: accuracy {shipped[:-2]} (")


@pytest.mark.parametrize("gone", ["mean of 3 heads", "shipped head, seed", "test pairs"])
def test_a_label_taken_away_is_noticed(gone: str) -> None:
    for page in ("overview", "compare", "response"):
        texts = blocks(opened(page))
        assert unlabelled([text.replace(gone, "") for text in texts]) or not any(gone in text for text in texts), page
