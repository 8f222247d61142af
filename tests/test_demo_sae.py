"""The embedded SAE: its file, its card's bounds, and (slow) the card's figures measured again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors import safe_open

from core.backbone.presets import preset
from core.config import DataConfig, SAEConfig
from core.files import file_sha256
from core.fit.defaults import DEMO_PAIRS, DEMO_SAE
from core.sae.autoencoder import load_sae

CARD: dict[str, Any] = json.loads((DEMO_SAE / "card.json").read_text(encoding="utf-8"))
WEIGHTS = DEMO_SAE / "sae_weights.safetensors"
LAYER = preset("smollm2-135m").backbone.layer


def test_the_file() -> None:
    assert WEIGHTS.stat().st_size <= 24e6 and file_sha256(WEIGHTS) == CARD["sae"]["sha256"]
    settings = json.loads((DEMO_SAE / "cfg.json").read_text(encoding="utf-8"))
    assert (
        settings["dtype"] == "float32"
        and 4608 <= settings["d_sae"] <= 9216
        and settings["metadata"]["hook_name"] == f"blocks.{LAYER}.hook_resid_post"
    )
    with safe_open(WEIGHTS, "pt") as file:
        assert {name: file.get_tensor(name).dtype for name in ("W_enc", "W_dec")} == {"W_enc": torch.float16, "W_dec": torch.float16}


def test_sae_lens_and_ours_agree() -> None:
    from sae_lens import SAE

    theirs, ours = SAE.load_from_disk(DEMO_SAE), load_sae(SAEConfig(path=str(DEMO_SAE)))
    z = 20 * torch.randn(40, 576, generator=torch.Generator().manual_seed(0)) + theirs.b_dec.detach()
    assert theirs.W_dec.dtype == torch.float32 and torch.allclose(ours.encode(z), theirs.encode(z), atol=1e-3)


ENDS = [
    "harmless-base_test.jsonl.gz",
    pytest.param("demo/pairs.jsonl", marks=pytest.mark.xfail(strict=True, reason="0.320: see core/data/demo/README.md, which says what was tried")),
]


def test_the_card_s_bounds() -> None:
    """FVU at most 0.18 held out, L0 24 to 64, dead at most 5 %, loss recovered at least 0.90; every figure inside its interval."""
    held_out, beside = CARD["measured"], CARD["measured_on"]
    assert held_out["fvu"]["value"] <= 0.18 and 24 <= held_out["l0"]["value"] <= 64 and held_out["dead_share"]["value"] <= 0.05
    assert held_out["loss_recovered"]["value"] >= 0.90
    for figures in (held_out, *beside.values()):
        for name in ("fvu", "fvu_median_dimension", "l0", "fvu_response_end", "l0_response_end"):
            assert figures[name]["low"] <= figures[name]["value"] <= figures[name]["high"]


@pytest.mark.parametrize("name", ENDS)
def test_the_bound_where_a_reward_model_reads(name: str) -> None:
    """FVU at most 0.30 at the last tokens of answers to unseen prompts."""
    assert CARD["measured_on"][name]["fvu_response_end"]["value"] <= 0.30


# The SAE was trained when there were 648 pairs, numbers 1 to 216 of each subset: on the 259 prompts whose digests come first, as core.data.splits
# orders them, up to this one. Pairs written since were never in its corpus.
FIRST_PAIRS, N_TRAINED, LAST_DIGEST = 216, 259, "6a2e488c850a06cc7c924c050380d9bdc69cf781ab9ed95b5047c3533cbb0df3"


def test_it_saw_no_validation_or_test_prompt() -> None:
    """What it was trained on is in the fit's training split still, and its card counts exactly the answers to those prompts."""
    from core.sae.corpus import load_split

    default = replace(preset("smollm2-135m").data, pairs=str(DEMO_PAIRS))
    assert CARD["training"]["ratios"][0] < default.ratios[0] and CARD["training"]["split_seed"] == default.seed
    counts, pairs = CARD["corpus"]["sources"]["demo/pairs.jsonl"], load_split(default)
    assert counts["kept"] + counts.get("personal data", 0) == 2 * N_TRAINED
    digests = [hashlib.sha256(f"{default.seed}:{pair.prompt_id}".encode()).hexdigest() for pair in pairs]
    first = [int(pair.pair_id.rpartition("-")[2]) <= FIRST_PAIRS for pair in pairs]
    seen = [split for split, digest, old in zip(pairs.split, digests, first, strict=True) if old and digest <= LAST_DIGEST]
    assert set(seen) == {"train"} and N_TRAINED - 12 <= len(seen) <= N_TRAINED


@pytest.mark.slow
def test_the_card_s_figures_hold() -> None:
    """Measured again with the embedded model, on the demo's own validation and test prompts."""
    from core.backbone.model import load_backbone
    from core.sae.card import sae_card
    from core.sae.corpus import load_split, pair_dialogues

    pairs = load_split(DataConfig(pairs=str(DEMO_PAIRS)))
    unseen = list(pair_dialogues(pair for pair, split in zip(pairs, pairs.split, strict=True) if split != "train"))
    backbone = load_backbone(preset("smollm2-135m").backbone, depth=LAYER + 1)
    found = sae_card(load_sae(SAEConfig(path=str(DEMO_SAE))), backbone, unseen, layer=LAYER, context=2048, last_response_only=True)
    for name in ("fvu", "fvu_response_end", "l0", "l0_response_end"):
        assert found[name]["value"] == pytest.approx(CARD["measured_on"]["demo/pairs.jsonl"][name]["value"], rel=0.02), name
