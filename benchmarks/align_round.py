"""The time of a round of `sparserm align --preset demo` against the plain recipe: `python benchmarks/align_round.py`.

The product's round runs in the cache that the workbench uses, with new seeds, so every step is computed. The plain
recipe generates candidates for the same prompts by `model.generate`, one answer at a time, then trains on the same
pairs by TRL's DPOTrainer with its defaults (bf16 autocast, gradient checkpointing, the reference computed again in
every step), with the same LoRA and number of epochs. Where the processor has no fast bfloat16 it trains in float32, as
the product does, since emulated products would be many times slower. Rewards and filter are the product's in both.
Evaluation and shift are no part of the recipe: they are printed, and left out of the ratio.

`--prompts 24` halves the work. Prints seconds by step; the last line is one JSON object.
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
from core.align.presets import ALIGN_PRESETS
from core.align.records import CANDIDATES, DPO, EVALUATION, FILTER, REWARDS, SHIFT
from core.align.templates import instructed, templates_of
from core.backbone.model import Backbone, load_backbone
from core.backbone.source import resolve_dtype
from core.config import AlignConfig, DPOConfig
from core.data.pairs_file import read_pairs
from core.files import read_json_lines
from core.jobs.align import completed, run_alignment
from core.runs.store import Store
from core.types import Message, PreferencePair, no_progress

RECIPE = (CANDIDATES, REWARDS, FILTER, DPO)


def fresh(n_prompts: int) -> AlignConfig:
    """One round of the demo preset, with the present second as seed."""
    demo, seed = ALIGN_PRESETS["demo"], int(time.time())
    candidates, dpo = replace(demo.candidates, seed=seed), replace(demo.dpo, seed=seed)
    return replace(demo, rounds=1, prompts_limit=n_prompts, candidates=candidates, dpo=dpo)


def product_round(config: AlignConfig, store: Store) -> tuple[dict[str, float], Sequence[PreferencePair], list[Sequence[Message]]]:
    """Seconds by step, the training pairs, and the prompts."""
    outcome = run_alignment(completed(config, store, lambda *_: None), store, no_progress)
    manifest = outcome.to_json()["rounds"][0]
    folders = {step: store.folder(step, fingerprint) for step, fingerprint in manifest["steps"].items()}
    kept = read_pairs(folders[FILTER] / "kept.jsonl")
    prompts = [row["prompt"] for row in read_json_lines(folders[CANDIDATES] / "candidates.jsonl")]
    return dict(manifest["time_seconds"]), kept.take(kept.rows_of("train")).pairs, prompts


def plain_candidates(backbone: Backbone, prompts: Sequence[Sequence[Message]], config: AlignConfig) -> tuple[int, float]:
    """Tokens and seconds of both answers to each prompt, in batches of 1."""
    templates = templates_of(config.candidates)
    return plain(backbone, [instructed(prompt, text) for text in (templates.positive, templates.negative) for prompt in prompts], config.candidates)


def plain_dpo(backbone: Backbone, pairs: Sequence[PreferencePair], config: DPOConfig) -> float:
    """Seconds of TRL's trainer with its defaults, except LoRA and the number of epochs; weights in float32, as in the
    product.
    """
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig as Arguments
    from trl.trainer.dpo_trainer import DPOTrainer

    answer = [{name: [{"role": "assistant", "content": getattr(pair, name)}] for name in ("chosen", "rejected")} for pair in pairs]
    rows = Dataset.from_list([{"prompt": list(pair.prompt), **both} for pair, both in zip(pairs, answer, strict=True)])
    with tempfile.TemporaryDirectory() as folder, quiet():
        options = {"num_train_epochs": config.epochs, "use_cpu": backbone.device.type == "cpu", "save_strategy": "no", "report_to": "none"}
        options |= {} if resolve_dtype(replace(backbone.config, dtype="auto")) == "bfloat16" else {"bf16": False}
        began = time.perf_counter()
        arguments = Arguments(folder, disable_tqdm=True, **options)
        DPOTrainer(backbone.model, args=arguments, train_dataset=rows, processing_class=backbone.tokenizer, peft_config=new_lora(config)).train()
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=48)
    options = parser.parse_args()
    store, config = Store(), fresh(options.prompts)
    product, pairs, prompts = product_round(config, store)
    base = config.fit.backbone
    tokens, generation_seconds = plain_candidates(load_backbone(base), prompts, config)
    training_seconds = plain_dpo(load_backbone(replace(base, dtype="float32")), pairs, config.dpo)
    recipe = {**product, CANDIDATES: generation_seconds, DPO: training_seconds}
    report(product, recipe, {"prompts": len(prompts), "trained_on": len(pairs), "tokens_plain": tokens})


def report(product: dict[str, float], recipe: dict[str, float], about: dict[str, Any]) -> None:
    print(f"{'step':18} {'ours':>8} {'plain':>8}  ratio")
    for step in RECIPE:
        print(f"{step:18} {product[step]:7.1f}s {recipe[step]:7.1f}s {recipe[step] / max(product[step], 1e-9):6.2f}")
    totals = [sum(arm[step] for step in RECIPE) for arm in (product, recipe)]
    print(f"{'round':18} {totals[0]:7.1f}s {totals[1]:7.1f}s {totals[1] / totals[0]:6.2f}")
    beside = {step: product[step] for step in (EVALUATION, SHIFT)}
    print("the product alone, not in the ratio: " + ", ".join(f"{step} {seconds:.1f}s" for step, seconds in beside.items()))
    seconds = {name: {step: round(arm[step], 2) for step in RECIPE} for name, arm in (("ours", product), ("plain", recipe))}
    print(json.dumps({**about, "seconds": seconds, "beside": beside, "ratio": totals[1] / totals[0]}))


if __name__ == "__main__":
    main()
