"""The pages Latents, Latent, Spaces and Doctor in their four states, on a fit of the tiny preset, and what they say against the engine."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages_helpers import HOSTILE, FakeLive, open_page, words
from sklearn.metrics import roc_auc_score
from streamlit.testing.v1 import AppTest

from core.backbone.presets import preset
from core.config import Config, DoctorConfig, DoctorRunConfig, LatentsConfig, LatentsRunConfig, SpacesConfig, SpacesRunConfig
from core.doctor.doctor import doctor_report
from core.explain.model_spaces import model_spaces
from core.fit.defaults import complete
from core.fit.pipeline import fit
from core.latents.label_book import LabelBook
from core.latents.labels import Label, Score
from core.latents.make_pages import make_pages
from core.reward.folder import ModelFolder
from core.runs import launch
from core.runs.events import EventLog
from core.runs.registry import Run, Status
from core.runs.store import Store
from core.statistics.bootstrap import resample_weights
from core.types import no_progress
from workbench.doctor import values as doctor
from workbench.frame import models, state
from workbench.frame.downloads import jsonl_bytes
from workbench.latents import values as latents
from workbench.latents import view as latents_view
from workbench.spaces import values as spaces

PAGES = ("latents", "latent", "spaces", "doctor")
MADE: dict[str, type[Any]] = {"latent": LatentsRunConfig, "spaces": SpacesRunConfig, "doctor": DoctorRunConfig}
KINDS = {"latent": "latents", "spaces": "spaces", "doctor": "doctor"}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a fit of the tiny preset and all that is made of it."""
    root = tmp_path_factory.mktemp("fitted").resolve()
    store = Store(root)
    config = complete(preset("tiny", root=root / "models"), store, lambda _: None)
    folder = fit(config, store, no_progress).artefact
    model_spaces(ModelFolder(folder, store), SpacesConfig(random_draws=1))
    doctor_report(ModelFolder(folder, store), DoctorConfig(swaps=3, responses=4, dialogues=2))
    make_pages(ModelFolder(folder, store), LatentsConfig(corpus="pairs", tokens=2000))
    return root


def opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> models.FittedModel:
    monkeypatch.setenv("SPARSERM_CACHE", str(root))
    return models.models(root)[0]


