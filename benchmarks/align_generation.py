"""The speed of generating candidates with the embedded model: `python benchmarks/align_generation.py`.

48 instructed prompts get 40 tokens each, by five arms that take turns:

1. the plain recipe: `model.generate`, one prompt at a time, with the same temperature and nucleus;
2. LocalGenerator with batches of 1, which shows what its sampling alone saves;
3. LocalGenerator with the default batch size;
4. LocalGenerator with four samples a prompt (best_of_n), which share the prompt's cache;
5. the same without sharing.

Results are medians in tokens per second; the ratio is that of arm 3 to arm 1. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from core.align.generation import LocalGenerator
from core.align.templates import instructed, templates_of
from core.backbone import generation
from core.backbone.generation import answer_prefix
from core.backbone.model import Backbone, load_backbone
from core.backbone.transformers_calls import quiet_transformers
from core.config import BackboneConfig, CandidatesConfig, DataConfig
from core.data.pairs import load_pairs
from core.fit.defaults import DEMO_PAIRS
from core.types import Message

N = 4  # samples a prompt in the arms of best_of_n


def instructed_prompts(count: int, config: CandidatesConfig) -> list[tuple[Message, ...]]:
    pairs, _ = load_pairs(DataConfig(pairs=str(DEMO_PAIRS)))
    prompts = list(dict.fromkeys(pair.prompt[-1]["content"] for pair in pairs))[:count]
    return [instructed([Message(role="user", content=text)], templates_of(config).positive) for text in prompts]


def plain(backbone: Backbone, prompts: Sequence[Sequence[Message]], config: CandidatesConfig) -> tuple[int, float]:
    """Generated tokens and seconds of the plain recipe."""
    tokens, began = 0, time.perf_counter()
    with quiet_transformers():
        for prompt in prompts:
            ids = torch.tensor([answer_prefix(backbone, prompt)], device=backbone.device)
            sampling = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": 0}
            output = backbone.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=config.max_new_tokens, **sampling)
            tokens += output.shape[1] - ids.shape[1]
    return tokens, time.perf_counter() - began


def local(backbone: Backbone, prompts: Sequence[Sequence[Message]], config: CandidatesConfig, n: int = 1) -> tuple[int, float]:
    generator, began = LocalGenerator(backbone, config), time.perf_counter()
    generator.generate(prompts, n)
    return generator.spent.tokens, time.perf_counter() - began


def unshared(backbone: Backbone, prompts: Sequence[Sequence[Message]], config: CandidatesConfig, n: int) -> tuple[int, float]:
    """Like `local`, but the prompt is computed again for every sample."""
    shared, generation.shared_cache = generation.shared_cache, lambda *_: None
    try:
        return local(backbone, prompts, config, n)
    finally:
        generation.shared_cache = shared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tokens", 40), ("prompts", 48), ("turns", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default=BackboneConfig().dtype)
    options = parser.parse_args()
    config = CandidatesConfig(max_new_tokens=options.tokens)
    backbone = load_backbone(BackboneConfig(dtype=options.dtype))
    prompts = instructed_prompts(options.prompts, config)
    arms: dict[str, Callable[[], tuple[int, float]]] = {
        "plain_batch_1": lambda: plain(backbone, prompts, config),
        "ours_batch_1": lambda: local(backbone, prompts, replace(config, batch_size=1)),
        f"ours_batch_{config.batch_size}": lambda: local(backbone, prompts, config),
        f"best_of_{N}_shared": lambda: local(backbone, prompts, config, N),
        f"best_of_{N}_unshared": lambda: unshared(backbone, prompts, config, N),
    }
    local(backbone, prompts[:4], replace(config, max_new_tokens=4))  # warm up
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(options.turns):
        for name, arm in arms.items():
            tokens, seconds = arm()
            rates[name].append(tokens / seconds)
            print(f"{name:22} {tokens:6} tokens in {seconds:7.2f} s: {tokens / seconds:7.1f} tokens/s", flush=True)
    report(rates, f"ours_batch_{config.batch_size}", {**vars(options), "dtype": str(backbone.dtype), "threads": torch.get_num_threads()})


def report(rates: dict[str, list[float]], batched: str, about: dict[str, object]) -> None:
    median = {name: statistics.median(values) for name, values in rates.items()}
    ratios = [rate / plain_rate for rate, plain_rate in zip(rates[batched], rates["plain_batch_1"], strict=True)]
    ratio = median[batched] / median["plain_batch_1"]
    print(f"\n{batched} against plain_batch_1: {ratio:.1f} times ({min(ratios):.1f} to {max(ratios):.1f} over {len(ratios)} turns)")
    print(json.dumps({**about, "tokens_per_second": median, "ratio": ratio, "ratio_lowest": min(ratios), "ratio_highest": max(ratios)}))


if __name__ == "__main__":
    main()
