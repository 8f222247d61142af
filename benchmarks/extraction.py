"""The time of extraction against a plain loop and against the hardware's limit, and its memory by number of pairs.

Seconds for the same pairs, medians of three interleaved repetitions:
  ours    core.reward.extraction: tokenise, plan batches, packed forward pass up to layer L
  plain   dataset order, padded batches of 8, `output_hidden_states=True`, the whole model
  limit   the truncated forward pass alone on full rows of 128 tokens, 16 a batch, with as many tokens as there are when
          each prompt and each response counts once
The last line is one JSON object: vs_plain (plain / ours), of_limit (limit / ours), and the arms' disagreement.

`--whole` times whole extractions of embedded pairs at layer 19, files included: reading the end of each response, and
reading whole responses with the activity of all latents of the embedded SAE (whole_of_end = whole / end).
`--memory-whole` measures peak memory of whole responses with an SAE of 131,072 latents by number of pairs.

  python benchmarks/extraction.py --pairs ../shared/data/truthfulqa/TruthfulQA.csv
  python benchmarks/extraction.py --whole
  python benchmarks/extraction.py --memory
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

LAYER = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="../shared/data/truthfulqa/TruthfulQA.csv")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--whole", action="store_true", help="whole responses against their ends")
    parser.add_argument("--memory-whole", action="store_true", help="peak memory of whole responses with 131,072 latents")
    parser.add_argument("--latents", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--memory", action="store_true", help="peak memory at 1,000, 10,000 and 50,000 pairs")
    parser.add_argument("--memory-of", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--memory-model", default="tiny", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(peak_memory(options.memory_of, options.memory_model, options.latents)))
    elif options.whole:
        whole_of_end(options.prompts, options.repetitions)
    elif options.memory_whole:
        memory(sizes=(("tiny", 500), ("tiny", 2_000), ("tiny", 8_000)), latents=131_072)
    elif options.memory:
        memory()
    else:
        speed(options.pairs, options.prompts, options.repetitions)


def speed(path: str, prompts: int, repetitions: int) -> None:
    import torch

    from core.backbone.model import load_backbone
    from core.config import BackboneConfig, DataConfig
    from core.data.pairs import load_pairs
    from core.reward.dialogues import Item

    pairs, _ = load_pairs(DataConfig(pairs=path, limit=prompts))
    # Type: ignore[arg-type].
    items: list[Item] = list(dict.fromkeys((_Prompt(pair.prompt), text) for pair in pairs for text in (pair.chosen, pair.rejected)))
    config = BackboneConfig(layer=LAYER, dtype="bfloat16")
    cut, whole = load_backbone(config, depth=LAYER + 1), load_backbone(config)
    print(f"{len(pairs)} pairs, {len(items)} responses, layer {LAYER}, {cut.identity['dtype']}, {torch.get_num_threads()} threads")
    n_tokens = ideal_tokens(cut, items)
    arms: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(cut, items),
        "plain": lambda: plain(whole, items),
        "limit": lambda: limit(cut, n_tokens),
    }
    for arm in (arms["limit"], arms["ours"]):
        arm()  # warm-up
    times: dict[str, list[float]] = {name: [] for name in arms}
    results: dict[str, Any] = {}
    for _ in range(repetitions):
        for name, arm in arms.items():
            started = time.perf_counter()
            results[name] = arm()
            times[name].append(time.perf_counter() - started)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    gap = np.sqrt(np.mean((results["ours"] - results["plain"]) ** 2)) / results["plain"].std(0).mean()
    for name in arms:
        print(f"{name:6} {seconds[name]:8.2f} s   ({', '.join(f'{t:.2f}' for t in times[name])})")
    print(
        json.dumps(
            {
                "vs_plain": round(seconds["plain"] / seconds["ours"], 2),
                "of_limit": round(seconds["limit"] / seconds["ours"], 3),
                "disagreement_rms_of_std": round(float(gap), 4),
                "n_responses": len(items),
                "limit_tokens": n_tokens,
            }
        )
    )


class _Prompt(tuple):  # type: ignore[type-arg]
    """Messages that can be a dictionary key."""

    def __hash__(self) -> int:
        return hash(json.dumps(self))


def ours(backbone: Any, items: list[Any]) -> Any:
    from core.reward.extraction import response_states

    return response_states(backbone, items, layer=LAYER, position="response_end")


def plain(backbone: Any, items: list[Any]) -> Any:
    """The same position's states by padded batches of 8 in dataset order, through the whole model."""
    import torch

    out = []
    for at in range(0, len(items), 8):
        rendered = [backbone.render([*prompt, {"role": "assistant", "content": text}]) for prompt, text in items[at : at + 8]]
        width = max(len(r.ids) for r in rendered)
        ids, mask = torch.zeros(len(rendered), width, dtype=torch.long), torch.zeros(len(rendered), width, dtype=torch.long)
        for i, r in enumerate(rendered):
            ids[i, : len(r.ids)], mask[i, : len(r.ids)] = torch.from_numpy(r.ids.astype(np.int64)), 1
        with torch.inference_mode():
            states = backbone.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[LAYER + 1]
        out.extend(states[i, r.response_ends[-1]].float().numpy() for i, r in enumerate(rendered))
    return np.stack(out)


