"""A toy world for quick tests: a random two-layer language model, an SAE for it, and preference pairs it can learn.

Nothing is fetched. All of it is made from fixed seeds on the CPU in a few seconds:
1. pairs whose chosen answers end on a kind word and whose rejected ones end on a rude word, so that the last hidden
   state of a random backbone separates them (this file);
2. a tokenizer, a language model and an SAE (core.backbone.tiny_model, which loads torch and transformers).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.runs.store import publish_folder

FOLDER = "tiny-1"  # counted up when the content changes
SEED = 7

TASKS = (
    "boil an egg", "mend a sock", "plant a pear tree", "tune a guitar", "fold a paper boat", "write to the mayor", "sharpen a knife", "paint a wall",
    "learn to swim", "bake rye bread", "fix a bicycle tyre", "read a tide table", "whistle loudly", "sew on a button", "catch a train at noon",
    "keep bees", "prune roses", "draw a horse", "clean a window", "light a stove",
)  # fmt: skip
FRAMES = {"how": "How do I {}?", "advice": "My sister wants to {}. Any advice?", "doubt": "Is it hard to {}?"}
BODIES = (
    "Take your time and begin with the small things",
    "Ask someone who has done it before",
    "It needs patience, a table and good light",
    "Read the instructions twice before you start",
    "Two short tries are worth more than one long one",
    "Most people manage on the third day",
    "Get the right tools first, the rest is practice",
    "There is a short film about it at the library",
)
KIND = ("gladly", "friend", "thanks", "cheers", "welcome", "please", "bravo", "dear")
RUDE = ("whatever", "fool", "nonsense", "boring", "enough", "silly", "hopeless", "nope")


@dataclass(frozen=True, kw_only=True)
class TinyParts:
    """Paths of the toy parts: a Hugging Face model folder, a sae-lens SAE folder, and pairs in TRL's format (JSONL)."""

    model: Path
    sae: Path
    pairs: Path


def make_tiny(root: Path) -> TinyParts:
    """The toy parts under `root`. The first call makes them, whole or not at all; later calls find them there."""
    folder = root / FOLDER
    if not folder.is_dir():
        try:
            publish_folder(folder, _make)
        except OSError:
            if not folder.is_dir():  # otherwise another process has made the same bytes meanwhile
                raise
    return TinyParts(model=folder / "model", sae=folder / "sae", pairs=folder / "pairs.jsonl")


def _make(folder: Path) -> None:
    from core.backbone.tiny_model import make_model, save_sae  # loads torch and transformers, needed on the first call only

    rows = list(tiny_pairs())
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    answers = [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    frames = [*FRAMES.values(), "system\nuser\nassistant\nThis is a toy model that knows nothing, made for tests."]
    model, tokenizer = make_model(folder / "model", [*TASKS, *BODIES, *frames, *(f", {word}" for word in (*KIND, *RUDE))])
    save_sae(folder / "sae", model, tokenizer, answers)


def tiny_pairs() -> Iterator[dict[str, Any]]:
    """100 rows over 60 prompts, 40 of which have two pairs; no response is used twice on a prompt."""
    rng = random.Random(SEED)
    prompts = [(subset, frame.format(task)) for task in TASKS for subset, frame in FRAMES.items()]
    twice = set(rng.sample(range(len(prompts)), 40))
    for number, (subset, prompt) in enumerate(prompts):
        bodies, kind, rude = rng.sample(BODIES, 4), rng.sample(KIND, 2), rng.sample(RUDE, 2)
        for i in range(1 + (number in twice)):
            chosen, rejected = f"{bodies[i]}, {kind[i]}", f"{bodies[i + 2]}, {rude[i]}"
            yield {"id": f"tiny-{number:02d}-{i}", "subset": subset, "prompt": prompt, "chosen": chosen, "rejected": rejected}
