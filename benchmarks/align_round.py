"""Time of a round of `sparserm align --preset demo` against the plain recipe, in one run: `python benchmarks/align_round.py`.

Ours is a real round, out of the cache that the workbench uses, with seeds that were never used before, so that every step is computed.
Plain: candidates on the same prompts by `model.generate`, one answer at a time, then TRL's DPOTrainer with its defaults (bf16 autocast, gradient
checkpointing, the reference read again in every step) on the very pairs that ours trained on, with the same LoRA and the same number of epochs; where
the processor has no fast bfloat16 it trains in float32, as ours does, for emulated products would make it many times slower.
Its rewards and filter are ours. Evaluation and shift are no part of the recipe: they are printed, and left out of the ratio.

`--prompts 24` halves it. Prints where the time goes; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from align_generation import plain

from core.align.policy import new_lora, quiet
from core.align.presets import align_preset
from core.align.records import CANDIDATES, DPO, EVALUATION, FILTER, REWARDS, SHIFT, read_rows
from core.align.templates import instructed, templates_of
from core.backbone.model import Backbone, load_backbone
from core.backbone.source import resolve_dtype
from core.config import AlignConfig, DPOConfig
from core.data.pairs_file import read_pairs
from core.jobs.align import completed, run_alignment
from core.runs.store import Store
from core.types import Message, PreferencePair, no_progress

RECIPE = (CANDIDATES, REWARDS, FILTER, DPO)


def fresh(n_prompts: int) -> AlignConfig:
    """One round of the demo with seeds of this very second."""
    demo, seed = align_preset("demo"), int(time.time())
    candidates, dpo = replace(demo.candidates, seed=seed), replace(demo.dpo, seed=seed)
    return replace(demo, rounds=1, prompts_limit=n_prompts, candidates=candidates, dpo=dpo)


def our_round(config: AlignConfig, store: Store) -> tuple[dict[str, float], list[PreferencePair], list[Sequence[Message]]]:
    """Seconds by step, the pairs that were trained on, and the prompts that were answered."""
    found = run_alignment(completed(config, store, lambda *_: None), store, no_progress)
    one = found.to_json()["rounds"][0]
    folders = {step: store.folder(step, one["steps"][step]) for step in one["steps"]}
    kept = read_pairs(folders[FILTER] / "kept.jsonl")
    trained = [kept[int(i)] for i in kept.rows_of("train")]
    prompts = [row["prompt"] for row in read_rows(folders[CANDIDATES] / "candidates.jsonl")]
    return dict(one["time_seconds"]), trained, prompts


def plain_candidates(backbone: Backbone, prompts: Sequence[Sequence[Message]], config: AlignConfig) -> tuple[int, float]:
    """Tokens and seconds of both answers to each prompt, in batches of 1."""
    templates = templates_of(config.candidates)
    return plain(backbone, [instructed(prompt, text) for text in (templates.positive, templates.negative) for prompt in prompts], config.candidates)


def plain_dpo(backbone: Backbone, pairs: Sequence[PreferencePair], config: DPOConfig) -> float:
    """Seconds of TRL's trainer, made and run with its defaults but for LoRA and the epochs; weights in float32, as ours."""
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig as Arguments
    from trl.trainer.dpo_trainer import DPOTrainer

    answer = [{name: [{"role": "assistant", "content": getattr(pair, name)}] for name in ("chosen", "rejected")} for pair in pairs]
    rows = Dataset.from_list([{"prompt": list(pair.prompt), **both} for pair, both in zip(pairs, answer, strict=True)])
    with tempfile.TemporaryDirectory() as folder, quiet():
        own = {"num_train_epochs": config.epochs, "use_cpu": backbone.device.type == "cpu", "save_strategy": "no", "report_to": "none"}
        own |= {} if resolve_dtype(replace(backbone.config, dtype="auto")) == "bfloat16" else {"bf16": False}
        began = time.perf_counter()
        arguments = Arguments(folder, disable_tqdm=True, **own)
        DPOTrainer(backbone.model, args=arguments, train_dataset=rows, processing_class=backbone.tokenizer, peft_config=new_lora(config)).train()
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=48)
    options = parser.parse_args()
    store, config = Store(), fresh(options.prompts)
    ours, kept, prompts = our_round(config, store)
    base = config.fit.backbone
    tokens, written = plain_candidates(load_backbone(base), prompts, config)
    trained = plain_dpo(load_backbone(replace(base, dtype="float32")), kept, config.dpo)
    theirs = {**ours, CANDIDATES: written, DPO: trained}
    report(ours, theirs, {"prompts": len(prompts), "trained_on": len(kept), "tokens_plain": tokens})


def report(ours: dict[str, float], theirs: dict[str, float], about: dict[str, Any]) -> None:
    print(f"{'step':18} {'ours':>8} {'plain':>8}  ratio")
    for step in RECIPE:
        print(f"{step:18} {ours[step]:7.1f}s {theirs[step]:7.1f}s {theirs[step] / max(ours[step], 1e-9):6.2f}")
    totals = [sum(arm[step] for step in RECIPE) for arm in (ours, theirs)]
    print(f"{'round':18} {totals[0]:7.1f}s {totals[1]:7.1f}s {totals[1] / totals[0]:6.2f}")
    beside = {step: ours[step] for step in (EVALUATION, SHIFT)}
    print("besides, ours alone: " + ", ".join(f"{step} {seconds:.1f}s" for step, seconds in beside.items()))
    seconds = {name: {step: round(arm[step], 2) for step in RECIPE} for name, arm in (("ours", ours), ("plain", theirs))}
    print(json.dumps({**about, "seconds": seconds, "beside": beside, "ratio": totals[1] / totals[0]}))


if __name__ == "__main__":
    main()
