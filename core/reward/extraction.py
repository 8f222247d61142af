"""Hidden states of responses, the only slow step: each distinct item and each shared prefix is computed once.

1. Render every distinct (prompt, response) and note the tokens to read (`core/reward/rendering.py`).
2. Plan trees, rows, batches and shards (`core/reward/packing.py`).
3. Forward through the deepest layer asked for, no further; read all layers and positions in that one pass, and where
   whole responses are read the activity of every latent at every own token (`core/reward/whole_response.py`).
4. Save shard after shard, then merge (`core/reward/shards.py`); a killed extraction goes on behind its last whole shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core.backbone.control_tokens import without_closing
from core.backbone.model import Backbone
from core.backbone.template import STRIPPED
from core.backbone.thinking import without_thinking
from core.errors import DataError
from core.reward.dialogues import Item
from core.reward.forward import BatchReading, BatchRunner, shares
from core.reward.hidden_states import INDEX, WHOLE
from core.reward.packing import plan_batches
from core.reward.rendering import Read, read_items
from core.reward.shards import Shards, save_arrays
from core.reward.whole_response import WholeResponseReader
from core.sae.autoencoder import SparseAutoencoder
from core.types import PreferencePairs, Progress, RefusedRow, no_progress, sha256_of


def extract(
    pairs: PreferencePairs,
    backbone: Backbone,
    *,
    layers: Sequence[int],
    positions: Sequence[str],
    folder: Path,
    scratch: Path,
    saes: Mapping[int, SparseAutoencoder] | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Hidden states of all pairs' responses into `folder`, resuming from the whole shards in `scratch`. Returns a
    report for the manifest. `core.reward.hidden_states` reads them. `saes`: of each layer, needed at `response_mean`.
    Raises DataError if no pair fits, BackboneError if the model can't run."""
    items, chosen, rejected = _distinct(pairs)
    read = read_items(backbone, items, positions, progress)
    keep = [i for i in range(len(pairs)) if read.row_of_item[chosen[i]] >= 0 and read.row_of_item[rejected[i]] >= 0]
    if not keep:
        counts = Counter(read.refused.values()).most_common(3)
        reasons = "; ".join(f"{count} x {reason}" for reason, count in counts) or "no pair at all"
        remedy = "mend the texts, or change what is read: --max-length, --control-tokens, --think"
        raise DataError("no pair can be read by this model", found=reasons, remedy=remedy)
    plan = plan_batches(read.sequences, tokens_per_batch=backbone.config.tokens_per_batch, share=shares(backbone, read.sequences))
    work = Shards(backbone=backbone, read=read, plan=plan, layers=sorted(set(layers)), positions=positions, saes=saes or {}, scratch=scratch)
    work.run(progress)
    work.merge(folder)
    rows = np.array(keep, dtype=np.int64)
    index = {
        "chosen_rows": read.row_of_item[chosen[rows]],
        "rejected_rows": read.row_of_item[rejected[rows]],
        "pair_rows": rows,
        "n_tokens": read.n_tokens,
    }
    save_arrays(folder / INDEX, index)
    return {
        "n_responses": len(read.sequences),
        "n_pairs": len(keep),
        "positions": list(positions),
        "n_tokens_computed": plan.n_tokens,
        "n_tokens_without_sharing": len(read.sequences.flat),
        "common_prefix": plan.prefix,
        "dialogues_shortened": read.n_shortened,
        "closing_tokens_cut": read.n_closing_cut,
        "closing_tokens": list(backbone.template.closing) if read.n_closing_cut else [],
        "thinking": read.n_thinking,
        "refused": [vars(row) for row in _refused_pairs(read, chosen, rejected)],
    }


def texts_as_read(pairs: PreferencePairs, report: Mapping[str, Any]) -> PreferencePairs:
    """The pairs with their answers as the model read them, by the extraction's report: without closing tokens, and
    without stripped thinking. Controls that look at the wording must see no more than the model did: a closing token in
    chosen answers alone would tell the sides apart."""
    closing, strips = report["closing_tokens"], STRIPPED in report["thinking"]
    if not closing and not strips:
        return pairs

    def as_read(text: str) -> str:
        text = without_closing(text, closing)
        return without_thinking(text) if strips else text

    read = (replace(pair, chosen=as_read(pair.chosen), rejected=as_read(pair.rejected)) for pair in pairs)
    return replace(pairs, pairs=tuple(read))


