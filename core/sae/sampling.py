"""Samples a backbone's answers to prompts of preference pairs: a corpus in the model's own words, to train an SAE on.

Only prompts of the training split are answered, so an SAE trained on the answers has seen no validation or test prompt.
A call that was killed goes on after its last whole batch and writes the same file (core.backbone.generation).
"""

from __future__ import annotations

from pathlib import Path

from core.backbone.generation import Sampling, Writer, whole_sentences
from core.backbone.journal import Journal
from core.backbone.model import load_backbone
from core.config import DataConfig, SampleConfig
from core.errors import ConfigError, DataError
from core.files import write_json_lines
from core.sae.corpus import comma_separated, load_split_and_refused
from core.types import Message, Progress, no_progress, sha256_of


def sample_answers(config: SampleConfig, out: Path, *, progress: Progress = no_progress) -> dict[str, int]:
    """Writes `out`, JSON Lines of `messages` as `sae train --corpus` reads them, and returns what was counted.

    Counts: prompts, answers, answers left out, and rows of the prompts' files that could not be used. Raises
    ConfigError if `out` exists, DataError and BackboneError as loading does, and what `progress` raises; finished
    batches are then kept beside `out`, and the same call goes on from there.
    """
    if out.exists():
        raise ConfigError(f"{out} exists already", remedy="give --out a new file, or remove this one")
    prompts, n_refused = _prompts(config, progress)
    backbone = load_backbone(config.backbone, progress=progress)
    name = sha256_of([config.to_dict(), backbone.identity, [list(p) for p in prompts]])[:8]
    partial = out.with_name(f".{out.name}.{name}.partial")
    sampling = Sampling(max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p, seed=config.seed)
    answers = Writer(backbone, sampling, config.batch_size, Journal(partial)).write(prompts, config.per_prompt, "sample answers", progress)
    texts = [
        (prompt, answer.text if answer.finished else whole_sentences(answer.text))
        for prompt, samples in zip(prompts, answers, strict=True)
        for answer in samples
    ]
    kept = [[*prompt, Message(role="assistant", content=text)] for prompt, text in texts if text]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json_lines(out, [{"messages": list(messages)} for messages in kept])
    partial.unlink(missing_ok=True)
    return {"prompts": len(prompts), "answers": len(kept), "left_out": len(texts) - len(kept), "rows_refused": n_refused}


def _prompts(config: SampleConfig, progress: Progress) -> tuple[list[tuple[Message, ...]], int]:
    """The distinct prompts of the training splits, and how many rows of the files could not be used."""
    prompts: dict[str, tuple[Message, ...]] = {}
    n_refused = 0
    for name in comma_separated(config.prompts):
        pairs, refused = load_split_and_refused(DataConfig(pairs=name, ratios=config.ratios, seed=config.split_seed), progress)
        prompts |= {pair.prompt_id: pair.prompt for pair, split in zip(pairs, pairs.split, strict=True) if split == "train"}
        n_refused += refused
    if not prompts:
        raise DataError("there is no prompt to answer", expected="files of preference pairs in --prompts", found=config.prompts or "nothing")
    return list(prompts.values()), n_refused
