"""Small random reward models, made by hand, for the tests of core.reward.model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from core.backbone.presets import preset
from core.config import BackboneConfig, FitConfig, SAEConfig
from core.reward.head import Head
from core.reward.parts import WITH_DIRECTIONS, WITH_LATENTS, RewardParts

IDENTITY: dict[str, Any] = {
    "name": "toy/backbone",
    "revision": "c0ffee",
    "sha256": "",
    "d_model": 6,
    "n_layers": 4,
    "template_sha256": "ab" * 32,
    "dtype": "float32",
    "quantization": "none",
}


def quick_tiny(k: int | None = None) -> FitConfig:
    """The tiny preset with few and short heads, one draw of each control and one point of the curve: a fit takes three
    seconds in place of twenty-five.
    """
    config = preset("tiny")
    selection = replace(config.selection, k=k or config.selection.k, resamples=20)
    return replace(config, head=replace(config.head, seeds=2, epochs=10), selection=selection, random_draws=1, curve=(4,))


def random_head(rng: np.random.Generator, k: int, hidden: int = 5) -> Head:
    shapes = {"weight_1": (hidden, k), "bias_1": (hidden,), "weight_2": (1, hidden), "bias_2": (1,)}
    return Head(**{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})


def make_parts(kind: str = "sparserm", *, d_model: int = 6, k: int = 4, hidden: int = 5, seed: int = 0, **changes: Any) -> RewardParts:
    """Random parts of one kind; `changes` replace fields."""
    rng = np.random.default_rng(seed)
    k = d_model if kind == "dense" else k
    heads = tuple(random_head(rng, k, hidden) for _ in range(3))
    latents = np.sort(rng.choice(1000, size=k, replace=False)).astype(np.int64) if kind in WITH_LATENTS else None
    table = () if latents is None else tuple({"latent_id": int(i), "side": "chosen", "separation": 0.1, "q_value": None} for i in latents)
    parts = RewardParts(
        kind=kind,
        backbone={**IDENTITY, "d_model": d_model},
        backbone_config=BackboneConfig(model="toy/backbone", layer=2),
        sae={"sha256": "5ae", "d_model": d_model, "d_sae": 1000} if kind != "dense" else None,
        sae_config=SAEConfig(path="/nowhere/sae") if kind != "dense" else None,
        method={"loss": "margin", "fit": {"data": "a" * 8}},
        evaluation={"test": {"accuracy": 0.75, "low": 0.7, "high": 0.8, "n": 120}},
        selection=table,
        head=heads[1],
        heads=heads,
        seeds=(0, 1, 4),
        directions=rng.normal(size=(k, d_model)).astype(np.float32) if kind in WITH_DIRECTIONS else None,
        latent_ids=latents,
        projection_mean=rng.normal(size=k).astype(np.float32),
        projection_std=(rng.random(k) + 0.5).astype(np.float32),
        reward_quantiles=np.sort(rng.normal(size=101)).astype(np.float32),
        margin_scale=1.25,
    )
    return replace(parts, **changes)


class FakeReader:
    """Hidden states that depend on the text alone; records its items. A response without letters is unreadable."""

    def __init__(self, d_model: int) -> None:
        self.d_model, self.asked = d_model, []

    def state(self, prompt: Sequence[Any], response: str) -> np.ndarray:
        text = "|".join(f"{m['role']}:{m['content']}" for m in prompt) + "|" + response
        return np.random.default_rng(list(text.encode())).normal(size=self.d_model).astype(np.float32)

    def __call__(self, items: Sequence[Any]) -> tuple[np.ndarray, dict[int, str]]:
        self.asked.extend(items)
        refused = {n: "the response has no token of its own" for n, (_, text) in enumerate(items) if not text.strip()}
        kept = [self.state(*item) for n, item in enumerate(items) if n not in refused]
        return np.array(kept, dtype=np.float32).reshape(len(kept), self.d_model), refused
