"""Golden figures of every number that is raised by hand: they move when a step computes something else, and then its version must be raised.

Otherwise everyone's cache would keep serving what the old code computed. On a failure: is the change meant? Then raise the step's version, write the
new figures with `UPDATE_GOLDEN=1 pytest tests/test_golden.py` (`-k STEP` for one step), and look at what the diff of golden.json says.
"""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import golden_align
import golden_files
import golden_fit
import golden_fitted
import pytest
from golden_align import AlignWorld
from golden_files import Figures
from golden_fit import FitArtefacts
from golden_fitted import FittedWorld
from golden_helpers import EXACT, LOOSE, check, differences, golden, hand_bumped, versions_given_to_the_store

from core.fit.pipeline import fit
from core.runs.store import Artefact, Store

COVERED = (*golden_fit.FIGURES, *golden_fitted.FIGURES, *golden_align.FIGURES, *golden_files.FIGURES)


@pytest.fixture(scope="session")
def golden_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="session")
def fit_artefacts(golden_store: Store) -> FitArtefacts:
    """The fit's artefacts, by step."""
    fit(golden_fit.fit_config(), golden_store)
    return {artefact.step: artefact for _, artefact in golden_store.all() if isinstance(artefact, Artefact)}


@pytest.fixture(scope="session")
def fitted(fit_artefacts: FitArtefacts, golden_store: Store, tmp_path_factory: pytest.TempPathFactory) -> FittedWorld:
    return FittedWorld(folder=fit_artefacts["reward_model"].path, store=golden_store, scratch=tmp_path_factory.mktemp("fitted"))


@pytest.fixture(scope="session")
def aligned(fit_artefacts: FitArtefacts, golden_store: Store, tmp_path_factory: pytest.TempPathFactory) -> AlignWorld:
    return golden_align.make_world(fit_artefacts["reward_model"].path, golden_fit.fit_config(), golden_store, tmp_path_factory.mktemp("aligned"))


@pytest.mark.parametrize("step", golden_fit.FIGURES)
def test_fit_step_computes_what_it_did(step: str, fit_artefacts: FitArtefacts) -> None:
    check(step, golden_fit.FIGURES[step](fit_artefacts))


@pytest.mark.parametrize("step", golden_fitted.FIGURES)
def test_step_after_a_fit_computes_what_it_did(step: str, fitted: FittedWorld) -> None:
    check(step, golden_fitted.FIGURES[step](fitted))


@pytest.mark.parametrize("step", golden_align.FIGURES)
def test_step_of_alignment_computes_what_it_did(step: str, aligned: AlignWorld) -> None:
    check(step, golden_align.FIGURES[step](aligned))


@pytest.mark.parametrize("name", golden_files.FIGURES)
def test_file_or_answer_is_what_it_was(name: str, fit_artefacts: FitArtefacts, tmp_path: Path) -> None:
    check(name, golden_files.FIGURES[name](fit_artefacts, tmp_path))


# --- nothing is left out ---------------------------------------------------------------------------------------------


def test_every_number_raised_by_hand_has_golden_figures() -> None:
    assert sorted(COVERED) == sorted(hand_bumped()), "write figures for it in a tests/golden_*.py"


def test_golden_versions_are_those_of_the_code() -> None:
    assert {step: entry["version"] for step, entry in golden().items()} == hand_bumped(), "write the new figures: UPDATE_GOLDEN=1"


def test_the_store_is_given_versions_raised_by_hand() -> None:
    for place, version in versions_given_to_the_store():
        named = ast.unparse(version)
        known = named == "VERSION" or named.startswith("VERSIONS[") or named.endswith(".manifest['version']")
        assert known, f"{place} gives {named}: a step's version is VERSION, or stands in VERSIONS, where its golden figures are looked for"


# --- the comparison itself -------------------------------------------------------------------------------------------


def test_differences_are_those_beyond_the_bound() -> None:
    before = {"a": [1.0, 2.0], "n": 3, "text": "x", "none": None}
    assert differences(before, {**before, "a": [1.0 + 5e-7, 2.0]}, EXACT) == []
    assert differences(before, {**before, "a": [1.0, 2.0 + 5e-6]}, EXACT) == [("/a[1]", 2.0, 2.0 + 5e-6)]
    assert differences(before, {**before, "a": [1.0, 2.0 + 5e-4]}, LOOSE) == []
    assert differences(before, {**before, "a": [1.0, 2.001]}, LOOSE)
    for other in ({"n": 4}, {"n": 3.0}, {"text": "y"}, {"a": [1.0]}, {"none": 0}, {"more": 1}, {"n": True}):
        assert differences(before, {**before, **other}, LOOSE), other


def test_figures_with_a_number_that_is_not_finite_are_told_apart() -> None:
    assert differences({"a": 1.0}, {"a": float("nan")}, LOOSE)
    assert golden_files.Figures is Figures and replace(Figures(figures={}), float32={"a": 1.0}).to_json()["float32"] == {"a": 1.0}
