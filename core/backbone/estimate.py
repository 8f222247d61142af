"""Estimates memory, disk and time of a run before it starts, from file headers and one small matrix product."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from core.backbone.source import ModelSource, resolve_device, resolve_dtype
from core.config import BackboneConfig, SAETrainConfig
from core.errors import StoreError

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.56}
CHARACTERS_PER_TOKEN = 4.0  # of English text; used for estimates only
PAGE_BYTES = 2e4  # a latent's page on disk
EFFICIENCY = 0.6  # share of a large matrix product's speed that a forward pass over rows of about 200 tokens reached (SmolLM2, two cores)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes of memory for weights and one batch, bytes on disk, seconds of forward passes."""

    memory: float
    disk: float
    seconds: float

    def __str__(self) -> str:
        return f"about {_duration(self.seconds)}, {_size(self.memory)} of memory, {_size(self.disk)} on disk"


def estimate_extraction(
    config: BackboneConfig, source: ModelSource, identity: dict[str, Any], *, depth: int, n_tokens: float, n_states: float, more_bytes: float = 0.0
) -> Estimate:
    """An extraction of `n_tokens` tokens through `depth` layers that keeps `n_states` vectors of d_model float32 and
    `more_bytes` of something else."""
    parameters, in_layers = count_parameters(source.folder, depth)
    per_weight = QUANTIZED_BYTES.get(config.quantization, BYTES[str(identity["dtype"])])
    batch = config.tokens_per_batch * int(identity["d_model"]) * 32 * BYTES[str(identity["dtype"])]  # activations of a layer, attention masks
    return Estimate(
        memory=parameters * per_weight + batch,
        disk=(n_states * int(identity["d_model"]) * 4 + more_bytes) * 2,  # for a moment the shards and the merged file both exist
        seconds=2 * in_layers * n_tokens / (EFFICIENCY * matmul_speed(config)),
    )


def estimate_training(config: SAETrainConfig, source: ModelSource, identity: dict[str, Any]) -> Estimate:
    """An SAE training: reading tokens; forward, backward and Adam over two float32 matrices. The card is left out."""
    parameters, in_layers = count_parameters(source.folder, config.backbone.layer + 1)
    weights = 2 * config.width * int(identity["d_model"])
    per_weight = QUANTIZED_BYTES.get(config.backbone.quantization, BYTES[str(identity["dtype"])])
    return Estimate(
        memory=parameters * per_weight + 4 * 4 * weights,  # weights, gradients, two moments
        disk=weights * (2 * 3 * 4 + 2),  # two checkpoints of weights and moments for a moment; the result in float16
        seconds=config.tokens * (2 * in_layers + 6 * weights) / (EFFICIENCY * matmul_speed(config.backbone)),
    )


def estimate_latents(
    config: BackboneConfig, source: ModelSource, identity: dict[str, Any], *, depth: int, d_sae: int, l0: float, n_latents: int, n_tokens: int
) -> Estimate:
    """The pages of `n_latents` latents over `n_tokens` tokens with template; activations are on disk for a while."""
    parameters, in_layers = count_parameters(source.folder, depth)
    weights = int(identity["d_model"]) * d_sae
    per_weight = QUANTIZED_BYTES.get(config.quantization, BYTES[str(identity["dtype"])])
    return Estimate(
        memory=parameters * per_weight + 4 * 2 * weights,
        disk=8 * l0 * n_tokens * n_latents / d_sae + PAGE_BYTES * n_latents,
        seconds=n_tokens * 2 * (in_layers + weights) / (EFFICIENCY * matmul_speed(config)),
    )


def check_disk(estimate: Estimate, folder: Path) -> None:
    """Raises StoreError if the disk of `folder` has less free space than the estimate."""
    free = shutil.disk_usage(folder).free
    if free < estimate.disk:
        raise StoreError(
            f"the disk of {folder} is too full for this run",
            expected=f"{_size(estimate.disk)} free",
            found=_size(free),
            remedy="sparserm cache clean, or SPARSERM_CACHE=/another/disk",
        )


def count_parameters(folder: Path, depth: int) -> tuple[int, int]:
    """Parameters of a safetensors model cut after `depth` layers: in all (embeddings included), and in those layers."""
    total = in_layers = 0
    for name, size in _tensors(folder):
        number = re.search(r"\.(?:layers|h|blocks)\.(\d+)\.", f".{name}")
        if number and int(number[1]) < depth:
            in_layers += size
        elif number or "lm_head" in name or "embed_out" in name:
            continue
        total += size
    return total, in_layers


def _tensors(folder: Path) -> Iterator[tuple[str, int]]:
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as handle:
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        yield from ((name, prod(entry["shape"])) for name, entry in header.items() if name != "__metadata__")


def matmul_speed(config: BackboneConfig) -> float:
    """Floating-point operations a second of a matrix product on the run's device in its dtype, measured briefly."""
    import torch

    device, dtype = resolve_device(config), getattr(torch, resolve_dtype(config))
    n = 512 if device == "cpu" else 4096
    a, b = (torch.randn(n, n).to(device, dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):  # the first rounds warm up
        started = time.perf_counter()
        (a @ b).float().sum().item()  # reading the sum waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
