"""A backbone's own answers to the prompts of preference pairs: text on which an SAE meets the states that the backbone's own policy will have.

Only prompts of the training split are answered, so an SAE trained on the answers has seen no validation or test prompt. Batches of prompts of like
length are planned before anything is drawn, and each has a seed of its own: a killed call goes on after the last whole batch, to the same file (on
the same machine: sampling amplifies the last bits of arithmetic).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from core.backbone.activations import plan_batches
from core.backbone.corpus import load_split
from core.backbone.model import Backbone, load_backbone
from core.config import DataConfig, SampleConfig
from core.errors import ConfigError, DataError
from core.types import Message, Progress, no_progress, sha256_of

SENTENCE_END = re.compile(r"[.!?…](?=[\s\"'”)\]]|$)")


def sample_answers(config: SampleConfig, out: Path, *, progress: Progress = no_progress) -> dict[str, int]:
    """Writes `out`, JSON Lines of `messages` as `sae train --corpus` reads them, and returns counts: prompts, answers, and answers left out.

    Raises ConfigError if `out` stands, DataError and BackboneError as loading does, and what `progress` raises; then the finished batches are kept
    beside `out`, and the same call goes on.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already", remedy="give --out a new file, or remove this one")
    prompts = _prompts(config, progress)
    backbone = load_backbone(config.backbone, progress=progress)
    encoded = [_encoded(backbone, prompt) for prompt in prompts] * config.per_prompt
    prompts *= config.per_prompt
    fitting = [i for i, ids in enumerate(encoded) if len(ids) + config.max_new_tokens <= config.backbone.max_length]
    widest = max((len(encoded[i]) for i in fitting), default=0)
    # Of like length: a batch costs what its longest prompt costs.
    order = [i for batch in plan_batches([len(encoded[i]) for i in fitting], config.batch_size * max(widest, 1)) for i in batch]
    batches = [[fitting[i] for i in order[at : at + config.batch_size]] for at in range(0, len(order), config.batch_size)]
    name = sha256_of([config.to_dict(), backbone.identity, [list(p) for p in prompts]])[:8]
    partial = out.with_name(f".{out.name}.{name}.partial")
    done = _whole_batches(partial)
    out.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("a", encoding="utf-8") as handle:
        for number, batch in enumerate(batches):
            progress("sample answers", number, len(batches))
            if number < done:
                continue
            texts = _answers(backbone, [encoded[i] for i in batch], config, number)
            handle.write(json.dumps({"batch": number, "rows": [[i, text] for i, text in zip(batch, texts, strict=True)]}) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
        progress("sample answers", len(batches), len(batches))
    rows = sorted(row for line in partial.read_text(encoding="utf-8").splitlines() for row in json.loads(line)["rows"])
    kept = [(i, text) for i, text in rows if text]
    _publish(out, [[*prompts[i], Message(role="assistant", content=text)] for i, text in kept])
    partial.unlink()
    return {"prompts": len(prompts) // config.per_prompt, "answers": len(kept), "left_out": len(prompts) - len(kept)}


def _prompts(config: SampleConfig, progress: Progress) -> list[tuple[Message, ...]]:
    found: dict[str, tuple[Message, ...]] = {}
    for name in filter(None, map(str.strip, config.prompts.split(","))):
        pairs = load_split(DataConfig(pairs=name, ratios=config.ratios, seed=config.split_seed), progress)
        found |= {pair.prompt_id: pair.prompt for pair, split in zip(pairs, pairs.split, strict=True) if split == "train"}
    if not found:
        raise DataError("there is no prompt to answer", expected="files of preference pairs in --prompts", found=config.prompts or "nothing")
    return list(found.values())


def _encoded(backbone: Backbone, prompt: Sequence[Message]) -> list[int]:
    """The prompt's tokens up to where the answer begins: a placeholder answer's tokens and what follows them are cut off."""
    rendered = backbone.render([*prompt, Message(role="assistant", content="a")])
    return [int(i) for i in rendered.ids[: rendered.response_starts[-1]]]


def _answers(backbone: Backbone, prompts: Sequence[list[int]], config: SampleConfig, number: int) -> list[str]:
    """One answer to each prompt, empty where nothing usable came."""
    import torch

    widest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), widest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # generation goes on at the right edge, so padding stands on the left
        ids[row, widest - len(prompt) :] = torch.tensor(prompt)
        mask[row, widest - len(prompt) :] = 1
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(config.seed * 1_000_003 + number)
        found = backbone.model.generate(
            input_ids=ids.to(backbone.device),
            attention_mask=mask.to(backbone.device),
            max_new_tokens=config.max_new_tokens,
            do_sample=True,
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=0,
            pad_token_id=backbone.tokenizer.pad_token_id,
        )[:, widest:]
    ends = backbone.model.generation_config.eos_token_id
    stops = {backbone.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    return [_text(backbone, row.tolist(), stops) for row in found]


def _text(backbone: Backbone, ids: list[int], stops: set[int | None]) -> str:
    end = next((place for place, token in enumerate(ids) if token in stops), None)
    text = str(backbone.tokenizer.decode(ids[:end], skip_special_tokens=True)).strip()
    return text if end is not None else whole_sentences(text)


def whole_sentences(text: str) -> str:
    """The text up to its last sentence end; empty where it has none. An answer that was cut ends nowhere an answer ends."""
    found = list(SENTENCE_END.finditer(text))
    return text[: found[-1].end()] if found else ""


def _whole_batches(partial: Path) -> int:
    """How many batches stand in the file; what a kill left of a line is cut off."""
    if not partial.is_file():
        return 0
    content = partial.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        partial.write_bytes(whole)
    return whole.count(b"\n")


def _publish(out: Path, dialogues: Sequence[Sequence[Message]]) -> None:
    temporary = out.with_name(f".{out.name}.writing")
    temporary.write_text("".join(json.dumps({"messages": list(rows)}, ensure_ascii=False) + "\n" for rows in dialogues), encoding="utf-8")
    temporary.replace(out)
