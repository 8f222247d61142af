"""Dataclasses of arrays on disk: `name.safetensors` holds every array under its dotted path, `name.json` the rest and where the arrays belong.

No pickle: only classes that the reader names are made again. A class names in `FINITE` those of its arrays in which NaN
or an infinity is damage: others may hold NaN for what does not exist. A class that was renamed gives its name on disk in
`STORED_AS`, so that earlier caches are read and the same value is the same file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import StoreError
from core.files import read_json, write_json

ARRAY, CLASS, TUPLE, FLOAT = "$array", "$class", "$tuple", "$float"


def save_value(folder: Path, name: str, value: Any) -> None:
    """Writes dataclasses, tuples, lists, mappings with string keys, arrays and JSON values, in any nesting. Raises TypeError on anything else."""
    from safetensors.numpy import save_file

    arrays: dict[str, np.ndarray] = {}
    plain = _encoded(value, "", arrays)
    save_file(arrays, folder / f"{name}.safetensors")
    write_json(folder / f"{name}.json", plain)


def load_value(folder: Path, name: str, *classes: type[Any]) -> Any:
    """What `save_value` wrote, given the dataclasses it is made of. Raises StoreError where a file is missing or is another value's."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(folder / f"{name}.safetensors")
        plain = read_json(folder / f"{name}.json")
        return _decoded(plain, arrays, {_stored_name(cls): cls for cls in classes})
    except (StoreError, OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StoreError(f"{folder / name} can't be read", found=f"{type(error).__name__}: {error}", remedy="sparserm cache verify") from error


def _encoded(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, np.ndarray):
        arrays[path] = np.ascontiguousarray(value)
        return {ARRAY: path}
    if is_dataclass(value) and not isinstance(value, type):
        parts = {spec.name: getattr(value, spec.name) for spec in fields(value)}
        return {CLASS: _stored_name(type(value)), **_encoded(parts, path, arrays)}
    if isinstance(value, Mapping):
        if any(not isinstance(key, str) or key.startswith("$") for key in value):
            raise TypeError(f"{path}: the keys of a mapping must be texts that don't begin with $")
        return {key: _encoded(part, _join(path, key), arrays) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts_ = [_encoded(part, _join(path, str(number)), arrays) for number, part in enumerate(value)]
        return parts_ if isinstance(value, list) else {TUPLE: parts_}
    if isinstance(value, float) and not math.isfinite(value):
        return {FLOAT: repr(float(value))}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{path}: a {type(value).__name__} can't be saved")


def _stored_name(cls: type[Any]) -> str:
    return str(getattr(cls, "STORED_AS", cls.__name__))


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _decoded(plain: Any, arrays: Mapping[str, np.ndarray], classes: Mapping[str, type[Any]]) -> Any:
    if isinstance(plain, list):
        return [_decoded(part, arrays, classes) for part in plain]
    if not isinstance(plain, dict):
        return plain
    if ARRAY in plain:
        return arrays[plain[ARRAY]]
    if TUPLE in plain:
        return tuple(_decoded(part, arrays, classes) for part in plain[TUPLE])
    if FLOAT in plain:
        return float(plain[FLOAT])
    parts = {key: _decoded(part, arrays, classes) for key, part in plain.items() if key != CLASS}
    return _checked(classes[plain[CLASS]], parts) if CLASS in plain else parts


def _checked(cls: type[Any], parts: Mapping[str, Any]) -> Any:
    for name in getattr(cls, "FINITE", ()):
        values = parts.get(name)
        not_finite = 0 if values is None else int((~np.isfinite(values)).sum())
        if not_finite:
            raise ValueError(f"{cls.__name__}.{name} has {not_finite} values that are not finite")
    return cls(**parts)
