"""Shared by the tests of SAE training: the toy backbone, small configs, and a slow, plain reading of hidden states."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.backbone.model import Backbone, load_backbone
from core.backbone.presets import preset
from core.config import BackboneConfig, SAETrainConfig
from core.errors import Cancelled
from core.sae.corpus import Dialogue
from core.sae.documents import Document

LAYER = 0


def backbone_config() -> BackboneConfig:
    return replace(preset("tiny").backbone, layer=LAYER, tokens_per_batch=512)


def pairs_file() -> str:
    return preset("tiny").data.pairs


def train_config(**changes: Any) -> SAETrainConfig:
    """60 steps of 64 tokens: enough to converge on text that repeats."""
    settings: dict[str, Any] = {
        "backbone": backbone_config(),
        "corpus": pairs_file(),
        "width": 64,
        "k": 6,
        "tokens": 3840,
        "batch_size": 64,
        "context": 64,
        "held_out": 0.2,
        "lr": 3e-3,
        "checkpoint_every": 1024,
    }
    return SAETrainConfig(**{**settings, **changes})


@cache
def whole_backbone() -> Backbone:
    return load_backbone(backbone_config())


def dialogue(*texts: str, group: str = "", first: str = "user") -> Dialogue:
    """Turns that alternate between the roles, beginning with `first`."""
    roles = ("user", "assistant") if first == "user" else ("assistant", "user")
    messages = tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(texts))
    return Dialogue(messages=messages, group=group or texts[0])


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@torch.no_grad()
def slow_states(backbone: Backbone, document: Document, layer: int = LAYER) -> np.ndarray:
    """Hidden states of one document, unpadded, from the whole model's own tuple."""
    output = backbone.model(input_ids=torch.from_numpy(document.ids)[None], output_hidden_states=True)
    return output.hidden_states[layer + 1][0].double().numpy()


class StopAt:
    """A progress callable that stops the training after `tokens` tokens and records all reports of it."""

    def __init__(self, tokens: float = float("inf")) -> None:
        self.tokens, self.seen = tokens, []

    def __call__(self, step: str, done: float, total: float, **figures: Any) -> None:
        if step == "sae training":
            self.seen.append((done, total, figures))
            if done >= self.tokens:
                raise Cancelled
