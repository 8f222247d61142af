"""Measures an SAE on documents it was not trained on, with 95 % intervals (METHOD.md: SAE traps, last paragraph).

1. One pass over the documents up to the SAE's layer, content tokens only (no template tokens, no first position), with
   sums per document in float64: FVU = sum |z - z^|^2 / sum |z - mean z|^2 over the same tokens; the median over
   dimensions of the same ratio, since a few huge dimensions can make up nearly all of FVU; L0. The same on
   response-final tokens alone, where a reward model reads.
2. The whole model runs three times more on the first documents: unchanged, with the reconstruction in place of z at
   content positions, and with the mean of z there. Loss recovered = (CE_mean - CE_spliced) / (CE_mean - CE_clean),
   cross-entropy of the tokens that follow those positions.
3. Intervals come from a bootstrap over documents; all dialogues on one prompt count as one document.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from core.backbone.model import Backbone
from core.errors import DataError
from core.sae.autoencoder import SparseAutoencoder
from core.sae.corpus import Dialogue
from core.sae.documents import Document, documents, padded, plan_batches, stream_states
from core.statistics.bootstrap import percentile_interval
from core.types import Progress, no_progress

RESAMPLES = 1000
LOSS_TOKENS = 16_384  # the whole model runs on the first documents that hold this many content tokens
LOSS_BUDGET = 1024  # tokens a batch for it, since logits are large
CHUNK = 4096  # tokens encoded at a time

Array = Float[np.ndarray, "..."]


def sae_card(
    sae: SparseAutoencoder,
    backbone: Backbone,
    dialogues: Sequence[Dialogue],
    *,
    layer: int,
    context: int,
    last_response_only: bool = False,
    seed: int = 0,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """FVU, L0 and dead share of an SAE on these dialogues; loss recovered if the whole model was loaded. JSON values.

    `last_response_only`: only the last token of each dialogue's last answer counts as response-final (preference
    pairs), else that of every answer. Keys: `fvu`, `fvu_median_dimension`, `l0`, the same with `_response_end`, and
    `loss_recovered`, each {value, low, high, n_tokens, n_documents} (null where the documents leave nothing to
    measure); `dead_share` {value, n_tokens}: the share of latents that no content token activates. It has no interval,
    since a resample can only lose tokens. `unreadable_dialogues`: how many dialogues were left out, if any. Raises
    DataError if the dialogues have no content token.
    """
    by_dialogue = documents(dialogues, backbone, context)
    parts = [part for several in by_dialogue for part in _last_only(several, last_response_only)]
    units = _units(parts)
    tokens, ends, active = _measure_states(sae, backbone, parts, units, layer, progress)
    if not tokens.counts.sum():
        raise DataError("these dialogues have no text to measure an SAE on")
    draws = bootstrap_draws(int(units.max()) + 1, seed)
    card: dict[str, Any] = {**tokens.figures("", draws), **ends.figures("_response_end", draws)}
    if unreadable := sum(not several for several in by_dialogue):
        card["unreadable_dialogues"] = unreadable
    card["dead_share"] = {"value": float(1 - active.mean()), "n_tokens": int(tokens.counts.sum())}
    if backbone.model.get_output_embeddings() is not None:
        card["loss_recovered"] = _loss_recovered(sae, backbone, parts, units, layer, tokens.mean, seed, progress)
    return card


def _last_only(parts: list[Document], wanted: bool) -> Iterator[Document]:
    for number, part in enumerate(parts):
        ends = part.ends if not wanted else part.ends[-1:] if number == len(parts) - 1 else ()
        yield Document(ids=part.ids, content=part.content, ends=ends, group=part.group)


def _units(parts: Sequence[Document]) -> Int[np.ndarray, " n"]:
    """For each part the number of its document, counted in order of first appearance."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(part.group, len(numbers)) for part in parts], dtype=np.int64)


