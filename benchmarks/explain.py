"""The time of explaining with a loaded model: `python benchmarks/explain.py MODEL`, a reward model's folder with texts.

1. Explaining a held-out pair, and a pair with responses of 200 tokens.
2. Changing a word in the middle of a response of 200 tokens: an edit, which keeps the states before the word, against
   computing the whole text again; and the difference of the two rewards as a share of the reward's standard deviation.
3. Token views, deletions, gradient; switching latents off.

The two arms of 2 take turns. Results are medians; the last line is one JSON object.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from core.explain.features import item_of
from core.explain.switch import Switchboard
from core.reward.model import SparseRM
from core.types import PreferencePair

TOKENS, REPETITIONS = 200, 9
PROMPT = "Tell me some facts."


def seconds(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main(folder: str) -> None:
    explainer = SparseRM.load(folder).explainer
    known = explainer.known
    if known is None or known.pairs is None:
        raise SystemExit("this reward model keeps no texts; fit it again")
    pairs = [known.pairs[int(number)] for number in known.held_out_pairs]
    explainer.explain_pair(pairs[-1])  # loads model and SAE
    # Type: ignore[misc].
    warm = [seconds(lambda pair=pair: explainer.explain_pair(pair)) for pair in pairs[:REPETITIONS]]

    tokenizer = explainer.backbone.tokenizer
    text = tokenizer.decode(tokenizer(" ".join(pair.chosen for pair in pairs))["input_ids"][:TOKENS])
    words = text.split(" ")
    long_pair = PreferencePair(pair_id="long", prompt=item_of(PROMPT, "a")[0], chosen=text, rejected=" ".join(words[::-1]))
    rewards = explainer.parts.head.reward(known.projections[known.held_out])
    edits, full, apart = [], [], []
    for word in ("never", "always", "banana", "seldom", "today", "and", "so", "nine", "Paris")[:REPETITIONS]:
        changed = " ".join([*words[: len(words) // 2], word, *words[len(words) // 2 + 1 :]])
        explainer.readings.clear()
        root, edited = explainer.edit(PROMPT, text), []
        edits.append(seconds(lambda: edited.append(explainer.edit(PROMPT, changed, root))))  # noqa: B023
        explainer.readings.clear()
        full.append(seconds(lambda: edited.append(explainer.edit(PROMPT, changed))))  # noqa: B023
        apart.append((edited[0].explanation.reward - edited[1].explanation.reward) / rewards.std())
        share = edited[0].n_computed / edited[0].n_tokens
    explainer.readings.clear()
    board = Switchboard(explainer.parts, known)
    ids = explainer.builder.latent_ids.tolist()
    board.off(ids[:3])
    outcome = {
        "explain_pair": statistics.median(warm),
        "explain_pair_200": seconds(lambda: explainer.explain_pair(long_pair)),
        "tokens_200": seconds(lambda: explainer.tokens(PROMPT, text)),
        "deletions_200": seconds(lambda: explainer.deletions(PROMPT, text)),
        "gradient_200": seconds(lambda: explainer.gradient(PROMPT, text)),
        "edit_200": statistics.median(edits),
        "full_200": statistics.median(full),
        "edit_vs_full": statistics.median(full) / statistics.median(edits),
        "edit_tokens_computed": share,
        "edit_apart_rms": float(np.sqrt(np.mean(np.square(apart)))),
        # Type: ignore[misc].
        "switch_off": statistics.median([seconds(lambda n=n: board.off(ids[n : n + 3])) for n in range(REPETITIONS)]),
    }
    for name, value in outcome.items():
        print(f"{name:22} {value:.4f}")
    print(json.dumps(outcome))


if __name__ == "__main__":
    main(sys.argv[1])
