"""Files of a command's configuration: `--config FILE` reads one, `--save-config FILE` and the pages' forms write one.

A file holds the fields of the command's config class, nested as the classes are, in TOML or JSON:

    random_draws = 3
    [data]
    pairs = "pairs.jsonl"
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.config import Config, SAEConfig
from core.errors import ConfigError
from core.files import write_text
from core.types import strict_json

SUFFIXES = (".toml", ".json")


def read_config_file(path: Path) -> dict[str, Any]:
    """The values in a file. Raises ConfigError where it can't be read, or gives a field twice."""
    _check_suffix(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else strict_json(text, unique_keys=True)
    except OSError as error:
        raise ConfigError(f"{path} can't be read", found=error.strerror or str(error), remedy="check the path of --config") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} holds no valid {path.suffix[1:].upper()}", found=str(error)) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no table of fields", found=type(values).__name__)
    return values


def write_config_file(path: Path, config: Config) -> None:
    """Writes every field of a config. Raises ConfigError where the file exists or has another ending than .toml or .json."""
    _check_suffix(path)
    if path.exists():
        raise ConfigError(f"{path} exists already", remedy="give --save-config a new file, or remove this one")
    write_text(path, as_toml(config.to_dict()) if path.suffix == ".toml" else json.dumps(config.to_dict(), indent=1) + "\n")


def as_toml(values: Mapping[str, Any]) -> str:
    """Plain values (texts, numbers, lists, tables) as TOML."""
    return "\n".join(_lines(values, ())).strip() + "\n"


def _lines(values: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    if path:
        yield f"\n[{'.'.join(path)}]"
    for name, value in values.items():
        if not isinstance(value, Mapping):
            yield f"{_key(name)} = {_value(value)}"
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _lines(value, (*path, _key(name)))


def _key(name: str) -> str:
    return name if name.isascii() and name.replace("_", "").replace("-", "").isalnum() else _value(name)


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    # JSON's texts, numbers and truth values are TOML's too, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise ConfigError("a configuration is a .toml or a .json file", found=str(path))


# --- values in place of a config's own ---------------------------------------------------------------------------------


def with_values(config: Config, values: Mapping[str, Any], source: str = "") -> Config:
    """The config with (nested) plain values of `source`, such as a file, in place of its own.

    Raises ConfigError for an unknown field, which names the nearest known one, and for a value of another type.
    """
    changed: Config = _with_values(config, values, (), source, tuple(_paths(config)))
    return changed


def _paths(config: Config, outer: str = "") -> Iterator[str]:
    """The dotted path of every field."""
    for spec in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, spec.name)
        yield f"{outer}{spec.name}"
        if isinstance(value, Config):
            yield from _paths(value, f"{outer}{spec.name}.")


def _with_values(config: Any, values: Mapping[str, Any], outer: tuple[str, ...], source: str, known: tuple[str, ...]) -> Any:
    hints, changes = typing.get_type_hints(type(config)), dict[str, Any]()
    for name, value in values.items():
        path = ".".join((*outer, name))
        if name not in hints:
            near = _nearest(path, known)
            raise ConfigError(f"{source}: there is no field {path}", expected=f"{near}?" if near else "one of " + ", ".join(hints), found=path)
        before = getattr(config, name)
        if isinstance(before, Config):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{source}: {path} has another type", expected="a table of fields", found=repr(value))
            changes[name] = _with_values(before, value, (*outer, name), source, known)
        else:
            changes[name] = _typed(hints[name], value, path, source)
    if isinstance(config, SAEConfig) and any(changes.get(name) for name in ("release", "sae_id", "path")):
        config = SAEConfig(format=config.format)  # an SAE that is named here takes the place of another one, however that was named
    return dataclasses.replace(config, **changes)


def _nearest(path: str, known: tuple[str, ...]) -> str:
    """The known path that was probably meant: the same name elsewhere, a similar path, or a similar name."""
    names = {other: other.rpartition(".")[2] for other in known}
    name = path.rpartition(".")[2]
    same_name = [other for other in known if names[other] == name]
    similar_path = difflib.get_close_matches(path, known, n=1)
    similar_name = [other for near in difflib.get_close_matches(name, names.values(), n=1) for other in known if names[other] == near]
    return next(iter((*same_name, *similar_path, *similar_name)), "")


def _typed(kind: Any, value: Any, path: str, source: str) -> Any:
    """A plain value as one of a field's type."""
    origin, words = typing.get_origin(kind), {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    if origin is tuple and isinstance(value, list):
        return tuple(_typed(typing.get_args(kind)[0], item, path, source) for item in value)
    if origin is not None and origin is not tuple and isinstance(value, Mapping):
        return {str(name): _typed(str, item, path, source) for name, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is None and isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
        return value
    expected = words.get(kind) or ("a list" if origin is tuple else "a table of texts")
    raise ConfigError(f"{source}: {path} has another type", expected=expected, found=repr(value))
