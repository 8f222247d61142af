"""Golden figures outside the store's steps: SAE training, an extraction's shards, the toy model, formats of files and
responses.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from golden_fit import FitArtefacts
from golden_helpers import Figures, digest, only, spread
from sae_training_helpers import LAYER, dialogue, pairs_file, train_config, whole_backbone
from safetensors.numpy import load_file
from weights_helpers import write_gguf

from core.align.records import Ledger
from core.backbone.model import load_backbone
from core.backbone.presets import preset
from core.backbone.source import SOURCE_NOTE, find_model
from core.backbone.tiny import make_tiny
from core.config import AlignConfig, BackboneConfig, DataConfig, PairsRunConfig
from core.data.pairs import load_pairs
from core.files import file_sha256
from core.jobs.start import launch
from core.reward.extraction import extract
from core.runs.registry import Run, runs_root
from core.runs.store import Store
from core.sae.activations import Cursor, Stream
from core.sae.training import train_sae
from core.serving.answers import Answers
from core.serving.engine import Engine
from core.serving.server_folder import server_folder_of
from core.types import PreferencePairs, no_progress

FIGURE = ("value", "low", "high")


def sae_train(_artefacts: FitArtefacts, scratch: Path) -> Figures:
    folder = train_sae(train_config(checkpoint_every=10**6), root=scratch / "sae")
    card, settings = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("card.json", "cfg.json"))
    measured = {"": card["measured"], **card["measured_on"]}
    sizes = {
        f"{where} {name}": only(entry, "n_tokens", *(["n_documents"] if "low" in entry else []))
        # Fmt: skip.
        for where, part in measured.items()
        for name, entry in part.items()
        if isinstance(entry, dict)
    }
    values = {
        f"{where} {name}": only(entry, *(FIGURE if "low" in entry else FIGURE[:1]))
        # Fmt: skip.
        for where, part in measured.items()
        for name, entry in part.items()
        if isinstance(entry, dict)
    }
    return Figures(
        figures={
            "held out": digest(card["held_out"]),
            "seen": {name: value for name, value in card["training"].items() if name != "dead_in_training"},
            "corpus": [card["corpus"]["sha256"][:16], *card["corpus"]["sources"].values()],
            "settings": {name: value for name, value in settings.items() if isinstance(value, (int, str))},
            "trained on": settings["metadata"]["trained_positions"],
            "fields": sorted(card),
            "sizes": sizes,
            "long answers": _round_of_long_answers(),
        },
        loose={"values": values, "weights": {name: spread(array) for name, array in load_file(folder / "sae_weights.safetensors").items()}},
    )


def _round_of_long_answers() -> dict[str, Any]:
    """The tokens of a round, and how many ends it keeps of answers with many sentences; the toy pairs have one sentence
    each.
    """
    texts = [" ".join(f"Ask {i} friends, or read {j} tables." for j in range(9)) for i in range(3)]
    dialogues = [dialogue(f"How {i}?", text) for i, text in enumerate(texts)]
    stream = Stream(dialogues=dialogues, backbone=whole_backbone(), layer=LAYER, context=256, batch_size=8, ends_per_batch=2, seed=0)
    current = stream.round(Cursor(), torch.empty(0, stream.backbone.d_model))
    return {"following": vars(current.following), "order": current.order[:8].tolist(), "ring": len(current.ring)}


def extraction_shards(_artefacts: FitArtefacts, scratch: Path) -> Figures:
    """Forty pairs, in batches so small that there are several shards."""
    every, _ = load_pairs(DataConfig(pairs=preset("tiny").data.pairs), no_progress)
    backbone = load_backbone(replace(preset("tiny").backbone, tokens_per_batch=128), depth=2)
    out, parts = scratch / "states", scratch / "shards"
    out.mkdir()
    parts.mkdir()
    chosen = PreferencePairs(pairs=tuple(every)[:40])
    extract(chosen, backbone, layers=[0, 1], positions=["response_end", "turn_end"], folder=out, scratch=parts)
    shards = [load_file(path) for path in sorted(parts.glob("*.safetensors"))]
    return Figures(
        figures={
            "plan": json.loads((parts / "plan.json").read_text(encoding="utf-8")),
            "members": [shard["members"].tolist() for shard in shards],
            "shapes": [{name: [str(array.dtype), *array.shape] for name, array in sorted(shard.items())} for shard in shards],
            "files": sorted(path.name for path in out.iterdir()),
        },
        float32={"states": [spread(shard["states"]) for shard in shards]},
    )


def toy_world(_artefacts: FitArtefacts, scratch: Path) -> Figures:
    parts = make_tiny(scratch / "toy")
    tokenizer = json.loads((parts.model / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tensors = {f"{folder.name} {name}": array for folder in (parts.model, parts.sae) for file in sorted(folder.glob("*.safetensors"))
               for name, array in load_file(file).items()}  # fmt: skip
    return Figures(
        figures={
            "pairs": file_sha256(parts.pairs)[:16],
            "vocabulary": digest(sorted(tokenizer["vocab"].items())),
            "merges": digest(tokenizer["merges"]),
            "sae": json.loads((parts.sae / "cfg.json").read_text(encoding="utf-8")),
            "shapes": digest(sorted([name, *array.shape] for name, array in tensors.items())),
        },
        float32={name: spread(array) for name, array in tensors.items()},
    )


def gguf_copy(_artefacts: FitArtefacts, scratch: Path) -> Figures:
    folder = find_model(BackboneConfig(model=str(write_gguf(scratch / "tiny.gguf")))).folder
    note = json.loads((folder / SOURCE_NOTE).read_text(encoding="utf-8"))
    tensors = {name: array for file in folder.glob("*.safetensors") for name, array in load_file(file).items()}
    return Figures(
        figures={"note": sorted(note), "checked": note["checked"], "shapes": digest(sorted([name, *array.shape] for name, array in tensors.items()))},
        float32={name: spread(array) for name, array in tensors.items()},
    )


def alignment_ledger(_artefacts: FitArtefacts, scratch: Path) -> Figures:
    ledger = Ledger(scratch, AlignConfig())
    ledger.add_facts(model="a", judge="b")
    ledger.add_step(0, "align-evaluation", "c" * 64)
    ledger_content = json.loads((ledger.folder / "ledger.json").read_text(encoding="utf-8"))
    return Figures(figures={"fields": sorted(ledger_content), "rounds": ledger_content["rounds"]})


def reward_folder(artefacts: FitArtefacts, _scratch: Path) -> Figures:
    folder = artefacts["reward_model"].path
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensors = {file.name: {name: [str(array.dtype), *array.shape] for name, array in sorted(load_file(file).items())}
               for file in sorted(folder.glob("*.safetensors"))}  # fmt: skip
    nested = {name: sorted(config[name]) for name in ("reading", "sae", "method", "evaluation")}
    selection = json.loads((folder / "selection.jsonl").read_text(encoding="utf-8").splitlines()[0])
    return Figures(figures={"fields": sorted(config), **nested, "tensors": tensors, "selection": sorted(selection)})


def run_folder(_artefacts: FitArtefacts, scratch: Path) -> Figures:
    root = scratch / "runs-cache"
    run = Run(runs_root(root) / launch("pairs", PairsRunConfig(data=DataConfig(pairs=pairs_file())), root=root))
    until = time.monotonic() + 60
    while run.status().live and time.monotonic() < until:
        time.sleep(0.05)
    config = json.loads((run.path / "config.json").read_text(encoding="utf-8"))
    return Figures(figures={"fields": sorted(config), "config": config["config"]["data"] | {"pairs": ""}, "status": run.status().state})


def manifest(artefacts: FitArtefacts, scratch: Path) -> Figures:
    """An artefact's fingerprint and folder, by which everything in a cache is found."""
    store = Store(scratch / "store")

    def make(folder: Path, _scratch: Path) -> Mapping[str, Any]:
        (folder / "a.txt").write_text("a", encoding="utf-8")
        return {"n": 1}

    artefact = store.get_or_make("toy", 3, {"k": 2, "name": "x", "share": 0.1}, ["b", "a"], make)
    return Figures(
        figures={
            "fingerprint": artefact.fingerprint,
            "place": str(artefact.path.relative_to(store.root)),
            "fields": sorted(artefact.manifest),
            "files": artefact.manifest["files"],
            "heads": sorted(artefacts["heads"].manifest),
        }
    )