def limit(backbone: Any, n_tokens: int) -> None:
    """The truncated forward pass alone, on `n_tokens` in full rows of 128, 16 rows a batch (fewer in the last)."""
    import torch

    ids = torch.randint(100, 40_000, (16, 128), generator=torch.Generator().manual_seed(0))
    rows = -(-n_tokens // 128)
    for at in range(0, rows, 16):
        backbone.states(ids[: min(16, rows - at)], None, [LAYER])


def ideal_tokens(backbone: Any, items: list[Any]) -> int:
    """The number of tokens when each distinct prompt (with its system message) and each response counts once."""
    prompts, total = set[Any](), 0
    for prompt, text in items:
        rendered = backbone.render([*prompt, {"role": "assistant", "content": text}])
        total += rendered.response_ends[-1] - rendered.response_starts[-1] + 1
        if prompt not in prompts:
            prompts.add(prompt)
            total += rendered.response_starts[-1]
    return int(total)


def whole_of_end(prompts: int, repetitions: int) -> None:
    """Seconds of extractions of the embedded pairs, the two readings in turn."""
    from core.backbone.model import load_backbone
    from core.config import BackboneConfig, DataConfig, SAEConfig
    from core.data.pairs import load_pairs
    from core.fit.defaults import DEMO_PAIRS, DEMO_SAE
    from core.reward.extraction import extract
    from core.sae.autoencoder import load_sae

    pairs, _ = load_pairs(DataConfig(pairs=str(DEMO_PAIRS), limit=prompts))
    config = BackboneConfig(layer=19)
    backbone, sae = load_backbone(config, depth=20), load_sae(SAEConfig(path=str(DEMO_SAE)))
    times: dict[str, list[float]] = {"response_end": [], "response_mean": []}
    for number in range(repetitions + 1):  # the first round warms up
        for position, seconds in times.items():
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "out"
                out.mkdir()
                started = time.perf_counter()
                report = extract(pairs, backbone, layers=[19], positions=[position], folder=out, scratch=out / "scratch", saes={19: sae})
                if number:
                    seconds.append(time.perf_counter() - started)
    medians = {position: statistics.median(seconds) for position, seconds in times.items()}
    for position, seconds in times.items():
        print(f"{position:14} {medians[position]:8.2f} s   ({', '.join(f'{t:.2f}' for t in seconds)})")
    ratio = medians["response_mean"] / medians["response_end"]
    print(json.dumps({"whole_of_end": round(ratio, 3), "pairs": len(pairs), "tokens": report["n_tokens_computed"], "latents": sae.d_sae}))


SIZES = (("embedded", 1_000), ("tiny", 1_000), ("tiny", 10_000), ("tiny", 50_000))


def memory(sizes: tuple[tuple[str, int], ...] = SIZES, latents: int = 0) -> None:
    """Peak resident memory of extractions in separate processes: of the embedded model, then of the tiny random one."""
    peaks: dict[str, dict[str, float]] = {}
    for model, n in sizes:
        command = [sys.executable, __file__, "--memory-of", str(n), "--memory-model", model, "--latents", str(latents)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        peak = peaks[f"{model} {n}"] = json.loads(result.stdout.splitlines()[-1])
        print(f"{model} {n:>6} pairs: {peak['before_mb']} MB when loaded, peak {peak['peak_mb']} MB, {peak['states_mb']} MB on disk")
    growth = {name: peak["peak_mb"] - peak["before_mb"] for name, peak in peaks.items()}
    counts = [n for model, n in sizes if model == "tiny"]
    per_pair = (growth[f"tiny {counts[-1]}"] - growth[f"tiny {counts[0]}"]) / (counts[-1] - counts[0]) * 1024
    print(json.dumps({"peak_mb": {name: peak["peak_mb"] for name, peak in peaks.items()}, "growth_mb": growth, "kb_per_pair": round(per_pair, 2)}))


def peak_memory(n: int, model: str, latents: int) -> dict[str, float]:
    import resource

    import psutil

    from core.backbone.model import load_backbone
    from core.backbone.tiny import make_tiny
    from core.config import BackboneConfig
    from core.reward.extraction import extract
    from core.types import PreferencePair, PreferencePairs

    rng = np.random.default_rng(0)
    words = ["egg", "sock", "pear", "tune", "boat", "knife", "wall", "swim", "bread", "tyre", "friend", "yes", "no", "table", "light", "patience"]
    texts = [" ".join(rng.choice(words, size=int(k))) for k in rng.integers(4, 30, size=3 * n)]
    pairs = PreferencePairs(
        pairs=tuple(
            PreferencePair(
                pair_id=str(i), prompt=({"role": "user", "content": texts[3 * i]},), chosen=f"{texts[3 * i + 1]} a", rejected=f"{texts[3 * i + 2]} b"
            )
            for i in range(n)
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        tiny = {"model": str(make_tiny(Path(folder)).model), "layer": 1, "dtype": "float32", "device": "cpu"}
        config = BackboneConfig(**tiny) if model == "tiny" else BackboneConfig(layer=LAYER, dtype="bfloat16")
        backbone = load_backbone(config, depth=config.layer + 1)
        out = Path(folder) / "out"
        out.mkdir()
        before = psutil.Process().memory_info().rss / 2**20
        position, saes = ("response_mean", {config.layer: random_sae(backbone.d_model, latents)}) if latents else ("response_end", None)
        report = extract(pairs, backbone, layers=[config.layer], positions=[position], folder=out, scratch=out / "scratch", saes=saes)
        states = sum(file.stat().st_size for file in out.glob("*.safetensors")) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return {"before_mb": round(before), "peak_mb": round(peak), "states_mb": round(states), "n_responses": report["n_responses"]}


def random_sae(d_model: int, latents: int) -> Any:
    """A JumpReLU SAE of random weights, about 60 of whose latents are active on a token."""
    import torch

    from core.sae.autoencoder import SparseAutoencoder
    from core.sae.formats import StoredSAE

    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(latents, d_model, generator=generator), dim=1)
    rest = {"b_enc": torch.zeros(latents), "b_dec": torch.zeros(d_model), "threshold": torch.full((latents,), 3.3 * 0.03 * d_model**0.5)}
    config = {"architecture": "jumprelu", "apply_b_dec_to_input": False}
    tensors = {"W_enc": decoder.T.contiguous(), "W_dec": decoder, **rest}
    return SparseAutoencoder(StoredSAE(config=config, tensors=tensors, source={"source": "random", "name": "random"}))


if __name__ == "__main__":
    main()
