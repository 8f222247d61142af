"""Fills in what a person may leave out: the pairs (the embedded ones), and the SAE (the embedded one, else the one
trained last for the model and layer). What is filled in is logged; MissingError names the command for what can't be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.backbone.presets import TINY
from core.backbone.source import backbone_identity, find_model
from core.backbone.tiny import make_tiny
from core.config import BackboneConfig, FitConfig, SAEConfig, SweepConfig, sae_config
from core.data.sources import check_source
from core.errors import ConfigError, MissingError
from core.files import read_json
from core.runs.store import Store

DEMO = Path(__file__).resolve().parents[1] / "data" / "demo"
DEMO_PAIRS = DEMO / "pairs.jsonl"
DEMO_SAE = DEMO / "sae"
SAME = ("name", "revision", "sha256", "d_model")  # of two backbones' identities


def complete(config: FitConfig, store: Store, say: Callable[[str], None]) -> FitConfig:
    """`config` with pairs and SAE filled in, and absolute paths. MissingError: nothing to fill in."""
    config = _with_tiny_parts(config, store) if config.backbone.model == TINY else config
    pairs = config.data.pairs or str(DEMO_PAIRS)
    sae = config.sae if _named(config.sae) else known_sae(config.backbone, store)
    if sae is None:
        raise _missing(config, pairs)
    if sae is not config.sae:
        embedded = Path(sae.path) == DEMO_SAE
        say(f"SAE: {sae.path}, {'the embedded one (--sae names another)' if embedded else 'the newest trained for this model and layer'}")
    return replace(
        config,
        data=replace(config.data, pairs=absolute(pairs)),
        backbone=replace(config.backbone, model=absolute(config.backbone.model)),
        sae=replace(sae, path=absolute(sae.path)),
    )


def check(config: FitConfig, store: Store) -> None:
    """Checks pairs, model and SAE before anything slow is loaded. Raises DataError, BackboneError or MissingError."""
    if config.data.pairs:
        check_source(config.data.pairs)
    model = Path(config.backbone.model).expanduser()
    if (model.is_absolute() or config.backbone.model.startswith(".")) and not model.exists():
        find_model(config.backbone)
    if config.backbone.model == TINY or _named(config.sae):
        return
    if not any(True for folder in (DEMO, store.root / "saes") for _ in _cards(folder, config.backbone.layer)):
        raise _missing(config, config.data.pairs or str(DEMO_PAIRS))


def check_sweep(config: SweepConfig, store: Store) -> None:
    """As `check`, for every layer; ConfigError where the numbers of layers and SAEs differ."""
    for fit in fits_of(config):
        check(fit, store)


def _with_tiny_parts(config: FitConfig, store: Store) -> FitConfig:
    """The preset `tiny` is complete without its parts, so that starting it in the background need not make them."""
    parts = make_tiny(store.root / "models")
    pairs, sae = config.data.pairs or str(parts.pairs), config.sae if _named(config.sae) else SAEConfig(path=str(parts.sae))
    return replace(config, data=replace(config.data, pairs=pairs), backbone=replace(config.backbone, model=str(parts.model)), sae=sae)


def complete_sweep(config: SweepConfig, store: Store, say: Callable[[str], None]) -> tuple[FitConfig, ...]:
    """One completed fit config a layer. Layers left out: the fit's own; SAEs left out: as in `complete`."""
    return tuple(complete(fit, store, say) for fit in fits_of(config))


def fits_of(config: SweepConfig) -> tuple[FitConfig, ...]:
    """One fit config a layer; `curve`: the values of K. ConfigError: the numbers of layers and SAEs differ."""
    layers = config.layers or (config.fit.backbone.layer,)
    given = [sae_config(text) for text in config.saes] or [config.fit.sae] * len(layers)
    if len(given) != len(layers):
        raise ConfigError("a sweep needs one SAE for each layer", expected=f"{len(layers)} SAEs: --saes A,B,...", found=str(len(given)))
    at = [replace(config.fit.backbone, layer=layer) for layer in layers]
    return tuple(replace(config.fit, backbone=backbone, sae=sae, curve=config.ks) for backbone, sae in zip(at, given, strict=True))


def known_sae(backbone: BackboneConfig, store: Store) -> SAEConfig | None:
    """The embedded SAE if it fits model and layer (so the demo is the same in every cache), else the one that `sparserm
    sae train` made last for them, by the cards in the cache; None if there is neither."""
    trained = sorted(_cards(store.root / "saes", backbone.layer), key=lambda dated: dated[1].get("time_created", 0.0), reverse=True)
    cards = [*_cards(DEMO, backbone.layer), *trained]
    if not cards:
        return None
    identity = backbone_identity(backbone, find_model(backbone))
    fitting = (SAEConfig(path=str(folder)) for folder, card in cards if all(card["backbone"].get(name) == identity.get(name) for name in SAME))
    return next(fitting, None)


def _cards(folder: Path, layer: int) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for path in folder.glob("*/card.json"):
        card = read_json(path)
        if card["training"]["layer"] == layer:
            yield path.parent, card


def _named(sae: SAEConfig) -> bool:
    return bool(sae.path or sae.release)


def absolute(text: str) -> str:
    """An existing path made absolute, so that a saved config works from anywhere; any other name as it is."""
    path = Path(text).expanduser()
    return str(path.resolve()) if text and path.exists() else text


def _missing(config: FitConfig, pairs: str) -> MissingError:
    layer, model = config.backbone.layer, config.backbone.model
    train = "sparserm sae train" + ("" if model == BackboneConfig().model else f" --model {model}") + f" --layer {layer}"
    return MissingError(
        f"missing: an SAE for layer {layer} of {model}",
        expected="an SAE in --sae, or one trained for this model and layer",
        found="--sae is not given, and there is none in the cache",
        remedy=f"{train} ; then sparserm fit --pairs {pairs} --layer {layer}   (the trained SAE is found by itself)",
    )
