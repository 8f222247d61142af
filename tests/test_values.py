"""Values on disk between steps come back equal, deterministically, and never as something else."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.pairs_file import read_pairs, write_pairs
from core.errors import StoreError
from core.explain.spaces import Spaces
from core.reward.fitting import HeadEnsemble
from core.reward.head import Head
from core.runs.values import load_value, save_value
from core.types import LatentFrequencies, PreferencePair, PreferencePairs, SelectedDirections


@dataclass(frozen=True, kw_only=True)
class Inner:
    weights: np.ndarray
    name: str
    loss: float


@dataclass(frozen=True, kw_only=True)
class Outer:
    parts: tuple[Inner, ...]
    by_name: dict[str, Inner]
    rows: list[int]
    nothing: None
    figures: dict[str, Any]


def inner(seed: int) -> Inner:
    return Inner(weights=np.random.default_rng(seed).normal(size=(2, 3)).astype(np.float32), name=f"n{seed}", loss=seed / 3)


def assert_equal(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    elif hasattr(one, "__dataclass_fields__"):
        for spec in fields(one):
            assert_equal(getattr(one, spec.name), getattr(other, spec.name))
    elif isinstance(one, dict):
        assert list(one) == list(other) or set(one) == set(other)
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    else:
        assert one == other or (math.isnan(one) and math.isnan(other))


def test_nested_values_come_back_as_they_were(tmp_path: Path) -> None:
    strided = np.arange(12, dtype=np.int64).reshape(3, 4)[:, ::2]
    figures = {"inf": float("inf"), "nan": float("nan"), "flag": True, "empty": np.zeros((0, 4)), "Δ": strided, "mask": np.array([True, False])}
    value = Outer(parts=(inner(0), inner(1)), by_name={"a": inner(2)}, rows=[1, 2], nothing=None, figures=figures)
    save_value(tmp_path, "value", value)
    assert_equal(load_value(tmp_path, "value", Outer, Inner), value)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    save_value(tmp_path, "value", value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_the_arrays_of_frequencies_lie_under_their_own_names(tmp_path: Path) -> None:
    """Pages read them without this module."""
    from safetensors.numpy import load_file

    numbers = {spec.name: np.arange(5) / 5 for spec in fields(LatentFrequencies) if not spec.name.startswith("n_p")}
    whole = {name: np.arange(5) for name in ("n_active", "prompts_for", "prompts_against")}
    value = LatentFrequencies(**{**numbers, **whole, "n_pairs": 7, "n_prompts": 3, "n_pairs_held_out": 2})
    save_value(tmp_path, "frequencies", value)
    assert set(load_file(tmp_path / "frequencies.safetensors")) == set(numbers) | set(whole)
    assert_equal(load_value(tmp_path, "frequencies", LatentFrequencies), value)


@pytest.mark.parametrize(("name", "refused"), [("chosen", True), ("p_value", True), ("q_value", False), ("low", False)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_refused_but_where_it_means_none(tmp_path: Path, name: str, refused: bool, value: float) -> None:
    from safetensors.numpy import load_file, save_file

    numbers = {spec.name: np.arange(5) / 5 for spec in fields(LatentFrequencies) if not spec.name.startswith("n_p")}
    whole = {count: np.arange(5) for count in ("n_active", "prompts_for", "prompts_against")}
    save_value(tmp_path, "value", LatentFrequencies(**{**numbers, **whole, "n_pairs": 7, "n_prompts": 3, "n_pairs_held_out": 2}))
    arrays = load_file(tmp_path / "value.safetensors")
    arrays[name] = np.where(np.arange(5) == 3, value, arrays[name])
    save_file(arrays, tmp_path / "value.safetensors")
    if refused:
        with pytest.raises(StoreError, match=rf"can't be read\n.*LatentFrequencies\.{name} has 1 values that are not finite"):
            load_value(tmp_path, "value", LatentFrequencies)
    else:
        assert load_value(tmp_path, "value", LatentFrequencies).chosen[2] == 0.4


def test_every_name_that_must_be_finite_is_an_array_of_its_class() -> None:
    for cls in (LatentFrequencies, SelectedDirections, Head, HeadEnsemble, Spaces):
        assert cls.FINITE and set(cls.FINITE) <= {spec.name for spec in fields(cls)}


@pytest.mark.parametrize("value", [{1, 2}, {1: 2}, {"$class": "Outer"}, {"a": object()}, b"bytes", {"p": Path("x")}])
def test_what_it_does_not_know_is_an_error(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError):
        save_value(tmp_path, "value", {"deep": [value]})


def test_a_class_that_was_not_named_is_not_made(tmp_path: Path) -> None:
    save_value(tmp_path, "value", inner(0))
    with pytest.raises(StoreError, match="can't be read") as error:
        load_value(tmp_path, "value", Outer)
    assert "Inner" in str(error.value)


@pytest.mark.parametrize("spoil", ["value.json", "value.safetensors"])
def test_damage_is_a_store_error(tmp_path: Path, spoil: str) -> None:
    save_value(tmp_path, "value", inner(0))
    (tmp_path / spoil).write_bytes((tmp_path / spoil).read_bytes()[:20])
    with pytest.raises(StoreError, match="can't be read"):
        load_value(tmp_path, "value", Inner)
    (tmp_path / spoil).unlink()
    with pytest.raises(StoreError, match="can't be read"):
        load_value(tmp_path, "value", Inner)


texts = st.text(st.characters(codec=None), min_size=1, max_size=20)
metas = st.dictionaries(texts, st.none() | st.booleans() | st.integers() | texts | st.floats(allow_nan=False, allow_infinity=False), max_size=3)
rows = st.lists(st.tuples(texts, texts, texts, texts, metas), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(rows, st.booleans())
def test_pairs_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, rows: list[Any], split: bool) -> None:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    pairs = tuple(
        PreferencePair(pair_id=name, prompt=({"role": "user", "content": prompt},), chosen=chosen, rejected=rejected, meta=meta)
        for name, prompt, chosen, rejected, meta in rows
    )
    given_ = PreferencePairs(pairs=pairs, split=("train",) * len(pairs) if split else (), source="here")
    write_pairs(given_, path)
    again = read_pairs(path)
    assert again == given_ and again.content_hash == given_.content_hash


def test_pairs_of_another_kind_are_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(StoreError, match="can't be read"):
        read_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(StoreError, match="can't be read"):
        read_pairs(tmp_path / "absent.jsonl")


@dataclass(frozen=True, kw_only=True)
class Renamed:
    STORED_AS: ClassVar[str] = "Earlier"

    number: int


def test_a_class_that_was_renamed_keeps_its_name_on_disk(tmp_path: Path) -> None:
    save_value(tmp_path, "value", Renamed(number=3))
    assert json.loads((tmp_path / "value.json").read_text()) == {"$class": "Earlier", "number": 3}
    assert load_value(tmp_path, "value", Renamed) == Renamed(number=3)
    assert HeadEnsemble.STORED_AS == "Family", "heads and controls of earlier caches"
