"""The `sparserm` command that starts the same run as a form or an earlier run."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

from core.cli.options import SAE_FIELDS, options_of
from core.config import Config, SAEConfig
from core.jobs.kinds import kind_of, model_of


def equal_command(kind: str, config: Config, preset: str = "", *, prepare_pages: bool = False) -> str:
    """The command, from this preset where options can turn it into `config`, else from the one that needs the fewest words."""
    entry = kind_of(kind)
    words = {name: options_of(config, base) for name in ("", *entry.presets) if _can_become(base := _base(kind, config, name), config)}
    if preset and preset in words and preset != entry.default_preset:
        words = {preset: words[preset]}
    nearest = min(words, key=lambda name: len(words[name]) + 2 * bool(name))
    argument = [str(getattr(config, entry.argument))] if entry.argument else []
    preset_words, prepare = ["--preset", nearest] if nearest else [], ["--prepare-pages"] if prepare_pages else []
    return shlex.join(["sparserm", *entry.command, *argument, *preset_words, *words[nearest], *prepare, "--detach"])


def _base(kind: str, config: Config, preset: str) -> Config:
    """What the command starts from, with the field that it names without an option."""
    entry = kind_of(kind)
    base: Any = entry.base(preset, model_of(config))
    return replace(base, **{entry.argument: getattr(config, entry.argument)}) if entry.argument else base


def _can_become(base: Any, config: Any) -> bool:
    """Whether options can turn `base` into `config`: no option takes away an SAE that a preset names."""
    if isinstance(base, SAEConfig):
        return all(not getattr(base, name) or getattr(config, name) for name in SAE_FIELDS)
    parts = [(getattr(base, name), getattr(config, name)) for name in vars(base)]
    return all(_can_become(before, after) for before, after in parts if isinstance(before, Config))
