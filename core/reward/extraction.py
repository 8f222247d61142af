"""Hidden states of responses, the only slow step: each distinct item and each shared prefix is computed once.

1. Render every distinct (prompt, response) and note the position to read (METHOD.md section 2).
2. Plan trees, rows, batches and shards (`core/reward/packing.py`).
3. Forward through the deepest layer asked for, no further; read all layers and positions in that one pass.
4. Save shard after shard; a killed extraction goes on behind its last whole one. Memory does not grow with the pairs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from safetensors.numpy import load_file, save_file

from core.backbone.control_tokens import without_closing
from core.backbone.layout import Unreadable
from core.backbone.model import Backbone
from core.backbone.template import KEPT, STRIPPED, Rendered
from core.backbone.thinking import without_thinking
from core.errors import BackboneError, DataError
from core.files import read_json, whole_file, write_json
from core.reward.dialogues import Item
from core.reward.forward import BatchRunner, shares
from core.reward.hidden_states import states_name
from core.reward.packing import Plan, Sequences, plan_batches, row_size
from core.runs.store import HOLD
from core.types import Message, PreferencePairs, Progress, RefusedRow, no_progress, sha256_of

RENDER_CHUNK = 2048  # dialogues tokenised at a time
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Read:
    """Rendered responses that can be read: their tokens, and for each item its row among them or why it has none.

    Counts of items: `n_shortened` lost leading turns of their prompt, `n_closing_cut` a closing control token,
    `n_thinking` by what became of a thinking block (`kept`, `stripped`).
    """

    sequences: Sequences
    row_of_item: Int[np.ndarray, " n_items"]
    n_tokens: Int[np.ndarray, " n_sequences"]
    refused: dict[int, str]
    n_shortened: int
    n_closing_cut: int
    n_thinking: dict[str, int]


def extract(
    pairs: PreferencePairs,
    backbone: Backbone,
    *,
    layers: Sequence[int],
    positions: Sequence[str],
    folder: Path,
    scratch: Path,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Hidden states of all pairs' responses into `folder`, resuming from the whole shards in `scratch`. Returns a
    report for the manifest. `core.reward.hidden_states` reads them. Raises DataError if no pair fits, BackboneError if
    the model can't run."""
    items, chosen, rejected = _distinct(pairs)
    read = read_items(backbone, items, positions, progress)
    keep = [i for i in range(len(pairs)) if read.row_of_item[chosen[i]] >= 0 and read.row_of_item[rejected[i]] >= 0]
    if not keep:
        counts = Counter(read.refused.values()).most_common(3)
        reasons = "; ".join(f"{count} x {reason}" for reason, count in counts) or "no pair at all"
        remedy = "mend the texts, or change what is read: --max-length, --control-tokens, --think"
        raise DataError("no pair can be read by this model", found=reasons, remedy=remedy)
    plan = plan_batches(read.sequences, tokens_per_batch=backbone.config.tokens_per_batch, share=shares(backbone, read.sequences))
    layers = sorted(set(layers))
    _run_shards(backbone, read.sequences, plan, layers, positions, scratch, progress)
    _merge(scratch, folder, plan, layers, positions, len(read.sequences), backbone.d_model)
    rows = np.array(keep, dtype=np.int64)
    index = {
        "chosen_rows": read.row_of_item[chosen[rows]],
        "rejected_rows": read.row_of_item[rejected[rows]],
        "pair_rows": rows,
        "n_tokens": read.n_tokens,
    }
    _save_arrays(folder / "index.safetensors", index)
    return {
        "n_responses": len(read.sequences),
        "n_pairs": len(keep),
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
    numbers: dict[str, int] = {}
    where = [numbers.setdefault(sha256_of([list(prompt), text]), len(numbers)) for prompt, text in items]
    first = {number: i for i, number in reversed(list(enumerate(where)))}
    read = read_items(backbone, [items[first[n]] for n in range(len(numbers))], [position], no_progress)
    if read.refused:
        worst = min(read.refused)
        raise DataError(f"response {first[worst]} can't be read", found=read.refused[worst])
    plan = plan_batches(read.sequences, tokens_per_batch=backbone.config.tokens_per_batch, share=shares(backbone, read.sequences))
    runner = BatchRunner(backbone, read.sequences, [layer], prefix=plan.prefix, share=plan.share)
    out = np.zeros((len(read.sequences), backbone.d_model), dtype=np.float32)
    for batch in plan.batches:
        for members, states in runner.run(batch):
            out[members] = states[layer][:, 0]
    result: np.ndarray = out[read.row_of_item[np.array(where, dtype=np.int64)]]
    return result


def read_items(backbone: Backbone, items: Sequence[Item], positions: Sequence[str], progress: Progress = no_progress) -> Read:
    """Renders items and finds the tokens to read. Unreadable items have a reason in `refused`. Over-long prompts lose
    their leading turns or are refused (config `over_length`); responses are never cut."""
    prompts: dict[str, int] = {}
    flat, facts, refused = [np.zeros(0, dtype=np.int32)], array("q"), dict[int, str]()
    counts: Counter[str] = Counter()
    rows = np.full(len(items), -1, dtype=np.int64)
    width = 3 + len(positions)  # of each sequence: length, prompt, own tokens, positions to read
    for at in range(0, len(items), RENDER_CHUNK):
        chunk, parts = items[at : at + RENDER_CHUNK], [np.zeros(0, dtype=np.int32)]
        progress("tokenise", at, len(items))
        for offset, rendered in enumerate(_render_chunk(backbone, chunk, positions)):
            if isinstance(rendered, str):
                refused[at + offset] = rendered
                continue
            ids, reads, n_own, changes = rendered
            counts.update(changes)
            rows[at + offset] = len(facts) // width
            parts.append(ids[: max(reads) + 1])
            facts.extend([len(parts[-1]), prompts.setdefault(sha256_of(list(chunk[offset][0])), len(prompts)), n_own, *reads])
        flat.append(np.concatenate(parts))
    table = np.array(facts, dtype=np.int64).reshape(-1, width)
    sequences = Sequences(flat=np.concatenate(flat), starts=np.concatenate([[0], np.cumsum(table[:, 0])]), prompts=table[:, 1], reads=table[:, 3:])
    return Read(
        sequences=sequences,
        row_of_item=rows,
        n_tokens=table[:, 2],
        refused=refused,
        n_shortened=counts["shortened"],
        n_closing_cut=counts["closing"],
        n_thinking={name: counts[name] for name in (KEPT, STRIPPED) if counts[name]},
    )


def _render_chunk(backbone: Backbone, chunk: Sequence[Item], positions: Sequence[str]) -> Iterable[Any]:
    """For each item (ids, positions to read, own tokens, changes made before reading), or why it is refused."""
    dialogues: list[list[Message]] = [[*prompt, {"role": "assistant", "content": response}] for prompt, response in chunk]
    for messages, rendered in zip(dialogues, backbone.render_all(dialogues), strict=True):
        readable = as_read(backbone, messages, rendered, positions)
        if isinstance(readable, str):
            yield readable
            continue
        read, shortened = readable
        n_own = read.response_ends[-1] - read.response_starts[-1] + 1
        changes = [*(["shortened"] if shortened else []), *(["closing"] if read.n_closing else []), *([read.thinking] if read.thinking else [])]
        yield read.ids, [read_position(read, name) for name in positions], n_own, changes


def as_read(backbone: Backbone, messages: list[Message], rendered: Rendered | Unreadable, positions: Sequence[str]) -> tuple[Rendered, bool] | str:
    """A dialogue as the model reads it, and whether `over_length` dropped leading turns; or why it is refused."""
    limit, kept = backbone.config.max_length, messages
    while (
        isinstance(rendered, Rendered)
        and len(rendered.ids) > limit
        and backbone.config.over_length == "drop_turns"
        and (shorter := _without_first_turn(kept))
    ):
        kept = shorter
        rendered = backbone.render_all([kept])[0]
    if isinstance(rendered, Unreadable):
        return rendered.reason
    if len(rendered.ids) > limit:
        return f"{len(rendered.ids)} tokens, at most {limit} are read"
    if not rendered.answered:
        only = "a thinking block" if rendered.thinking == STRIPPED else "closing tokens" if rendered.n_closing else ""
        return f"the response holds nothing but {only}" if only else "the response has no token of its own"
    if "turn_end" in positions and rendered.turn_ends[-1] < 0:
        raise BackboneError("this model's template has no end-of-turn token", expected="position response_end", found="position turn_end")
    return rendered, len(kept) < len(messages)


def read_position(rendered: Rendered, position: str) -> int:
    """The token of the last response that is read at `response_end` or `turn_end`."""
    return rendered.response_ends[-1] if position == "response_end" else rendered.turn_ends[-1]


def _without_first_turn(messages: list[Message]) -> list[Message]:
    """The dialogue without its first exchange, a system message kept; empty where only the last user turn is left."""
    head = messages[:1] if messages[0]["role"] == "system" else []
    rest = messages[len(head) :]
    following = next((i for i in range(1, len(rest)) if rest[i]["role"] == "user"), None)
    return [] if following is None else [*head, *rest[following:]]


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


# ---- shards


def _run_shards(
    backbone: Backbone, sequences: Sequences, plan: Plan, layers: Sequence[int], positions: Sequence[str], scratch: Path, progress: Progress
) -> None:
    _open_scratch(scratch, sequences, plan, layers, positions)
    runner: BatchRunner | None = None
    total, done, fresh, started = plan.n_tokens, plan.prefix, 0, time.monotonic()
    for number, (begin, end) in enumerate(plan.shards):
        path = scratch / f"shard-{number:05d}.safetensors"
        size = sum(row_size(row) for batch in plan.batches[begin:end] for row in batch)
        if not path.exists():
            runner = runner or BatchRunner(backbone, sequences, layers, prefix=plan.prefix, share=plan.share)
            members, parts = [], []
            for batch in plan.batches[begin:end]:
                for who, states in runner.run(batch):
                    members.append(who)
                    parts.append(np.stack([states[layer] for layer in layers], axis=1))
                at = done + fresh
                fresh += sum(row_size(row) for row in batch)
                progress("extraction", at, total, tokens_per_s=fresh / max(time.monotonic() - started, 1e-9))
            fresh -= size
            _save_arrays(path, {"members": np.concatenate(members), "states": np.concatenate(parts)})
        done += size
        progress("extraction", done, total)
        _hold_here(scratch, number)


def _open_scratch(scratch: Path, sequences: Sequences, plan: Plan, layers: Sequence[int], positions: Sequence[str]) -> None:
    """Keeps the shards of an earlier, killed run only if they were cut from the very same plan."""
    digest = hashlib.sha256(sequences.flat.data)
    for batch in plan.batches:
        digest.update(repr([[(tree.members, tree.trunk) for tree in row] for row in batch]).encode())
    key = sha256_of([VERSION, digest.hexdigest(), plan.prefix, list(layers), list(positions)])
    note = scratch / "plan.json"
    if note.is_file() and read_json(note) == key:
        return
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    write_json(note, key)


def _hold_here(scratch: Path, number: int) -> None:
    """Where a kill test holds the extraction open: behind a shard it names."""
    if os.environ.get(HOLD) == f"extraction:{number}":
        (scratch / "held").touch()
        while True:
            time.sleep(0.05)


def _merge(scratch: Path, folder: Path, plan: Plan, layers: Sequence[int], positions: Sequence[str], n: int, d_model: int) -> None:
    """Writes the shards' rows to one file a layer and position, shard by shard, so that memory stays flat."""
    files = {(i, j): (folder / states_name(layer, position)).open("wb") for i, layer in enumerate(layers) for j, position in enumerate(positions)}
    try:
        begin = {key: _write_header(handle, n, d_model) for key, handle in files.items()}
        for number in range(len(plan.shards)):
            shard = load_file(scratch / f"shard-{number:05d}.safetensors")
            for key, handle in files.items():
                for member, row in zip(shard["members"].tolist(), shard["states"][:, key[0], key[1]], strict=True):
                    handle.seek(begin[key] + member * d_model * 4)
                    handle.write(row.tobytes())
    finally:
        for handle in files.values():
            handle.close()


def _write_header(handle: Any, n: int, d_model: int) -> int:
    """A safetensors header for one float32 tensor `states` [n, d_model]; returns where its data begin."""
    header = json.dumps({"states": {"dtype": "F32", "shape": [n, d_model], "data_offsets": [0, n * d_model * 4]}}).encode()
    header += b" " * (-len(header) % 8)
    handle.write(len(header).to_bytes(8, "little") + header)
    handle.truncate(8 + len(header) + n * d_model * 4)
    return 8 + len(header)


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Saves arrays under their final name only when they are whole."""
    with whole_file(path) as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary)