def server(artefacts: FitArtefacts, scratch: Path) -> Figures:
    """The server's paths, and the fields of its responses and of its address file."""
    folder, ended = artefacts["reward_model"].path, threading.Event()
    engine = Engine(folder, "cpu", {})
    with patch("core.serving.engine.cap_memory", lambda _more: None):
        engine.start(ended.set)
        assert ended.wait(60) or engine.state == "ready"
    routes = Answers(engine).routes()
    pair = {"prompt": "How do I boil an egg?", "chosen": "Ask, gladly", "rejected": "Ask, fool"}
    response = {"prompt": pair["prompt"], "response": pair["chosen"]}
    requests: Mapping[str, dict[str, Any]] = {
        "score": {"prompts": [pair["prompt"]], "responses": [pair["chosen"]]},
        "score_pairs": {"pairs": [pair]},
        "get_reward": {"query": ["How? Well"], "prompts": ["How?"], "labels": [""]},
        "explain": pair,
        "features": {**response, "tokens": True},
        "gradient": response,
        "deletions": {**response, "spans": [[0, 1]]},
    }
    responses = {name: _fields(json.loads(asyncio.run(_answer(routes[name], body)))) for name, body in requests.items()}
    address = server_folder_of(folder, scratch).announce(1)
    return Figures(figures={"paths": sorted(routes), "answers": responses, "health": sorted(engine.health()), "address": sorted(vars(address))})


async def _answer(route: Callable[[Any], Any], body: Mapping[str, Any]) -> bytes:
    return await route(body)


def _fields(value: Any, depth: int = 2) -> Any:
    """The names of a response's fields, two levels deep."""
    return {name: _fields(part, depth - 1) for name, part in sorted(value.items())} if isinstance(value, dict) and depth else type(value).__name__


FIGURES: Mapping[str, Callable[[FitArtefacts, Path], Figures]] = {
    "sae-train": sae_train,
    "reward.shards.VERSION": extraction_shards,
    "backbone.tiny.FOLDER": toy_world,
    "backbone.source.CHECKED": gguf_copy,
    "align.records.SCHEMA": alignment_ledger,
    "reward.parts_files.SCHEMA": reward_folder,
    "runs.registry.SCHEMA": run_folder,
    "runs.store.SCHEMA": manifest,
    "serving.server_folder.PROTOCOL": server,
}