@dataclass(kw_only=True)
class Sums:
    """Per document: number of tokens, active latents, and per dimension the sums of z, z^2 and (z - z^)^2."""

    counts: Array
    active: Array
    z: Array
    squares: Array
    errors: Array

    @classmethod
    def empty(cls, n: int, d_model: int) -> Sums:
        return cls(counts=np.zeros(n), active=np.zeros(n), z=np.zeros((n, d_model)), squares=np.zeros((n, d_model)), errors=np.zeros((n, d_model)))

    @property
    def mean(self) -> Array:
        """Mean z over all tokens [d_model]."""
        return self.z.sum(0) / self.counts.sum()

    def add(self, units: Int[np.ndarray, " n"], z: torch.Tensor, reconstruction: torch.Tensor, active: torch.Tensor) -> None:
        """Adds tokens: z and z^ [n, d_model], numbers of active latents [n], and each token's document, `units` [n]."""
        exact = z.double().cpu().numpy()
        error = np.square(exact - reconstruction.double().cpu().numpy())
        for total, values in ((self.counts, np.ones(len(units))), (self.active, active.cpu().numpy()), (self.z, exact)):
            np.add.at(total, units, values)
        np.add.at(self.squares, units, np.square(exact))
        np.add.at(self.errors, units, error)

    def figures(self, suffix: str, draws: Array) -> dict[str, dict[str, Any]]:
        """FVU, its median over dimensions, and L0, with intervals over `draws` [resamples, n] of the documents."""
        once = np.ones((1, len(self.counts)))
        statistics: dict[str, Callable[[Array], Array]] = {
            "fvu": self.fvu_of_draws,
            "fvu_median_dimension": lambda draws: np.median(_ratio(draws @ self.errors, self._spread(draws)), axis=1),
            "l0": lambda draws: _ratio(draws @ self.active, draws @ self.counts),
        }
        size = {"n_tokens": int(self.counts.sum()), "n_documents": int((self.counts > 0).sum())}
        return {f"{name}{suffix}": {**_interval(statistic(once), statistic(draws)), **size} for name, statistic in statistics.items()}

    def _spread(self, draws: Array) -> Array:
        """Sum of (z - mean z)^2 per resample and dimension, around the mean of that resample."""
        n = np.maximum(draws @ self.counts, 1)[:, None]
        return np.maximum(draws @ self.squares - np.square(draws @ self.z) / n, 0)

    def fvu_of_draws(self, draws: Array) -> Array:
        """FVU of each draw; `draws` [n_draws, n_units] count how often each unit was drawn."""
        return _ratio((draws @ self.errors).sum(1), self._spread(draws).sum(1))


def _measure_states(
    sae: SparseAutoencoder, backbone: Backbone, parts: Sequence[Document], units: Int[np.ndarray, " n"], layer: int, progress: Progress
) -> tuple[Sums, Sums, np.ndarray]:
    """Sums over content tokens, sums over response-final tokens, and which latents any content token activates."""
    n, done = int(units.max(initial=-1)) + 1, 0
    tokens, ends = Sums.empty(n, backbone.d_model), Sums.empty(n, backbone.d_model)
    ever = np.zeros(sae.d_sae, dtype=bool)
    for numbers, states in stream_states(parts, backbone, layer, backbone.config.tokens_per_batch):
        rows, places, final = _positions([parts[i] for i in numbers])
        for at in range(0, len(rows), CHUNK):
            row, place, last = rows[at : at + CHUNK], places[at : at + CHUNK], final[at : at + CHUNK]
            z = states[row, place].to(sae.device).float()
            acts = sae.encode(z)
            unit, reconstruction, active = units[np.array(numbers)[row]], sae.decode(acts), (acts > 0).sum(1)
            tokens.add(unit, z, reconstruction, active)
            ends.add(unit[last], z[last], reconstruction[last], active[last])
            ever |= (acts > 0).any(0).cpu().numpy()
        done += len(numbers)
        progress("measure SAE", done, len(parts))
    return tokens, ends, ever


