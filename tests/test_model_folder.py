"""The public format: round trips, its size, and what a reader says of a folder that is not as it should be."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_helpers import make_parts, random_head
from safetensors.numpy import load_file, save_file

from core.errors import StoreError
from core.reward.parts import KINDS, selection_table
from core.reward.parts_files import read_parts, save_parts
from core.types import LatentFrequencies, SelectedDirections, canonical_json


def assert_same(a: Any, b: Any) -> None:
    """Field by field, bit by bit."""
    for name, left in vars(a).items():
        right = getattr(b, name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype and left.tobytes() == right.tobytes(), name
        elif name in ("head", "heads"):
            for one, other in zip(left if name == "heads" else [left], right if name == "heads" else [right], strict=True):
                assert_same(one, other)
        else:
            assert left == right, name


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_exact(tmp_path: Path, kind: str) -> None:
    parts = make_parts(kind)
    folder = save_parts(parts, tmp_path / "model")
    assert_same(read_parts(folder), parts)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "heads.safetensors", "model.safetensors", "selection.jsonl"]
    assert len({p.stat().st_mode for p in folder.iterdir()}) == 1  # all are as readable as any new file


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    one, other = save_parts(make_parts(), tmp_path / "one"), save_parts(make_parts(), tmp_path / "other")
    for file in one.iterdir():
        assert file.read_bytes() == (other / file.name).read_bytes()


def test_the_documented_tensors_and_no_others(tmp_path: Path) -> None:
    tensors = load_file(save_parts(make_parts(d_model=6, k=4, hidden=5), tmp_path / "model") / "model.safetensors")
    shapes = {name: (str(t.dtype), t.shape) for name, t in tensors.items()}
    assert shapes == {
        "directions": ("float32", (4, 6)),
        "head.0.weight": ("float32", (5, 4)),
        "head.0.bias": ("float32", (5,)),
        "head.2.weight": ("float32", (1, 5)),
        "head.2.bias": ("float32", (1,)),
        "projection_mean": ("float32", (4,)),
        "projection_std": ("float32", (4,)),
        "reward_quantiles": ("float32", (101,)),
        "margin_scale": ("float32", (1,)),
        "latent_ids": ("int64", (4,)),
    }


def test_a_transposed_array_is_saved_as_it_reads(tmp_path: Path) -> None:
    directions = np.arange(24, dtype=np.float32).reshape(6, 4).T
    assert not directions.flags.c_contiguous
    folder = save_parts(make_parts(directions=directions), tmp_path / "model")
    np.testing.assert_array_equal(load_file(folder / "model.safetensors")["directions"], directions)


def test_config_names_what_the_issue_asks_for(tmp_path: Path) -> None:
    config = json.loads((save_parts(make_parts(), tmp_path / "model") / "config.json").read_text())
    assert config["backbone"]["name"] == "toy/backbone" and config["backbone"]["revision"] == "c0ffee"
    assert (config["layer"], config["position"], config["template_sha256"]) == (2, "response_end", "ab" * 32)
    assert config["sae"]["sha256"] == "5ae" and config["method"]["loss"] == "margin"
    assert (config["format"], config["schema"], config["kind"], config["k"], config["hidden"]) == ("sparserm-reward-model", 1, "sparserm", 4, 5)
    assert "device" not in config["reading"] and config["reading"]["max_length"] == 2048


def test_under_5_mb_at_the_papers_size(tmp_path: Path) -> None:
    folder = save_parts(make_parts(d_model=4096, k=256, hidden=512), tmp_path / "model")
    size = sum((folder / name).stat().st_size for name in ("config.json", "model.safetensors", "selection.jsonl"))
    assert 256 * 4096 * 4 + 512 * 256 * 4 < size < 5_000_000
    assert read_parts(folder).head.n_parameters == 132_097


def test_a_taken_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(StoreError, match=r"model exists already\n  to do: give another path, or remove it first"):
        save_parts(make_parts(), tmp_path / "model")


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="margin_scale with finite values"):
        save_parts(make_parts(margin_scale=float("nan")), tmp_path / "model")
    with pytest.raises(ValueError, match="Out of range float"):
        save_parts(make_parts(method={"figure": float("nan")}), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"directions": np.zeros((4, 7), dtype=np.float32)}, r"expected: directions F32 \[4, 6\]\n  found: F32 \[4, 7\]"),
        ({"directions": None}, "found: no directions"),
        ({"latent_ids": None, "selection": ()}, "found: no latent_ids"),
        ({"kind": "dense"}, r"expected: a dense head on all 6 dimensions of z\n  found: k 4"),
        ({"kind": "other"}, "expected: kind sparserm | random-isotropic"),
        ({"selection": ()}, r"expected: a row for each of the 4 latents, in order\n  found: 0 rows"),
        ({"seeds": (0, 1)}, r"expected: 3 seeds\n  found: 2 seeds"),
        ({"seeds": (0, 1, 1)}, r"expected: seeds: a list of different integers, one a head\n  found: \[0, 1, 1\]"),
        ({"heads": (random_head(np.random.default_rng(0), 3),) * 3}, r"expected: seed\.0\.head\.0\.weight F32 \[5, 4\]\n  found: F32 \[5, 3\]"),
        ({"projection_std": np.zeros(4, dtype=np.float32)}, "expected: projection_std > 0"),
        ({"kind": "activations", "directions": None, "sae_config": None}, "expected: sae_config: this kind reads the SAE's activations"),
    ],
)
def test_contradictory_parts_are_not_saved(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(StoreError, match=said):
        save_parts(replace(make_parts(), **changes), tmp_path / "model")


def forget_record(folder: Path) -> None:
    """Makes the folder one of an older version, which recorded no hashes."""
    edit_config(folder, files=..., config_sha256=...)


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def edit_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], Any], name: str = "model.safetensors") -> None:
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "newer": (lambda f: edit_config(f, schema=2), r"saved by a newer version\n  expected: schema 1\n  found: schema 2\n  to do: pip install -"),
    "unknown schema": (lambda f: edit_config(f, schema="one"), r"has an unknown schema\n  expected: schema 1\n  found: schema 'one'"),
    "no schema": (lambda f: edit_config(f, schema=...), r"has an unknown schema\n  expected: schema 1\n  found: schema None"),
    "another thing": (lambda f: edit_config(f, format="gguf"), r"not a SparseRM reward model\n  expected: format 'sparserm-reward-model' in config"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), r"is not a SparseRM reward model\n.*\n  found: list"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json can't be read\n  expected: JSON"),
    "bytes": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), r"config\.json can't be read"),
    "deep": (lambda f: (f / "config.json").write_text("[" * 100_000), r"config\.json can't be read"),
    "no config": (lambda f: (f / "config.json").unlink(), r"there is no reward model at .*\n  expected: a folder with config.json, model"),
    "no layer": (lambda f: edit_config(f, layer=...), r"expected: layer as int in config.json\n  found: nothing"),
    "layer as text": (lambda f: edit_config(f, layer="2"), r"expected: layer as int in config.json\n  found: '2'"),
    "layer as truth": (lambda f: edit_config(f, layer=True), r"expected: layer as int in config.json\n  found: True"),
    "negative layer": (lambda f: edit_config(f, layer=-1), r"expected: a BackboneConfig\n  found: BackboneConfig.layer is too small"),
    "position": (lambda f: edit_config(f, position="middle"), r"expected: a BackboneConfig\n  found: BackboneConfig.position has an unknown value"),
    "reading": (lambda f: edit_config(f, reading={"speed": 1}), r"found: BackboneConfig has no field speed"),
    "reading types": (lambda f: edit_config(f, reading={"max_length": "x"}), r"expected: a BackboneConfig"),
    "kind": (lambda f: edit_config(f, kind="vector"), r"found: 'vector'"),
    "d_model": (lambda f: edit_config(f, backbone={"name": "x"}), r"expected: backbone.d_model >= 1\n  found: None"),
    "k": (lambda f: edit_config(f, k=3), r"expected: head\.0\.weight F32 \[5, 3\]\n  found: F32 \[5, 4\]"),
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), r"model\.safetensors is damaged"),
    "cut tensors": (lambda f: cut(f / "model.safetensors"), r"model\.safetensors is damaged.*\n  expected: a safetensors file"),
    "cut heads": (lambda f: cut(f / "heads.safetensors"), r"heads\.safetensors is damaged"),
    "missing tensor": (lambda f: edit_tensors(f, lambda t: t.pop("directions")), r"found: no directions"),
    "strange tensor": (lambda f: edit_tensors(f, lambda t: t.update(extra=np.zeros(1, np.float32))), r"found: also extra"),
    "shape": (lambda f: edit_tensors(f, lambda t: t.update(margin_scale=np.zeros(2, np.float32))), r"margin_scale F32 \[1\]\n  found: F32 \[2\]"),
    "dtype": (lambda f: edit_tensors(f, lambda t: t.update(directions=t["directions"].astype(np.float16))), r"directions F32 \[4, 6\]\n  found: F16"),
    "infinite": (lambda f: edit_tensors(f, lambda t: t["directions"].__setitem__((0, 0), np.inf)), r"directions with finite values\n  found: 1 that"),
    "head NaN": (
        lambda f: edit_tensors(f, lambda t: t["seed.4.head.0.bias"].fill(np.nan), "heads.safetensors"),
        r"heads\.safetensors is damaged.*\n  expected: seed\.4\.head\.0\.bias with finite values\n  found: 5 that are not",
    ),
    "falling quantiles": (lambda f: edit_tensors(f, lambda t: t["reward_quantiles"].__setitem__(0, 9)), r"reward_quantiles that never fall"),
    "other latents": (lambda f: edit_tensors(f, lambda t: t["latent_ids"].__setitem__(1, 7)), r"expected: a row for each of the 4 latents"),
    "table gone": (lambda f: (f / "selection.jsonl").unlink(), r"selection\.jsonl is damaged"),
    "table cut": (lambda f: cut(f / "selection.jsonl"), r"expected: one JSON object a line"),
    "table with NaN": (
        lambda f: (f / "selection.jsonl").write_text('{"latent_id": NaN}\n' * 4),
        r"selection\.jsonl is damaged.*\n  expected: one JSON object a line\n  found: NaN is no JSON number",
    ),
    "config with NaN": (lambda f: edit_config(f, evaluation={"test": float("nan")}), r"config\.json can't be read\n.*\n  found: NaN is no JSON"),
    "config with 1e999": (
        lambda f: (f / "config.json").write_text((f / "config.json").read_text().replace("0.75", "1e999")),
        r"config\.json can't be read\n.*\n  found: 1e999 is too large a number",
    ),
    "table of numbers": (lambda f: (f / "selection.jsonl").write_text("1\n2\n3\n4\n"), r"expected: one JSON object a line\n  found: another value"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_told_from_a_whole_one(tmp_path: Path, damage: str) -> None:
    folder = save_parts(make_parts(), tmp_path / "model")
    forget_record(folder)
    change, said = DAMAGES[damage]
    change(folder)
    with pytest.raises(StoreError, match=said):
        read_parts(folder)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_record_notices_every_damage_first(tmp_path: Path, damage: str) -> None:
    folder = save_parts(make_parts(), tmp_path / "model")
    DAMAGES[damage][0](folder)
    with pytest.raises(StoreError, match=r"(config\.json|model\.safetensors|heads\.safetensors|selection\.jsonl)"):
        read_parts(folder)


def test_selection_table_by_hand() -> None:
    d_sae = 5
    column = {name: np.arange(d_sae, dtype=np.float64) / 10 for name in ("p_value", "q_value", "held_out", "low", "high")}
    column["q_value"][3] = np.nan
    counts = {name: np.arange(d_sae) + n for n, name in enumerate(("n_active", "prompts_for", "prompts_against"))}
    shares = {"chosen": np.array([0.1, 0.2, 0.3, 0.4, 0.5]), "rejected": np.array([0.5, 0.4, 0.3, 0.2, 0.1])}
    frequencies = LatentFrequencies(**shares, **counts, **column, n_pairs=10, n_prompts=5, n_pairs_held_out=4)
    selected = SelectedDirections(
        latent_ids=np.array([3, 0]),
        side=np.array([1, -1]),
        separation=np.array([0.2, -0.4]),
        stability=np.array([0.9, 0.8]),
        directions=np.zeros((2, 6), dtype=np.float32),
        sae={},
    )
    rows = selection_table(selected, frequencies, detection_auroc=np.array([0.95, np.nan]))
    assert rows[0] == {
        "latent_id": 3, "side": "chosen", "separation": 0.2, "low": 0.3, "high": 0.3, "held_out": 0.3,
        "frequency_chosen": 0.4, "frequency_rejected": 0.2, "n_active": 3,
        "prompts_for": 4, "prompts_against": 5, "p_value": 0.3, "q_value": None, "stability": 0.9, "detection_auroc": 0.95,
    }  # fmt: skip
    assert (rows[1]["latent_id"], rows[1]["side"], rows[1]["n_active"], rows[1]["q_value"], rows[1]["detection_auroc"]) == (
        0,
        "rejected",
        0,
        0.0,
        None,
    )
    canonical_json(list(rows))  # JSON as it stands: no NaN, no numpy numbers
