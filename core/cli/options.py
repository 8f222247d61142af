"""Commands, and command-line options made from the config dataclasses: a field is an option, its `help` the help, its default the default.

`add_options` adds them to a parser without defaults, so that what the person typed can be told from what they did not: `given` picks the
former out of the parsed arguments, and `override` lays it over a preset.
"""

from __future__ import annotations

import argparse
import json
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from core.by_name import by_name
from core.config import Config, SAEConfig, sae_config
from core.errors import ConfigError
from core.jobs.kinds import SECTIONS, Kind

# Fields whose plain name says too little, or that two configs share.
NAMES = {
    "SAEConfig.format": "sae_format",
    "SelectionConfig.seed": "bootstrap_seed",
    "DataConfig.seed": "split_seed",
    "BackboneConfig.revision": "model_revision",
    "AlignConfig.model": "reward_model",
    "CandidatesConfig.batch_size": "generation_batch_size",
    "CandidatesConfig.min_margin": "best_of_margin",
    "CandidatesConfig.seed": "candidates_seed",
    **{f"DPOConfig.{name}": f"dpo_{name}" for name in ("batch_size", "dtype", "epochs", "lr", "max_length", "seed")},
    **{
        f"PolicyEvaluationConfig.{name}": f"evaluation_{name}"
        for name in ("dtype", "max_new_tokens", "pairs", "prompts", "samples", "seed", "tokens_per_batch")
    },
}
# One option, --sae, stands for these three.
SAE_FIELDS = ("release", "sae_id", "path")
SAE_HELP = "sparse autoencoder: RELEASE:ID of sae-lens, a folder, or a params.npz (default: the newest that `sae train` made for model and layer)"


# Options that stand for one value of a field: `--all` for which=all.
SHORTHANDS = {"LatentsRunConfig.which": ("--all", "all", "make the pages of all live latents, not only of those the model selects")}


class Parser(argparse.ArgumentParser):
    """argparse with readable epilogs, and no abbreviations: scripts that use them would break when an option is added.

    Where options are `rare`, `--help` leaves them out and `--help-all` shows them too.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)
        self.rare: list[argparse.Action] = []

    def format_help(self) -> str:
        helps = [action.help for action in self.rare]
        for action in self.rare:
            action.help = argparse.SUPPRESS
        try:
            return super().format_help()
        finally:
            for action, help_ in zip(self.rare, helps, strict=True):
                action.help = help_

    def format_help_all(self) -> str:
        """The help with every option."""
        return super().format_help()


class HelpAll(argparse._HelpAction):
    """`--help-all`: the help with every option."""

    def __call__(self, parser: Any, *_: Any) -> None:
        print(parser.format_help_all())
        parser.exit()


def add_command(parent: Any, name: str, run: Callable[..., int | None] | str | None, help: str, examples: Mapping[str, str]) -> Parser:
    """A parser for the command `name` (`cache list`: the last word counts) among `parent`'s.

    `run(arguments, display)` does the work and may return an exit code. A text `module:function` names it, and its module
    is imported when the command is chosen. Without `run` the command has commands of its own.
    """
    parser: Parser = parent.add_parser(name.split()[-1], help=help, description=help + ".", epilog=examples[name])
    if run:
        parser.set_defaults(run=by_name(run) if isinstance(run, str) else run)
        parser.add_argument("--json", action="store_true", help="one JSON line on standard output, for machines")
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def print_json(value: Mapping[str, Any]) -> None:
    """One line on standard output."""
    print(json.dumps(value, allow_nan=False), flush=True)


def add_config_options(parser: Parser, kind: Kind) -> None:
    """Adds the options of a kind of run: its first fields in one group, which `--help` shows, then a group for each config."""
    parts = dict(parts_of(kind.base()))
    if kind.argument:
        parser.add_argument(kind.argument, metavar=kind.argument.upper(), help=_field(parts[""], kind.argument).metadata["help"])
    if kind.first_fields:
        first = parser.add_argument_group("what most people set")
        for path in kind.first_fields:
            owner, _, name = path.rpartition(".")
            add_option(first, parts[owner], name)
    for owner, config in parts.items():
        shown = {path.rpartition(".")[2] for path in kind.first_fields if path.rpartition(".")[0] == owner} | {kind.argument}
        rare = add_options(parser, config, SECTIONS[owner.rpartition(".")[2]], without=shown)
        if kind.first_fields:
            parser.rare += rare
    if kind.first_fields:
        places = [str(action.metavar) for action in parser._actions if not action.option_strings]
        parser.usage = " ".join([parser.prog, "[options]", *places])


def parts_of(config: Config, path: str = "") -> Iterator[tuple[str, Config]]:
    """A config and those in it, by their paths."""
    yield path, config
    for spec in fields(config):  # type: ignore[arg-type]
        value = getattr(config, spec.name)
        if isinstance(value, Config):
            yield from parts_of(value, f"{path}.{spec.name}".lstrip("."))


def add_options(parser: argparse.ArgumentParser, config: Config, title: str, *, without: Collection[str] = ()) -> list[argparse.Action]:
    """Adds a group of options for the fields of `config`; nested configs and the fields in `without` are left out. Returns the options."""
    group = parser.add_argument_group(title)
    names = [spec.name for spec in fields(config) if not is_dataclass(getattr(config, spec.name)) and spec.name not in without]  # type: ignore[arg-type]
    if isinstance(config, SAEConfig):
        names = [name for name in names if name not in SAE_FIELDS or name == "path"]
    return [add_option(group, config, name) for name in names]


def add_option(group: Any, config: Config, name: str) -> Any:
    """Adds the option of one field; its value in `config` is shown as the default. The SAE's `path` stands for all that name an SAE."""
    spec, key = _field(config, name), f"{type(config).__name__}.{name}"
    value, hint, choices = getattr(config, name), typing.get_type_hints(type(config))[name], spec.metadata.get("choices") or None
    if key == "SAEConfig.path":
        return group.add_argument("--sae", metavar="SAE", default=argparse.SUPPRESS, help=SAE_HELP)
    if key in SHORTHANDS:
        flag, const, help_ = SHORTHANDS[key]
        return group.add_argument(flag, dest=name, action="store_const", const=const, default=argparse.SUPPRESS, help=help_)
    return group.add_argument(
        "--" + option_name(config, name).replace("_", "-"),
        dest=option_name(config, name),
        type=reader(hint),
        action=_Longer if typing.get_origin(hint) is tuple else "store",
        choices=choices,
        metavar=None if choices else _metavar(hint),
        default=argparse.SUPPRESS,
        help=(spec.metadata["help"] + _shown(value)).replace("%", "%%"),
    )


