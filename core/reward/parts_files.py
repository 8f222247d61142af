"""A reward model's folder on disk: what is in it, written whole or not at all, and read with every claim checked.

The format is public; `core.reward.model` documents it. Only numpy and safetensors are needed here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from core.config import BackboneConfig, SAEConfig, from_dict
from core.errors import SparseRMError, StoreError
from core.reward import recorded_files
from core.reward.head import Head
from core.reward.parts import KINDS, WITH_DIRECTIONS, WITH_LATENTS, RewardParts
from core.reward.recorded_files import CONFIG, FORMAT, HEADS, SELECTION, TENSORS, remedy_for, write_config
from core.runs.store import publish_folder
from core.types import strict_json

SCHEMA = 1
N_QUANTILES = 101
HEAD_TENSORS = {"head.0.weight": "weight_1", "head.0.bias": "bias_1", "head.2.weight": "weight_2", "head.2.bias": "bias_2"}
_DTYPES = {"F32": np.dtype(np.float32), "I64": np.dtype(np.int64)}

Tensors = dict[str, np.ndarray]
Spec = dict[str, tuple[str, tuple[int, ...]]]


def save_parts(parts: RewardParts, target: Path, beside: Sequence[Path] = ()) -> Path:
    """Saves a new folder with copies of `beside`, whole or not at all. StoreError: `target` is taken, or bad parts."""
    if target.exists():
        raise StoreError(f"{target} exists already", remedy="give another path, or remove it first")

    return publish_folder(target, lambda folder: write_parts(parts, folder, beside))


def write_parts(parts: RewardParts, folder: Path, beside: Sequence[Path] = ()) -> None:
    """Writes the files into an existing folder, with copies of those `beside` it, and `config.json` with the hashes of
    all of them last. Raises StoreError where the parts contradict one another."""
    config, tensors, heads = _config_of(parts), _tensors_of(parts), _heads_of(parts)
    _check_config(config, str(folder))
    _check_tensors(tensors, _expected_tensors(config), str(folder / TENSORS))
    _check_tensors(heads, _expected_heads(config), str(folder / HEADS))
    _check_selection(parts.selection, parts.latent_ids, str(folder / SELECTION))
    # Not save_file: it leaves files that only their owner can read.
    (folder / TENSORS).write_bytes(save(tensors))
    (folder / HEADS).write_bytes(save(heads))
    rows = "".join(json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in parts.selection)
    (folder / SELECTION).write_text(rows, encoding="utf-8", newline="\n")
    for file in beside:
        shutil.copyfile(file, folder / file.name)
    write_config(folder, config, [TENSORS, HEADS, SELECTION, *(file.name for file in beside)])


def read_parts(folder: Path) -> RewardParts:
    """A reward model from its folder; StoreError names a file that is missing, newer, damaged or contradictory."""
    config = recorded_files.read_config(folder)
    _check_config(config, str(folder))
    tensors = _read_tensors(folder / TENSORS, _expected_tensors(config))
    heads = _read_tensors(folder / HEADS, _expected_heads(config))
    selection = read_selection(folder / SELECTION)
    _check_selection(selection, tensors.get("latent_ids"), str(folder / SELECTION))
    return RewardParts(
        kind=config["kind"],
        backbone={**config["backbone"], "template_sha256": config["template_sha256"]},
        backbone_config=_config_from(BackboneConfig, {**config["reading"], "layer": config["layer"], "position": config["position"]}, folder),
        sae=config["sae"],
        sae_config=None if config["sae_config"] is None else _config_from(SAEConfig, config["sae_config"], folder),
        method=config["method"],
        evaluation=config["evaluation"],
        selection=selection,
        head=_head_from(tensors, ""),
        heads=tuple(_head_from(heads, f"seed.{seed}.") for seed in config["seeds"]),
        seeds=tuple(config["seeds"]),
        directions=tensors.get("directions"),
        latent_ids=tensors.get("latent_ids"),
        projection_mean=tensors["projection_mean"],
        projection_std=tensors["projection_std"],
        reward_quantiles=tensors["reward_quantiles"],
        margin_scale=float(tensors["margin_scale"][0]),
    )


def _config_of(parts: RewardParts) -> dict[str, Any]:
    reading = {name: value for name, value in parts.backbone_config.result_fields().items() if name not in ("layer", "position")}
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "kind": parts.kind,
        "k": parts.k,
        "hidden": int(parts.head.weight_1.shape[0]),
        "backbone": {name: value for name, value in parts.backbone.items() if name != "template_sha256"},
        "template_sha256": parts.backbone.get("template_sha256"),
        "layer": parts.layer,
        "position": parts.position,
        "reading": reading,
        "sae": None if parts.sae is None else dict(parts.sae),
        "sae_config": None if parts.sae_config is None else parts.sae_config.result_fields(),
        "seeds": list(parts.seeds),
        "method": dict(parts.method),
        "evaluation": dict(parts.evaluation),
    }


_TYPES: dict[str, tuple[type, ...]] = {
    "kind": (str,),
    "k": (int,),
    "hidden": (int,),
    "backbone": (dict,),
    "template_sha256": (str, type(None)),
    "layer": (int,),
    "position": (str,),
    "reading": (dict,),
    "sae": (dict, type(None)),
    "sae_config": (dict, type(None)),
    "seeds": (list,),
    "method": (dict,),
    "evaluation": (dict,),
}


def _check_config(config: Mapping[str, Any], place: str) -> None:
    schema = config.get("schema")
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        fault = "was saved by a newer version" if newer else "has an unknown schema"
        remedy = "pip install --upgrade sparserm-workbench" if newer else "fit it again"
        raise StoreError(f"the reward model {place} {fault}", expected=f"schema {SCHEMA}", found=f"schema {schema!r}", remedy=remedy)
    for name, types in _TYPES.items():
        value = config.get(name, ...)
        if not isinstance(value, types) or isinstance(value, bool):
            wanted = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            raise _damaged(place, f"{name} as {wanted} in {CONFIG}", "nothing" if value is ... else repr(value)[:80])
    if config["kind"] not in KINDS:
        raise _damaged(place, f"kind {' | '.join(KINDS)}", repr(config["kind"]))
    sizes = {"k": config["k"], "hidden": config["hidden"], "backbone.d_model": config["backbone"].get("d_model")}
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise _damaged(place, f"{name} >= 1", repr(size))
    if config["kind"] == "dense" and config["k"] != config["backbone"]["d_model"]:
        raise _damaged(place, f"a dense head on all {config['backbone']['d_model']} dimensions of z", f"k {config['k']}")
    if config["kind"] == "activations" and config["sae_config"] is None:
        raise _damaged(place, "sae_config: this kind reads the SAE's activations", "null")
    seeds = config["seeds"]
    if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds) or len(set(seeds)) < len(seeds):
        raise _damaged(place, "seeds: a list of different integers, one a head", repr(seeds)[:80])


def _head_spec(config: Mapping[str, Any], prefix: str = "") -> Spec:
    k, hidden = config["k"], config["hidden"]
    shapes = {"head.0.weight": (hidden, k), "head.0.bias": (hidden,), "head.2.weight": (1, hidden), "head.2.bias": (1,)}
    return {prefix + name: ("F32", shape) for name, shape in shapes.items()}


def _expected_tensors(config: Mapping[str, Any]) -> Spec:
    k, kind = config["k"], config["kind"]
    spec: Spec = _head_spec(config)
    sizes = {"projection_mean": k, "projection_std": k, "reward_quantiles": N_QUANTILES, "margin_scale": 1}
    spec |= {name: ("F32", (size,)) for name, size in sizes.items()}
    if kind in WITH_DIRECTIONS:
        spec["directions"] = ("F32", (k, config["backbone"]["d_model"]))
    if kind in WITH_LATENTS:
        spec["latent_ids"] = ("I64", (k,))
    return spec


def _expected_heads(config: Mapping[str, Any]) -> Spec:
    spec: Spec = {}
    for seed in config["seeds"]:
        spec |= _head_spec(config, f"seed.{seed}.")
    return spec


def _tensors_of(parts: RewardParts) -> Tensors:
    tensors: Tensors = {
        **_head_tensors(parts.head, ""),
        "projection_mean": _float32(parts.projection_mean),
        "projection_std": _float32(parts.projection_std),
        "reward_quantiles": _float32(parts.reward_quantiles),
        "margin_scale": _float32([parts.margin_scale]),
    }
    if parts.directions is not None:
        tensors["directions"] = _float32(parts.directions)
    if parts.latent_ids is not None:
        tensors["latent_ids"] = np.ascontiguousarray(parts.latent_ids, dtype=np.int64)
    return tensors


def _heads_of(parts: RewardParts) -> Tensors:
    if len(parts.heads) != len(parts.seeds):
        raise StoreError("a reward model needs one seed a head", expected=f"{len(parts.heads)} seeds", found=f"{len(parts.seeds)} seeds")
    tensors: Tensors = {}
    for seed, head in zip(parts.seeds, parts.heads, strict=True):
        tensors |= _head_tensors(head, f"seed.{seed}.")
    return tensors


def _head_tensors(head: Head, prefix: str) -> Tensors:
    return {prefix + name: _float32(getattr(head, attribute)) for name, attribute in HEAD_TENSORS.items()}


def _head_from(tensors: Tensors, prefix: str) -> Head:
    return Head(**{attribute: tensors[prefix + name] for name, attribute in HEAD_TENSORS.items()})


def _float32(values: Any) -> np.ndarray:
    # safetensors writes the bytes behind the pointer, whatever the strides say.
    return np.ascontiguousarray(values, dtype=np.float32)


def _read_tensors(path: Path, spec: Spec) -> Tensors:
    try:
        with safe_open(path, framework="np") as file:
            held = {name: (file.get_slice(name).get_dtype(), tuple(file.get_slice(name).get_shape())) for name in file.keys()}  # noqa: SIM118
            _check_spec(held, spec, str(path))
            tensors = {name: np.array(file.get_tensor(name)) for name in spec}
    except (OSError, SafetensorError) as error:
        raise _damaged(str(path), "a safetensors file", str(error)) from error
    _check_values(tensors, str(path))
    return tensors


def _check_tensors(tensors: Tensors, spec: Spec, place: str) -> None:
    names = {dtype: name for name, dtype in _DTYPES.items()}
    _check_spec({name: (names[value.dtype], value.shape) for name, value in tensors.items()}, spec, place)
    _check_values(tensors, place)


def _check_spec(held: Spec, spec: Spec, place: str) -> None:
    if set(held) != set(spec):
        raise _damaged(place, "tensors " + ", ".join(sorted(spec)), _difference(held, spec))
    for name, wanted in spec.items():
        if held[name] != wanted:
            raise _damaged(place, f"{name} {wanted[0]} {list(wanted[1])}", f"{held[name][0]} {list(held[name][1])}")


def _difference(held: Iterable[str], wanted: Iterable[str]) -> str:
    missing, strange = sorted(set(wanted) - set(held)), sorted(set(held) - set(wanted))
    lacking = [f"no {', '.join(missing)}"] if missing else []
    return "; ".join(lacking + ([f"also {', '.join(strange)}"] if strange else []))


def _check_values(tensors: Tensors, place: str) -> None:
    for name, values in tensors.items():
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise _damaged(place, f"{name} with finite values", f"{bad} that are not")
    if "projection_std" in tensors and not (tensors["projection_std"] > 0).all():
        raise _damaged(place, "projection_std > 0", repr(float(tensors["projection_std"].min())))
    if "reward_quantiles" in tensors and (np.diff(tensors["reward_quantiles"]) < 0).any():
        raise _damaged(place, "reward_quantiles that never fall", "a falling one")


def read_selection(path: Path) -> tuple[dict[str, Any], ...]:
    try:
        rows = tuple(strict_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(str(path), "one JSON object a line", str(error)) from error
    if not all(isinstance(row, dict) for row in rows):
        raise _damaged(str(path), "one JSON object a line", "another value")
    return rows


def _check_selection(rows: Sequence[Mapping[str, Any]], latent_ids: Int[np.ndarray, " k"] | None, place: str) -> None:
    wanted = [] if latent_ids is None else [int(i) for i in latent_ids]
    if [row.get("latent_id") for row in rows] != wanted:
        raise _damaged(place, f"a row for each of the {len(wanted)} latents, in order", f"{len(rows)} rows, not for these")


def _config_from(cls: type[Any], values: Mapping[str, Any], folder: Path) -> Any:
    try:
        return from_dict(cls, values)
    except (SparseRMError, TypeError) as error:
        raise _damaged(str(folder / CONFIG), f"a {cls.__name__}", str(error)) from error


def _damaged(place: str, expected: str, actual: str) -> StoreError:
    problem = f"{place} is damaged or not a SparseRM reward model"
    return StoreError(problem, expected=expected, found=actual, remedy=remedy_for(Path(place)))
