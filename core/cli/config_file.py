"""Files of a command's configuration: `--config FILE` reads one, `--save-config FILE` and the pages' forms write one.

A file holds the fields of the command's config class, nested as the classes are, in TOML or JSON:

    random_draws = 3
    [data]
    pairs = "pairs.jsonl"
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from core.config import Config
from core.errors import ConfigError
from core.files import write_text

SUFFIXES = (".toml", ".json")


def read_config_file(path: Path) -> dict[str, Any]:
    """The values in a file. Raises ConfigError where it can't be read."""
    _check_suffix(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise ConfigError(f"{path} can't be read", found=error.strerror or str(error), remedy="check the path of --config") from error
    except ValueError as error:
        raise ConfigError(f"{path} holds no {path.suffix[1:].upper()}", found=str(error)) from error
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
