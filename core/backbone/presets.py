"""Named configurations for `sparserm fit --preset NAME`.

The paper (METHOD.md sections 2 and 3) gives models, layers, K = 128 and the family of the SAEs for `gemma-2-2b`,
`gemma-2-9b` and `llama-3.1-8b`. It does not give the SAEs' width: 16k (Gemma) and 8x = 32k (Llama) are our choice, as
are layer 19 and K = 32 of `smollm2-135m`, and all of `tiny`. `smollm2-135m` also goes beyond the paper in what it reads,
the whole response, and in its rule of selection; `smollm2-135m-paper` reads and selects as the paper does, on the same
pairs and the same split, as a control. One pass reads both positions, so the second of the two fits costs no reading.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.backbone.tiny import make_tiny
from core.config import BackboneConfig, DataConfig, FitConfig, SAEConfig, SelectionConfig
from core.errors import ConfigError
from core.runs.store import cache_root

TINY = "tiny"

PRESETS: Mapping[str, FitConfig] = {
    # An empty path stands for the embedded SAE.
    "smollm2-135m": FitConfig(
        data=DataConfig(ratios=(0.6, 0.1, 0.3)),
        backbone=BackboneConfig(model="smollm2-135m", layer=19, position="response_mean", also_read=("response_end",)),
        selection=SelectionConfig(k=32, selection="effect"),
    ),
    "smollm2-135m-paper": FitConfig(
        data=DataConfig(ratios=(0.6, 0.1, 0.3)),
        backbone=BackboneConfig(model="smollm2-135m", layer=19, position="response_end"),
        selection=SelectionConfig(k=32, selection="frequency"),
    ),
    # `preset` makes the parts and fills in their paths.
    TINY: FitConfig(
        backbone=BackboneConfig(model=TINY, layer=1, dtype="float32"),
        selection=SelectionConfig(k=16, resamples=50),
        curve=(4, 8, 16, 32),
    ),
    "gemma-2-2b": FitConfig(
        backbone=BackboneConfig(model="google/gemma-2-2b-it", layer=13),
        sae=SAEConfig(release="gemma-scope-2b-pt-res-canonical", sae_id="layer_13/width_16k/canonical"),
        selection=SelectionConfig(k=128),
    ),
    "gemma-2-9b": FitConfig(
        backbone=BackboneConfig(model="google/gemma-2-9b-it", layer=31),
        sae=SAEConfig(release="gemma-scope-9b-it-res-canonical", sae_id="layer_31/width_16k/canonical"),
        selection=SelectionConfig(k=128),
    ),
    "llama-3.1-8b": FitConfig(
        backbone=BackboneConfig(model="meta-llama/Llama-3.1-8B-Instruct", layer=15),
        sae=SAEConfig(release="llama_scope_lxr_8x", sae_id="l15r_8x"),
        selection=SelectionConfig(k=128),
    ),
}

# Mean number of active latents a token, as the releases give it. If a measured L0 is far off, the SAE was loaded
# wrongly (METHOD.md's trap table).
EXPECTED_L0: Mapping[tuple[str, str], float] = {
    ("gemma-scope-2b-pt-res-canonical", "layer_13/width_16k/canonical"): 84.0,
    ("gemma-scope-9b-it-res-canonical", "layer_31/width_16k/canonical"): 76.0,
    ("llama_scope_lxr_8x", "l15r_8x"): 50.0,
}

# Neuronpedia's names (model and source) of the SAEs of these releases, from the release's and the SAE's names;
# sae-lens' registry has the same.
NEURONPEDIA: tuple[tuple[str, str, str], ...] = (
    (r"gemma-scope-(\d+b)-pt-res-canonical layer_(\d+)/width_(\w+)/canonical", r"gemma-2-\1", r"\2-gemmascope-res-\3"),
    (r"gemma-scope-(\d+b)-it-res-canonical layer_(\d+)/width_(\w+)/canonical", r"gemma-2-\1-it", r"\2-gemmascope-res-\3"),
    (r"llama_scope_lxr_8x l(\d+)r_8x", "llama3.1-8b", r"\1-llamascope-res-32k"),
    (r"llama_scope_lxr_32x l(\d+)r_32x", "llama3.1-8b", r"\1-llamascope-res-131k"),
)


def neuronpedia_source(sae: Mapping[str, Any]) -> tuple[str, str] | None:
    """Neuronpedia's model and source of the SAE with this identity; None where `NEURONPEDIA` has no rule for it."""
    name = f"{sae.get('release', '')} {sae.get('sae_id', '')}"
    for pattern, model, source in NEURONPEDIA:
        if match := re.fullmatch(pattern, name):
            return match.expand(model), match.expand(source)
    return None


def source_names(sae: Mapping[str, Any]) -> tuple[str, str]:
    """`modelId` and `layer` of rows in Neuronpedia's formats: its own where known, else ours built the same way."""
    made_for = str(sae.get("model_name") or "").rstrip("/").rpartition("/")[2].lower()
    name = re.sub(r"[^a-z0-9]+", "-", str(sae.get("name") or "sae").lower()).strip("-")
    return neuronpedia_source(sae) or (made_for or "unknown", f"{sae.get('layer')}-{name}")


def preset(name: str, *, root: Path | None = None) -> FitConfig:
    """The preset of this name; `tiny` makes missing parts under `root`. Raises ConfigError on an unknown name."""
    if name not in PRESETS:
        raise ConfigError("there is no such preset", expected=" | ".join(PRESETS), found=repr(name))
    return _with_tiny_parts(PRESETS[name], root or cache_root() / "models") if name == TINY else PRESETS[name]


def _with_tiny_parts(config: FitConfig, root: Path) -> FitConfig:
    parts = make_tiny(root)
    return replace(
        config,
        data=DataConfig(pairs=str(parts.pairs)),
        backbone=replace(config.backbone, model=str(parts.model)),
        sae=SAEConfig(path=str(parts.sae)),
    )
