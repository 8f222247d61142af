"""The kinds of long work: one table that the command line, the pages' forms and the run worker read.

A new kind is a config class in core/config.py, a `Job` in a file of core/jobs, and a line here. Nothing heavy is imported: jobs are named by strings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.align.presets import ALIGN_PRESETS
from core.backbone.presets import PRESETS, TINY
from core.by_name import load
from core.config import (
    AlignConfig,
    Config,
    DoctorRunConfig,
    FitConfig,
    LatentsRunConfig,
    PairsRunConfig,
    SAETrainConfig,
    SpacesRunConfig,
    SweepConfig,
    from_dict,
)
from core.errors import ConfigError
from core.runs.registry import Run

EMBEDDED = "smollm2-135m"
DEMO_PAIRS = ("core", "data", "demo", "pairs.jsonl")  # the end of their path
Values = Mapping[str, Any]  # a config as plain values


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of long work."""

    config: type[Config]
    job: str  # where its core.jobs.job.Job is, as `module:name`
    name: str  # its name for a person
    title: Callable[[Values], str]  # what a run of it is about, from its config's values; texts of data and models
    command: tuple[str, ...]  # the words of its command after `sparserm`
    argument: str = ""  # the field that the command takes without an option's name
    first_fields: tuple[str, ...] = ()  # what most people set, in order: shown by `--help` and first in a form
    presets: Mapping[str, Config] = field(default_factory=dict)
    default_preset: str = ""  # the one that holds where none is named
    alone: bool = True  # it needs nothing that another run left in the cache, so it can be done again in a fresh one

    def base(self, preset: str = "", model: str = "") -> Config:
        """What options and forms change: the preset's config, else the default preset's, which holds for its own language model only."""
        name = preset or (self.default_preset if model in ("", EMBEDDED) else "")
        return self.presets[name] if name else self.config()


def model_of(config: Config) -> str:
    """The language model that a config names; empty where it names none."""
    backbone = getattr(getattr(config, "fit", config), "backbone", None)
    return "" if backbone is None else str(backbone.model)


# The sections of options and forms, by the field that holds the config.
SECTIONS = {
    "": "this run",
    "data": "preference pairs",
    "backbone": "language model",
    "sae": "sparse autoencoder",
    "selection": "selection",
    "head": "head",
    "fit": "controls",
    "candidates": "candidates",
    "dpo": "training",
    "evaluation": "evaluation",
    "doctor": "how much is measured",
    "spaces": "pictures and figures",
    "pages": "texts and pages",
}


# --- titles --------------------------------------------------------------------------------------------------------


def data_name(pairs: str) -> str:
    """What preference pairs are called in a title."""
    path = Path(pairs)
    if not pairs or path.parts[-4:] == DEMO_PAIRS:
        return "Demo pairs"
    return path.parent.name if path.stem == "pairs" and path.parent.name else path.name


def model_name(model: str) -> str:
    """What a language model is called in a title."""
    path = Path(model)
    return path.parent.name if path.name == "model" else path.name


def _fit_title(config: Values) -> str:
    return _of_fit(config, [config["backbone"]["layer"]], [config["selection"]["k"]])


def _sweep_title(config: Values) -> str:
    return _of_fit(config["fit"], config["layers"] or [config["fit"]["backbone"]["layer"]], config["ks"])


def _of_fit(fit: Values, layers: list[int], ks: list[int]) -> str:
    model, pairs = fit["backbone"]["model"], fit["data"]["pairs"]
    data = "tiny-1" if model == TINY and not pairs else data_name(pairs)
    return f"{data} · {model_name(model)} · layer {', '.join(map(str, layers))} · K {', '.join(map(str, ks))}"


def _training_title(config: Values) -> str:
    return f"{model_name(config['backbone']['model'])} · layer {config['backbone']['layer']} · {config['width']:,} latents"


def _alignment_title(config: Values) -> str:
    return f"{config['arm']} · {model_name(config['fit']['backbone']['model'])} · {config['rounds']} rounds"


def _model_title(config: Values) -> str:
    return f"of {Path(config['model']).name[:12]}"


# --- the table -----------------------------------------------------------------------------------------------------

KINDS = {
    "fit": Kind(
        config=FitConfig,
        job="core.jobs.fit:FIT",
        name="Fit",
        title=_fit_title,
        command=("fit",),
        first_fields=("data.pairs", "backbone.model", "backbone.layer", "sae.path", "selection.k"),
        presets=PRESETS,
        default_preset=EMBEDDED,
    ),
    "sae-train": Kind(
        config=SAETrainConfig,
        job="core.jobs.sae_train:SAE_TRAIN",
        name="SAE training",
        title=_training_title,
        command=("sae", "train"),
        first_fields=("backbone.model", "backbone.layer", "width", "k", "tokens", "corpus"),
    ),
    "sweep": Kind(
        config=SweepConfig,
        job="core.jobs.sweep:SWEEP",
        name="Sweep",
        title=_sweep_title,
        command=("sweep",),
        first_fields=("fit.data.pairs", "fit.backbone.model", "layers", "saes", "ks"),
        presets={name: SweepConfig(fit=fit) for name, fit in PRESETS.items()},
        default_preset=EMBEDDED,
    ),
    "pairs": Kind(
        config=PairsRunConfig,
        job="core.jobs.pairs:PAIRS",
        name="Pairs check",
        title=lambda config: data_name(config["data"]["pairs"]),
        command=("pairs",),
        first_fields=("data.pairs", "data.format", "data.columns"),
    ),
    "doctor": Kind(
        config=DoctorRunConfig,
        job="core.jobs.doctor:DOCTOR",
        name="Doctor",
        title=_model_title,
        command=("doctor",),
        argument="model",
        alone=False,
    ),
    "spaces": Kind(
        config=SpacesRunConfig,
        job="core.jobs.spaces:SPACES",
        name="Spaces",
        title=_model_title,
        command=("spaces",),
        argument="model",
        alone=False,
    ),
    "latents": Kind(
        config=LatentsRunConfig,
        job="core.jobs.latents:LATENTS",
        name="Latents' pages",
        title=_model_title,
        command=("latents",),
        argument="model",
    ),
    "align": Kind(
        config=AlignConfig,
        job="core.jobs.align:ALIGN",
        name="Alignment",
        title=_alignment_title,
        command=("align",),
        first_fields=("arm", "rounds", "prompts", "prompts_limit", "candidates.mode", "candidates.task", "evaluation.mc", "dpo.lr"),
        presets=ALIGN_PRESETS,
        default_preset=EMBEDDED,
    ),
}


def kind_of(name: str) -> Kind:
    """Raises ConfigError for an unknown kind."""
    if name not in KINDS:
        raise ConfigError("there is no such kind of run", expected=" | ".join(KINDS), found=repr(name))
    return KINDS[name]


def load_job(name: str) -> Any:
    """The `core.jobs.job.Job` of a kind."""
    return load(kind_of(name).job)


def asked_config(run: Run) -> Config:
    """What a run was asked for. Raises ConfigError where another version wrote fields that this one does not have."""
    config: Config = from_dict(kind_of(run.kind).config, run.config())
    return config


def resolved_config(run: Run) -> Config | None:
    """What was asked for with everything filled in, once the worker has done so."""
    values = run.resolved()
    return None if values is None else from_dict(kind_of(run.kind).config, values)


def config_of(run: Run) -> Config:
    """A run's config as it was filled in, or as it was asked for where the worker has not filled it in."""
    return resolved_config(run) or asked_config(run)