@pytest.fixture
def model(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> models.FittedModel:
    return opened(fitted, monkeypatch)


@pytest.fixture
def bare(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> models.FittedModel:
    """The same fit in a cache where nothing was made of it yet."""
    left_out = shutil.ignore_patterns("spaces", "doctor", "latents", "runs")
    shutil.copytree(fitted / "artefacts", tmp_path / "artefacts", ignore=left_out)
    return opened(tmp_path.resolve(), monkeypatch)


def no_error(at: AppTest) -> AppTest:
    assert not at.exception, [(error.value, error.stack_trace) for error in at.exception]
    assert not at.error, [error.value for error in at.error]
    return at


def metrics(at: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in at.metric}


def button(at: AppTest, label: str) -> Any:
    return next(one for one in at.button if one.label == label)


# --- empty -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_an_empty_cache_offers_the_demo(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path))
    at = no_error(open_page(page))
    assert any("demo" in one.label.lower() for one in at.button) and not at.metric


@pytest.mark.parametrize(
    ("page", "label"),
    [("latent", "Make the pages of all selected latents"), ("spaces", "Make the pictures"), ("doctor", "Examine this reward model")],
)
def test_what_was_not_made_yet_is_offered(bare: models.FittedModel, page: str, label: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Config]] = []
    monkeypatch.setattr("workbench.frame.run_panel.start", lambda kind, config, parent=None: asked.append((kind, config)) or "")
    at = no_error(open_page(page))
    button(at, label).click().run()
    assert asked == [(KINDS[page], MADE[page](model=str(bare.path)))]


# --- running, failed -------------------------------------------------------------------------------------------------


@pytest.fixture
def run_of(bare: models.FittedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes a run that nobody works on: held alive here, or written down as failed."""
    held = []

    def make(kind: str, config: Config, failed: bool) -> Run:
        run, lock = launch.new_run(kind, config.to_dict(), bare.root, None)
        if failed:
            error = {"problem": "the disk is full", "expected": "2 GB", "found": "1 GB", "remedy": "remove something", "exit_code": 1}
            run.write(Status(state="failed", attempt=1, queued=1.0, started=2.0, ended=3.0, error=error))
            lock.release()
        else:
            held.append(lock)
        return run

    yield make
    for lock in held:
        lock.release()


@pytest.mark.parametrize("page", sorted(MADE))
def test_a_run_that_makes_it_is_shown(bare: models.FittedModel, run_of: Any, page: str) -> None:
    run_of(KINDS[page], MADE[page](model=str(bare.path)), failed=False)
    at = no_error(open_page(page))
    assert any(one.label == "Cancel" for one in at.button) and not any("Make" in one.label or "Examine" in one.label for one in at.button)
    assert "being prepared" in words(at)


def under_way(run: Run) -> None:
    """As a worker writes it, 12 s after it began."""
    run.write(Status(state="running", attempt=1, queued=1.0, started=time.time() - 12, pid=1, estimate={"seconds": 60.0, "memory": 1.0, "disk": 1.0}))
    EventLog(run.events).progress("label swaps", 3, 10)


@pytest.mark.parametrize("page", [*sorted(MADE), "latents"])
def test_what_is_being_prepared_shows_how_far_it_is(bare: models.FittedModel, run_of: Any, page: str) -> None:
    name = "latent" if page == "latents" else page
    under_way(run_of(KINDS[name], MADE[name](model=str(bare.path)), failed=False))
    text = words(no_error(open_page(page)))
    assert "being prepared" in text and re.search(r"\d\d s of about 1 min", text), text


def test_overview_shows_how_far_its_pages_are(bare: models.FittedModel, run_of: Any) -> None:
    assert "being prepared" not in words(no_error(open_page("overview")))
    under_way(run_of("doctor", DoctorRunConfig(model=str(bare.path)), failed=False))
    run_of("spaces", SpacesRunConfig(model=str(bare.path)), failed=False)
    run_of("latents", LatentsRunConfig(model=str(bare.path)), failed=True)
    text = words(no_error(open_page("overview")))
    assert "Pages that are being prepared" in text and "Starting; the engine" in text and "The page says why" in text


def test_overview_says_where_a_page_could_not_be_prepared(bare: models.FittedModel, run_of: Any) -> None:
    run_of("latents", LatentsRunConfig(model=str(bare.path)), failed=True)
    assert "Not all pages could be prepared" in words(no_error(open_page("overview")))


@pytest.mark.parametrize("page", sorted(MADE))
def test_a_run_that_failed_says_why_and_goes_on(bare: models.FittedModel, run_of: Any, page: str) -> None:
    run_of(KINDS[page], MADE[page](model=str(bare.path)), failed=True)
    at = no_error(open_page(page))
    said = words(at)
    assert "the disk is full" in said and "remove something" in said and {"Resume", "Start anew"} <= {one.label for one in at.button}


# --- ready: Latents --------------------------------------------------------------------------------------------------


def test_latents_shows_the_models_own_selection(model: models.FittedModel) -> None:
    at = no_error(open_page("latents"))
    table = at.dataframe[0].value
    rows = model.selection
    assert table["Latent"].tolist() == [row["latent_id"] for row in rows]
    assert table["Separation"].tolist() == pytest.approx([100 * row["separation"] for row in rows])
    assert metrics(at)["q < 0.05"] == f"{model.about['selection']['n_discoveries']:,} of {model.about['selection']['n_live']:,}"


def test_another_k_selects_by_the_same_rule(model: models.FittedModel) -> None:
    own = model.about["selection"]["k"]
    other = next(k for k in latents.possible_ks(model) if k < own)
    found, all_of_own = latents.selection(model, other), latents.selection(model)
    separation = model.frequencies.separation
    best = sorted(np.flatnonzero(separation > 0), key=lambda j: (-separation[j], j))[:other]
    assert [row["latent_id"] for row in found.rows if row["side"] == "chosen"] == best
    again = {row["latent_id"]: row for row in latents.selection(model, own).rows}
    assert all_of_own.fitted and not found.fitted and again == {row["latent_id"]: row for row in all_of_own.rows}
    at = no_error(open_page("latents", latents_k=str(other)))
    assert len(at.dataframe[0].value) == len(found.rows) and at.select_slider[0].value == other


def test_stability_at_the_own_k_is_the_folders(model: models.FittedModel) -> None:
    """Computed again from the resamples, as for any other K, it is what the fit wrote."""
    own = model.about["selection"]["k"]
    ids, sides = np.array(model.latents), latents.selected_sides(model)
    rows = latents.rows_at(model, ids, sides, own, {})
    assert [row["stability"] for row in rows] == pytest.approx([row["stability"] for row in model.selection])
    assert [row["held_out"] for row in rows] == pytest.approx([row["held_out"] for row in model.selection])


def test_the_held_out_separation_has_its_interval_over_prompts(model: models.FittedModel) -> None:
    """The mean of the table's own column, which the fit counted from the states; the interval by a bootstrap of our own."""
    found, known = latents.held_out_separation(model), model.responses
    signs = np.array([1 if row["side"] == "chosen" else -1 for row in model.selection])
    assert found is not None
    assert found.value == pytest.approx(np.mean(signs * [row["held_out"] for row in model.selection]), abs=1e-6)
    by_prompt: dict[int, list[float]] = {}
    for pair in np.flatnonzero(known.split == 1):
        sides = [(known.activations[rows[pair]] > 0) * signs for rows in (known.chosen_rows, known.rejected_rows)]
        by_prompt.setdefault(int(known.prompt_ids[known.chosen_rows[pair]]), []).append(float((sides[0] - sides[1]).mean()))
    rng, groups = np.random.default_rng(7), list(by_prompt.values())
    drawn = [np.mean([value for i in rng.integers(len(groups), size=len(groups)) for value in groups[i]]) for _ in range(2000)]
    assert (found.n_prompts, found.n) == (len(groups), int((known.split == 1).sum()))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.15 * (found.high - found.low))


def test_latents_are_searched_by_number_and_label() -> None:
    rows = [{"latent_id": 12, "label": "Hedging words", "side": "chosen"}, {"latent_id": 7, "label": "", "side": "rejected"}]
    assert latents_view.matching(rows, "hedg", "both") == rows[:1] and latents_view.matching(rows, "7", "both") == rows[1:]
    assert latents_view.matching(rows, "", "rejected") == rows[1:] and latents_view.matching(rows, "7", "chosen") == []


def test_without_frequencies_the_selection_still_shows(bare: models.FittedModel) -> None:
    shutil.rmtree(bare.root / "artefacts" / "frequencies")
    found = latents.selection(bare)
    assert [row["latent_id"] for row in found.rows] == list(bare.latents) == found.marks["latent_id"].tolist()
    no_error(open_page("latents"))
    no_error(open_page("latent"))


@pytest.mark.parametrize("asked", ["nonsense", "-1", "999999", "3"])
def test_a_wrong_k_in_a_link_is_passed_over(model: models.FittedModel, asked: str) -> None:
    assert len(no_error(open_page("latents", latents_k=asked)).dataframe[0].value) == len(model.selection)


def test_what_a_link_says_goes_before_what_a_widget_held(model: models.FittedModel) -> None:
    """As after the back button: the URL changes under a page whose widgets hold something else."""
    own = model.about["selection"]["k"]
    other = next(k for k in latents.possible_ks(model) if k < own)
    at = no_error(open_page("latents", latents_search="zzz"))
    at.select_slider[0].set_value(other).run()
    assert at.query_params["latents_k"] == [str(other)] or at.query_params["latents_k"] == str(other)
    del at.query_params["latents_k"], at.query_params["latents_search"]
    no_error(at.run())
    assert at.select_slider[0].value == own and at.text_input[0].value == "" and len(at.dataframe[0].value) == len(model.selection)
    at = no_error(open_page("latent", latent=str(model.latents[0])))
    at.number_input[0].set_value(model.latents[1]).run()
    at.query_params["latent"] = str(model.latents[2])
    assert no_error(at.run()).number_input[0].value == model.latents[2]


# --- ready: Latent ---------------------------------------------------------------------------------------------------


def test_latent_shows_its_page(model: models.FittedModel) -> None:
    latent = model.latents[1]
    at = no_error(open_page("latent", latent=str(latent)))
    pages = latents.find_pages(model)
    assert pages is not None and metrics(at)["Active on"] == f"{100 * pages[latent]['frac_nonzero']:.1f} %"
    assert metrics(at)["Separation"] == f"{100 * model.selection[1]['separation']:+.1f} points"
    assert f"{pages.corpus['tokens']:,} tokens read" in words(at)
    assert "JSON" in [one.proto.label for one in at.get("download_button")]
    taken = json.loads(jsonl_bytes([pages[latent]]))
    assert (int(taken["index"]), taken["frac_nonzero"]) == (latent, pages[latent]["frac_nonzero"])


def test_the_response_curve_moves_one_projection_only(model: models.FittedModel) -> None:
    latent = model.latents[2]
    curve = latents.curve_of(model, latent)
    assert curve is not None
    parts, known = model.parts, model.responses
    v = parts.projection_mean.astype(np.float64).copy()
    v[2] = np.percentile(known.projections[known.train, 2], 99)
    hidden = np.maximum(parts.head.weight_1 @ v + parts.head.bias_1, 0)
    assert curve["shipped"][-1] == pytest.approx(float(parts.head.weight_2[0] @ hidden + parts.head.bias_2[0]), rel=1e-5)
    assert curve["projection"][-1] == pytest.approx(v[2]) and curve["heads"].shape[0] == len(parts.heads)


def test_the_weight_is_the_mean_size_of_contributions(model: models.FittedModel) -> None:
    """By numeric integration of the gradient along the path, for every held-out response."""
    parts, known = model.parts, model.responses
    start, along = parts.projection_mean.astype(np.float64), (np.arange(500) + 0.5)[:, None] / 500
    sizes = []
    for v in known.projections[known.held_out].astype(np.float64):
        active = (start + along * (v - start)) @ parts.head.weight_1.T + parts.head.bias_1 > 0
        gradient = (active * parts.head.weight_2[0]) @ parts.head.weight_1
        sizes.append(np.abs((v - start) * gradient.mean(axis=0)))
    weight, _, n = latents.weights(model)
    assert n == len(known.held_out) and weight == pytest.approx(np.mean(sizes, axis=0), rel=0.02, abs=1e-3)


def test_naming_a_latent_keeps_your_label_first(model: models.FittedModel) -> None:
    latent = model.latents[0]
    at = no_error(open_page("latent", latent=str(latent)))
    at.text_input(key=f"latent name {latent}").set_value(HOSTILE["script"])
    button(at, "Save").click().run()
    assert LabelBook(model.config["sae"], model.root).labels()[latent].text == HOSTILE["script"]
    assert HOSTILE["script"] in [text.value for text in no_error(at).text]
    assert all(HOSTILE["script"] not in str(one.value) for one in (*at.markdown, *at.caption)), "as plain text only"
    assert latents.selection(model).rows[0]["label"] == HOSTILE["script"]
    at.text_input(key=f"latent name {latent}").set_value("")
    button(at, "Save").click().run()
    assert latent not in LabelBook(model.config["sae"], model.root).labels()


def test_a_latent_that_is_not_selected_has_no_curve(model: models.FittedModel) -> None:
    stranger = next(j for j in range(latents.n_latents(model) or 0) if j not in model.latents)
    at = no_error(open_page("latent", latent=str(stranger)))
    assert metrics(at)["Side"] == "Not selected" and "does not read this latent" in words(at)
    assert any(one.label == "Make this latent's page, too" for one in at.button)


@pytest.mark.parametrize("asked", ["-1", "999999999999", "x", "<script>", "256"])
def test_a_latent_that_is_not_there_is_said(model: models.FittedModel, asked: str) -> None:
    at = no_error(open_page("latent", latent=asked))
    button(at, "Show the best separated instead").click().run()
    assert next(one.value for one in no_error(at).selectbox if one.label == "Latent") == str(model.latents[0])


def test_your_own_text_is_read_by_the_models_process(model: models.FittedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    latent = model.latents[0]

    class Reads(FakeLive):
        def activations(self, text: str, wanted: Any) -> dict[str, Any]:
            self.asked.append((text, list(wanted)))
            kinds = ["first", "prompt", "prompt"]
            return {
                "texts": ["<s>", *text.split()],
                "kinds": kinds,
                "activation": {str(latent): [5.0, 0.0, 1.5]},
                "top": [{"latent_id": 9, "activation": 2.0}],
            }

    live = Reads(model.root)
    for module in ("latents.latent_view", "frame.live_panel"):
        monkeypatch.setattr(f"workbench.{module}.live_model", lambda *_: live)
    at = no_error(open_page("latent", latent=str(latent)))
    assert not live.asked and not live.started, "nobody needs the model yet"
    at.text_area[0].set_value("hello there")
    button(at, "Show where it is active").click().run()
    assert no_error(at) and live.asked == [("hello there", [latent])]
    assert state.KEPT_ID.fullmatch("".join(at.query_params["latent_own"])), "a copied link holds the text's id"


@pytest.mark.parametrize(
    ("auroc", "active", "said", "warns"),
    [(0.95, 50, "0.95", False), (0.7, 50, "0.70", True), (0.95, 9, "too rare to say", True), (None, 50, "–", False)],
)
def test_detection_warns_as_the_method_says(auroc: float | None, active: int, said: str, warns: bool) -> None:
    found = latents.detection({"detection_auroc": auroc, "n_active": active})
    assert found[0] == said and bool(found[1]) == warns


def test_every_score_of_a_label_is_shown_with_its_interval_and_n(model: models.FittedModel) -> None:
    """The embedding's and the blind reader's, each with what was stored of it; words of a model as words only."""
    latent = model.latents[3]
    scores = (
        Score(value=0.61, low=0.55, high=0.68, n=100, method="embedding", model="a sentence model", windows="beyond the top 10"),
        Score(value=0.85, low=0.64, high=0.95, n=20, method="blind reading"),
        Score(value=0.5, method="![x](http://example.invalid/x.png)"),
    )
    book = LabelBook(model.config["sae"], model.root)
    label = Label(index=latent, text="full stops", source="written", author="somebody", scores=scores)
    book.add("written", [label])
    try:
        at = no_error(open_page("latent", latent=str(latent)))
    finally:
        book.path("written").unlink()
    badges = [one.value for one in at.markdown if "badge[" in one.value]
    assert any("embedding 0.61 (0.55 to 0.68), n = 100" in one for one in badges)
    assert any("blind reading 0.85 (0.64 to 0.95), n = 20" in one for one in badges)
    assert len(badges) == 3 and not any("![" in one or "http:" in one for one in badges)
    assert any("written by somebody" in one.value for one in at.caption)


def test_detection_has_an_interval_over_prompts(model: models.FittedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against scikit-learn on the same resamples, ties included; and beside the figure on the page."""
    monkeypatch.setattr(latents, "RESAMPLES", (40, 40))
    rng = np.random.default_rng(0)
    active, groups = rng.random(60) < 0.4, rng.integers(20, size=60)
    values = np.round(active + rng.normal(size=60), 1)
    (weights,) = resample_weights(len(set(groups)), 40, 0)
    numbers = np.unique(groups, return_inverse=True)[1]
    expected = [roc_auc_score(active, values, sample_weight=times[numbers]) for times in weights]
    assert latents.auroc_interval(active, values, groups) == pytest.approx(np.quantile(expected, [0.025, 0.975]))
    assert latents.auroc_interval(np.ones(5, dtype=bool), np.arange(5.0), np.arange(5)) is None
    row = next(row for row in latents.selection(model).rows if row["detection_auroc"] is not None)
    at = no_error(open_page("latent", latent=str(row["latent_id"])))
    shown = {metric.label: metric.delta for metric in at.metric}
    low, high, n = latents.detection_interval(model, row["latent_id"])  # type: ignore[misc]
    assert low <= row["detection_auroc"] <= high and n == len(model.responses.train)
    assert shown["Detection AUROC"] == f"{low:.2f} to {high:.2f}, n = {n:,}"
    assert shown["Separation"] == f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}"


# --- ready: Spaces ---------------------------------------------------------------------------------------------------


def test_spaces_draws_every_response_once(model: models.FittedModel) -> None:
    picture = next(iter(spaces.artefacts(model).values()))
    found = spaces.points_of(model, picture)
    for colour in ("side", "correct", "subset", "split"):
        groups, palette = spaces.groups_of(model, found, colour)
        assert len(groups) == len(found.rows) == len(found.texts) and set(groups) <= set(palette)
    right = model.margins > 0
    row = int(model.responses.chosen_rows[0])
    expected = {bool(right[i]) for i in range(len(right)) if row in (model.responses.chosen_rows[i], model.responses.rejected_rows[i])}
    named = spaces.groups_of(model, found, "correct")[0][found.rows.tolist().index(row)]
    assert named == ("in pairs of both kinds" if len(expected) == 2 else "ranked right" if True in expected else "ranked wrong")
    for colour in spaces.COLOURS:
        no_error(open_page("spaces", spaces_colour=colour))


def test_a_lasso_holds_all_lists_to_its_pairs(model: models.FittedModel) -> None:
    picture = next(iter(spaces.artefacts(model).values()))
    found = spaces.points_of(model, picture)
    row = int(model.responses.rejected_rows[3])
    ids = spaces.pair_ids(model, found, [str(row), "nonsense", "999999"])
    assert model.pairs[3].pair_id in ids
    assert all(row in (model.responses.chosen_rows[i], model.responses.rejected_rows[i]) for i, pair in enumerate(model.pairs) if pair.pair_id in ids)
    kept = state.keep("filter", {"pairs": ids, "said": "lasso in Spaces"})
    at = no_error(open_page("spaces", filter=kept))
    assert len(at.dataframe[0].value) == len(ids) and set(spaces.rows_of_pairs(model, ids)) >= {row}
    button(at, "Clear").click().run()
    assert "filter" not in at.query_params


def test_spaces_says_how_the_pictures_were_made(model: models.FittedModel) -> None:
    said = words(no_error(open_page("spaces")))
    assert "perplexity" in said and "seed 0" in said and "t-SNE" in said


# --- ready: Doctor ---------------------------------------------------------------------------------------------------


def test_doctor_shows_every_check_worst_first(model: models.FittedModel) -> None:
    report = doctor.report_of(next(iter(doctor.artefacts(model).values())))
    said = [text.value for text in no_error(open_page("doctor")).text]
    assert all(check.figure in said for check in report.checks)
    assert all(f"To do: {check.remedy}" in said for check in report.checks if check.remedy)
    worst = [check.status for check in doctor.ordered(report)]
    assert worst == sorted(worst, key=["fail", "warn", "pass"].index) and len(worst) == len(report.checks)
    failed = [check for check in report.checks if check.status == "warn"]
    shown = [text.value for text in no_error(open_page("doctor", doctor_show="warn")).text]
    assert all((check.figure in shown) == (check in failed) for check in report.checks)


def test_details_of_a_check_are_flat_rows() -> None:
    rows = doctor.detail_rows({"a": {"b": 1.23456789, "c": [1, 2]}, "d": None})
    assert rows == [{"figure": "a · b", "value": "1.235"}, {"figure": "a · c", "value": "1, 2"}, {"figure": "d", "value": "–"}]