def _positions(batch: Sequence[Document]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, place, and whether it is response-final, of every content token in a batch."""
    rows = np.concatenate([np.full(int(d.content.sum()), i) for i, d in enumerate(batch)])
    places = np.concatenate([np.flatnonzero(d.content) for d in batch])
    finals = np.concatenate([np.isin(np.flatnonzero(d.content), d.ends) for d in batch])
    return rows, places, finals


def _loss_recovered(
    sae: SparseAutoencoder,
    backbone: Backbone,
    parts: Sequence[Document],
    units: Int[np.ndarray, " n"],
    layer: int,
    mean: Array,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Loss recovered on the first documents, with the three cross-entropies. `mean` [d_model] is the mean of z."""
    budget = np.cumsum([part.content.sum() for part in parts])
    chosen = [part for part, before in zip(parts, budget, strict=True) if before - part.content.sum() < LOSS_TOKENS]
    units = units[: len(chosen)]
    centre = torch.as_tensor(mean, dtype=torch.float32)
    replacements: Mapping[str, Callable[[torch.Tensor], torch.Tensor] | None] = {
        "clean": None,
        "spliced": lambda z: sae.decode(sae.encode(z.to(sae.device).float())),
        "mean": lambda z: centre.expand(len(z), -1),
    }
    sums = {name: np.zeros(int(units.max()) + 1) for name in replacements}
    counts = np.zeros(int(units.max()) + 1)
    batches = plan_batches([len(d.ids) for d in chosen], LOSS_BUDGET)
    for done, numbers in enumerate(batches):
        batch, unit = [chosen[i] for i in numbers], units[np.array(numbers)]
        for name, replace in replacements.items():
            losses = next_token_losses(backbone, batch, layer, replace)
            np.add.at(sums[name], unit, [float(loss.sum()) for loss in losses])
        np.add.at(counts, unit, [len(loss) for loss in losses])
        progress("measure loss recovered", done + 1, len(batches))
    return loss_recovered(sums, counts, seed)


def loss_recovered(sums: Mapping[str, Array], counts: Array, seed: int) -> dict[str, Any]:
    """Loss recovered with its interval, from each document's summed `clean`, `spliced`, `mean` losses and tokens."""
    once, draws = np.ones((1, len(counts))), bootstrap_draws(len(counts), seed)

    def recovered(weights: Array) -> Array:
        clean, spliced, mean = (weights @ sums[name] for name in ("clean", "spliced", "mean"))
        return _ratio(mean - spliced, mean - clean)

    losses = {f"ce_{name}": float(total.sum() / max(counts.sum(), 1)) for name, total in sums.items()}
    size = {"n_tokens": int(counts.sum()), "n_documents": int((counts > 0).sum())}
    return {**_interval(recovered(once), recovered(draws)), **losses, **size}


def next_token_losses(
    backbone: Backbone, batch: Sequence[Document], layer: int, replace: Callable[[torch.Tensor], torch.Tensor] | None
) -> list[torch.Tensor]:
    """For each document the cross-entropy (nats) of each token that follows a content position, with z [n, d_model] at
    content positions replaced by `replace(z)`."""
    ids, mask = padded(batch)
    content = torch.zeros_like(mask, dtype=torch.bool)
    for row, document in enumerate(batch):
        content[row, : len(document.ids)] = torch.from_numpy(document.content)
    with torch.inference_mode(), _spliced(backbone, layer, content.to(backbone.device), replace):
        logits = backbone.logits(ids, mask)
        scored = (content[:, :-1] & mask[:, 1:].bool()).to(logits.device)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1][scored].float(), ids[:, 1:].to(logits.device)[scored], reduction="none")
    return list(loss.cpu().split(scored.sum(1).tolist()))


@contextlib.contextmanager
def _spliced(backbone: Backbone, layer: int, content: torch.Tensor, replace: Callable[[torch.Tensor], torch.Tensor] | None) -> Iterator[None]:
    """While open, the layer's output at content positions is replaced by `replace` of it (None: it stays)."""
    if replace is None:
        yield
        return

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        changed = states.clone()
        changed[content] = replace(states[content]).to(states)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = backbone.layer_module(layer).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def bootstrap_draws(n: int, seed: int) -> Array:
    """How often each of `RESAMPLES` bootstrap resamples holds each of n documents [resamples, n]."""
    return np.random.default_rng([seed, 4]).multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(np.float64)


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.full_like(below, np.nan, dtype=np.float64), where=below > 0)


def _interval(value: Array, resampled: Array) -> dict[str, float | None]:
    """The value with its percentile interval; all null where undefined (nothing varies, ablation is free)."""
    usable = resampled[np.isfinite(resampled)]
    if not np.isfinite(value[0]) or not len(usable):
        return {"value": None, "low": None, "high": None}
    low, high = percentile_interval(usable)
    return {"value": float(value[0]), "low": float(low), "high": float(high)}
