"""The estimate before a long run: parameters against the loaded model, and its refusal when the disk is full."""

from __future__ import annotations

from pathlib import Path

import pytest
from backbone_helpers import save_model, tiny_backbone, tiny_folder

from core.backbone.estimate import Estimate, check_disk, count_parameters, estimate_extraction, matmul_speed
from core.backbone.model import load_backbone
from core.backbone.source import find_model
from core.config import BackboneConfig
from core.errors import StoreError


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "qwen2", "neox"])
def test_parameters_are_those_of_the_cut_model(kind: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / kind, kind)
    backbone = load_backbone(BackboneConfig(model=str(folder), dtype="float32", device="cpu"), depth=2)
    layers = sum(p.numel() for layer in backbone.layers for p in layer.parameters())
    total, in_layers = count_parameters(folder, 2)
    assert in_layers == layers
    real = sum(p.numel() for p in backbone.model.parameters())
    assert total == pytest.approx(real, rel=0.5) and total >= in_layers


def test_time_grows_with_tokens_and_disk_with_states() -> None:
    config = BackboneConfig(model=str(tiny_folder()), layer=1, dtype="float32", device="cpu")
    source, identity = find_model(config), tiny_backbone().identity
    small = estimate_extraction(config, source, identity, depth=2, n_tokens=1e6, n_states=100)
    large = estimate_extraction(config, source, identity, depth=2, n_tokens=1e9, n_states=1000)
    assert large.seconds > 50 * small.seconds and large.disk == 10 * small.disk == 1000 * 64 * 8
    assert matmul_speed(config) > 1e8


def test_words_and_full_disk(tmp_path: Path) -> None:
    estimate = Estimate(memory=18.2e9, disk=3.3e6, seconds=260)
    assert str(estimate) == "about 4 min, 18.2 GB of memory, 3 MB on disk"
    check_disk(estimate, tmp_path)
    with pytest.raises(StoreError, match=r"too full(.|\n)*sparserm cache clean"):
        check_disk(Estimate(memory=1, disk=1e18, seconds=1), tmp_path)