def _field(config: Config, name: str) -> Any:
    return next(spec for spec in fields(config) if spec.name == name)  # type: ignore[arg-type]


class _Longer(argparse.Action):
    """A list grows when its option is given again."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest, ()), *values))


def option_name(config: Config, field: str) -> str:
    """The name of a field's option, as an attribute of the parsed arguments."""
    return NAMES.get(f"{type(config).__name__}.{field}", field)


def override(config: Any, arguments: Mapping[str, Any]) -> Any:
    """`config` with the options that were given in place of its values, nested configs included. Raises ConfigError on impossible values."""
    changes: dict[str, Any] = {}
    for spec in fields(config):
        value, name = getattr(config, spec.name), option_name(config, spec.name)
        if isinstance(value, SAEConfig):
            changes[spec.name] = override(sae_config(arguments["sae"]) if "sae" in arguments else value, arguments)
        elif is_dataclass(value):
            changes[spec.name] = override(value, arguments)
        elif name in arguments and not (isinstance(config, SAEConfig) and spec.name in SAE_FIELDS):
            changes[spec.name] = arguments[name]
    return replace(config, **changes)


def options_of(config: Config, base: Config) -> list[str]:
    """The options that turn `base` into `config`, as words of a command: what `override` would read back."""
    words: list[str] = []
    for spec in fields(config):  # type: ignore[arg-type]
        value, before = getattr(config, spec.name), getattr(base, spec.name)
        if is_dataclass(value):
            words += options_of(value, before)  # type: ignore[arg-type]
        elif value != before and f"{type(config).__name__}.{spec.name}" in SHORTHANDS:
            words.append(SHORTHANDS[f"{type(config).__name__}.{spec.name}"][0])
        elif value != before and not (isinstance(config, SAEConfig) and spec.name in SAE_FIELDS):
            words += ["--" + option_name(config, spec.name).replace("_", "-"), as_text(value)]
    named = [name for name in SAE_FIELDS if isinstance(config, SAEConfig) and getattr(config, name)]
    if isinstance(config, SAEConfig) and any(getattr(config, name) != getattr(base, name) for name in named):
        words += ["--sae", config.path or f"{config.release}:{config.sae_id}"]
    return words


def as_text(value: Any) -> str:
    """A field's value as a person types it."""
    if isinstance(value, Mapping):
        return ",".join(f"{ours}={theirs}" for ours, theirs in value.items())
    return ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def reader(kind: Any) -> Callable[[str], Any]:
    """Turns an option's text into a value of a field's type. Raises argparse's error, which names the option, on a wrong text."""
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        return _named("comma-separated list", lambda text: tuple(item(part.strip()) for part in text.split(",") if part.strip()))
    if typing.get_origin(kind) in (Mapping, typing.get_origin(Mapping[str, str])):
        return _named("OUR=YOURS,... list", _mapping)
    if kind is bool:
        return _named("true or false", _truth)
    if kind is int:
        return _named("whole number", lambda text: int(text.replace("_", "")))
    return kind if kind in (float, str) else _refuse(kind)


def _truth(text: str) -> bool:
    if text.strip().lower() not in ("true", "false"):
        raise ValueError(text)
    return text.strip().lower() == "true"


def _mapping(text: str) -> dict[str, str]:
    parts = [part.partition("=") for part in text.split(",") if part.strip()]
    if any(not equals or not key.strip() or not value.strip() for key, equals, value in parts):
        raise ValueError(text)
    return {key.strip(): value.strip() for key, _, value in parts}


def _named(name: str, read: Callable[[str], Any]) -> Callable[[str], Any]:
    read.__name__ = name  # argparse says "invalid <name> value: ..."
    return read


def _refuse(kind: Any) -> Callable[[str], Any]:
    raise ConfigError(f"no option can be made from a field of type {kind}")


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return "N,N,..." if typing.get_args(kind)[0] is not str else "A,B,..."
    return {bool: "true|false", int: "N", float: "X"}.get(kind, "A=B,..." if kind is not str else "TEXT")


def _shown(value: Any) -> str:
    if value is None or (not isinstance(value, (int, float)) and not value):
        return ""
    return f" (default: {','.join(map(str, value)) if isinstance(value, (tuple, list)) else value})"