def response_states(backbone: Backbone, items: Sequence[Item], *, layer: int, position: str) -> Float[np.ndarray, "n d_model"]:
    """z of each item, float32, in order; equal items are computed once. DataError names the first unreadable one."""
    return _read_responses(backbone, items, layer, position, None)


def response_activity(
    backbone: Backbone, items: Sequence[Item], *, layer: int, sae: SparseAutoencoder, latent_ids: Int[np.ndarray, " k"]
) -> Float[np.ndarray, "n k"]:
    """Mean activation of these latents over each item's own tokens, as `response_states`."""
    return _read_responses(backbone, items, layer, WHOLE, WholeResponseReader({layer: sae}, latent_ids))


def _read_responses(backbone: Backbone, items: Sequence[Item], layer: int, position: str, reader: WholeResponseReader | None) -> np.ndarray:
    """z of each item, or the latents' activity where `reader` asks for some; each distinct item once."""
    if not items:
        return np.zeros((0, backbone.d_model if reader is None or reader.latent_ids is None else len(reader.latent_ids)), dtype=np.float32)
    numbers: dict[str, int] = {}
    where = [numbers.setdefault(sha256_of([list(prompt), text]), len(numbers)) for prompt, text in items]
    first = {number: i for i, number in reversed(list(enumerate(where)))}
    read = read_items(backbone, [items[first[n]] for n in range(len(numbers))], [position], no_progress)
    if read.refused:
        worst = min(read.refused)
        raise DataError(f"response {first[worst]} can't be read", found=read.refused[worst])
    plan = plan_batches(read.sequences, tokens_per_batch=backbone.config.tokens_per_batch, share=shares(backbone, read.sequences))
    whole = reader or (WholeResponseReader() if position == WHOLE else None)
    runner = BatchRunner(backbone, read.sequences, [layer], prefix=plan.prefix, share=plan.share, whole=whole)
    members, values = [np.zeros(0, dtype=np.int64)], []
    for batch in plan.batches:
        for reading in runner.run(batch):
            members.append(reading.members)
            values.append(_values(reading, layer, position, latents=reader is not None))
    order = np.argsort(np.concatenate(members))
    result: np.ndarray = np.concatenate(values)[order][read.row_of_item[np.array(where, dtype=np.int64)]]
    return result


def _values(reading: BatchReading, layer: int, position: str, *, latents: bool) -> np.ndarray:
    if position != WHOLE:
        return reading.states[layer][:, 0]
    whole = reading.whole[layer]
    assert whole.latents is not None or not latents  # asked for by number
    return whole.latents if latents and whole.latents is not None else whole.mean


def _distinct(pairs: PreferencePairs) -> tuple[list[Item], Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Distinct (prompt, response) items, and each pair's item numbers."""
    numbers: dict[tuple[str, str], int] = {}
    items: list[Item] = []
    sides: tuple[list[int], list[int]] = ([], [])
    for pair in pairs:
        for side, response in zip(sides, (pair.chosen, pair.rejected), strict=True):
            key = (pair.prompt_id, response)
            if key not in numbers:
                numbers[key] = len(items)
                items.append((pair.prompt, response))
            side.append(numbers[key])
    return items, np.array(sides[0], dtype=np.int64), np.array(sides[1], dtype=np.int64)


def _refused_pairs(read: Read, chosen: Int[np.ndarray, " n"], rejected: Int[np.ndarray, " n"]) -> list[RefusedRow]:
    """The pairs one of whose responses can't be read; `row` is the pair's index."""
    sides = [("chosen", chosen.tolist()), ("rejected", rejected.tolist())]
    refused = {row: (side, read.refused[item]) for side, items in reversed(sides) for row, item in enumerate(items) if item in read.refused}
    return [RefusedRow(row=row, field=side, reason=reason) for row, (side, reason) in sorted(refused.items())]
