"""Values that the rooms pass on: text pairs, hidden states, latent frequencies, directions, head inputs, accuracies.
Also their JSON and hashes.

Only numpy is imported. Shapes are given by jaxtyping and checked under pytest. The symbols are those of METHOD.md
section 1: z hidden state, f SAE latents, mu share of responses in which a latent is active, v projections, s reward.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

SPLITS = ("train", "validation", "test")


@runtime_checkable
class Progress(Protocol):
    """A callable that every long step calls now and then. It may raise `core.errors.Cancelled` to stop the step."""

    def __call__(self, step: str, done: float, total: float, **figures: Any) -> None:
        """`done` of `total` units of `step` are finished; `figures` are shown beside that."""


def no_progress(step: str, done: float, total: float, **figures: Any) -> None:
    """Ignores the progress: the default of every step."""


def canonical_json(value: Any) -> str:
    """JSON text that is the same for equal values: sorted keys, no spaces. Raises ValueError on NaN and TypeError on
    other non-JSON values.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def strict_json(text: str, *, unique_keys: bool = False) -> Any:
    """The value of a JSON text. Raises ValueError where the text is no JSON, or holds NaN or an infinity, which JSON
    lacks; with `unique_keys` also where an object gives a key twice.
    """
    checked = _unique if unique_keys else None
    return json.loads(text, parse_constant=_no_number, parse_float=_finite_float, object_pairs_hook=checked)


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in items:
        if key in values:
            raise ValueError(f"the key {key} stands twice")
        values[key] = value
    return values


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large a number")
    return number


def json_value(value: Any) -> Any:
    """The value as JSON has it: a dataclass as an object of its fields (or what its own `to_json` gives), tuples and
    arrays as lists, numpy's numbers as Python's, NaN and infinities as None, keys as texts. Raises TypeError on
    anything else.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_value(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(part) for part in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return json_value(value.tolist())
    if hasattr(value, "to_json"):
        return value.to_json()
    if is_dataclass(value) and not isinstance(value, type):
        return {spec.name: json_value(getattr(value, spec.name)) for spec in fields(value)}
    raise TypeError(f"{type(value).__name__} is no JSON value")


class JsonFields:
    """Gives a dataclass `to_json`: its fields in their order as `json_value` makes them."""

    def to_json(self) -> dict[str, Any]:
        return {spec.name: json_value(getattr(self, spec.name)) for spec in fields(self)}  # type: ignore[arg-type]


def sha256_of(value: Any) -> str:
    """Hex sha256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()


class Message(TypedDict):
    """One turn of a dialogue; role is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """One comparison: a prompt (messages) and two next assistant messages, the chosen one preferred to the rejected
    one.

    `meta` holds further fields of the source (`subset`, `row`, scores ...), JSON values only.
    """

    pair_id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def prompt_id(self) -> str:
        """16 hex digits that name the prompt: equal prompts have equal ids."""
        return sha256_of(list(self.prompt))[:16]

    def to_row(self) -> dict[str, Any]:
        """The pair in TRL's preference format (message lists), with `id` and `meta` beside it."""
        answer = [[{"role": "assistant", "content": text}] for text in (self.chosen, self.rejected)]
        return {"id": self.pair_id, "prompt": list(self.prompt), "chosen": answer[0], "rejected": answer[1], "meta": dict(self.meta)}


@dataclass(frozen=True, kw_only=True)
class PreferencePairs:
    """Pairs in a fixed order, and the split of each (`train`, `validation`, `test`, `unused`; empty before splitting)."""

    pairs: tuple[PreferencePair, ...]
    split: tuple[str, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if self.split and len(self.split) != len(self.pairs):
            raise ValueError(f"{len(self.split)} split names for {len(self.pairs)} pairs")

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[PreferencePair]:
        return iter(self.pairs)

    def __getitem__(self, index: int) -> PreferencePair:
        return self.pairs[index]

    @cached_property
    def content_hash(self) -> str:
        """sha256 over each pair's text, id and split, in order: the fingerprint of the data."""
        digest = hashlib.sha256()
        for number, pair in enumerate(self.pairs):
            row = [pair.to_row(), self.split[number] if self.split else ""]
            digest.update(canonical_json(row).encode("utf-8", "surrogatepass") + b"\n")
        return digest.hexdigest()

    def rows_of(self, split: str) -> Int[np.ndarray, " n"]:
        """Indices of the pairs of one split."""
        return np.array([i for i, name in enumerate(self.split) if name == split], dtype=np.int64)

    def take(self, rows: Sequence[int] | Int[np.ndarray, " n"]) -> PreferencePairs:
        """The pairs at these indices, with their splits."""
        split = tuple(self.split[int(i)] for i in rows) if self.split else ()
        return PreferencePairs(pairs=tuple(self.pairs[int(i)] for i in rows), split=split, source=self.source)

    def prompt_groups(self) -> Int[np.ndarray, " n_pairs"]:
        """For each pair the number of its prompt, counted in order of first appearance: the unit of every statistic."""
        numbers: dict[str, int] = {}
        return np.array([numbers.setdefault(pair.prompt_id, len(numbers)) for pair in self.pairs], dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class RefusedRow:
    """A row that was read but can't be used, and the reason. The report lists it."""

    row: int
    field: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class LatentFrequencies:
    """How often each latent is active in chosen and in rejected training responses (METHOD.md section 3, step 1 and
    statistics).

    `chosen`, `rejected` are mu_w and mu_l. `n_active` counts active responses, chosen and rejected together.
    `prompts_for` and `prompts_against` count prompts whose summed activity difference is positive or negative;
    `p_value` is the exact two-sided sign test over those votes, `q_value` Benjamini-Hochberg over live latents (NaN for
    the others). `held_out` is the separation nabla on validation pairs (the winner's curse shows there). `low`, `high`:
    95 % bootstrap interval of nabla over prompts, for the latents that were asked for (NaN for the others). `effect`,
    where latents are selected by it: mean over prompts of the difference of mean activation divided by its standard
    error, 0 for latents that are too rare to be ranked.
    """

    FINITE: ClassVar[tuple[str, ...]] = ("chosen", "rejected", "p_value")

    chosen: Float[np.ndarray, " d_sae"]
    rejected: Float[np.ndarray, " d_sae"]
    n_active: Int[np.ndarray, " d_sae"]
    prompts_for: Int[np.ndarray, " d_sae"]
    prompts_against: Int[np.ndarray, " d_sae"]
    p_value: Float[np.ndarray, " d_sae"]
    q_value: Float[np.ndarray, " d_sae"]
    held_out: Float[np.ndarray, " d_sae"]
    low: Float[np.ndarray, " d_sae"]
    high: Float[np.ndarray, " d_sae"]
    n_pairs: int
    n_prompts: int
    n_pairs_held_out: int
    effect: Float[np.ndarray, " d_sae"] | None = None

    @property
    def ranking(self) -> Float[np.ndarray, " d_sae"]:
        """What latents are selected by: the largest values mark chosen responses, the smallest rejected ones."""
        return self.separation if self.effect is None else self.effect

    @property
    def separation(self) -> Float[np.ndarray, " d_sae"]:
        """nabla = mu_w - mu_l. Taken from counts, so that equal separations are equal numbers and ties can be seen."""
        return np.rint((self.chosen - self.rejected) * self.n_pairs) / self.n_pairs


@dataclass(frozen=True, kw_only=True)
class SelectedDirections:
    """The K + K latents whose decoder rows make up v: first I_w by falling nabla, then I_l by falling Delta (METHOD.md
    section 3).

    `side` is +1 for I_w and -1 for I_l; `separation` is mu_w - mu_l (negative in I_l); `stability` is the share of
    bootstrap resamples of the prompts in which the latent is selected again; `sae` is the SAE's identity.
    """

    FINITE: ClassVar[tuple[str, ...]] = ("separation", "directions")

    latent_ids: Int[np.ndarray, " k"]
    side: Int[np.ndarray, " k"]
    separation: Float[np.ndarray, " k"]
    stability: Float[np.ndarray, " k"]
    directions: Float[np.ndarray, "k d_model"]
    sae: Mapping[str, Any]

    @property
    def k_chosen(self) -> int:
        return int((self.side > 0).sum())

    @property
    def k_rejected(self) -> int:
        return int((self.side < 0).sum())


@dataclass(frozen=True, kw_only=True)
class HeadInputs:
    """The input of a head for each distinct response: projections v (SparseRM, random controls), activations f or all
    of z.

    `values` may be a memory map (the dense control reads z itself), so slice it; pairs name their responses by row, as
    in `HiddenStates`.
    """

    values: Float[np.ndarray, "n_responses k"]
    chosen_rows: Int[np.ndarray, " n_pairs"]
    rejected_rows: Int[np.ndarray, " n_pairs"]

    @property
    def chosen(self) -> Float[np.ndarray, "n_pairs k"]:
        """v of every chosen response. A copy."""
        return np.asarray(self.values[self.chosen_rows], dtype=np.float32)

    @property
    def rejected(self) -> Float[np.ndarray, "n_pairs k"]:
        """v of every rejected response. A copy."""
        return np.asarray(self.values[self.rejected_rows], dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class Accuracy(JsonFields):
    """Share of pairs with strict s_w > s_l (ties are wrong), with its 95 % interval and the number of pairs: they
    travel together.

    Without pairs (n = 0) there is no accuracy: NaN here, null in JSON.
    """

    accuracy: float
    low: float
    high: float
    n: int
