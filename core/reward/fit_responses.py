"""The responses that a reward model was fitted and measured on, kept for explaining (METHOD.md section 4).

A within-pair loss leaves a prompt-dependent offset free, so a single reward means little. An explanation compares with
the known responses to the same prompt, with held-out responses and with the most similar training responses. With
projections v and activations f of all of them that takes neither the language model nor the SAE: removing latent j from
the residual stream moves the projections by -f_j D d_j, and D is in the reward model.

known.safetensors
    projections [n, k], activations [n, k]   float32: v, and f of the selected latents, of each response
    n_tokens [n]                             int64: tokens of the response's own text
    prompt_ids [n], response_ids [n]         int64: first 64 bits of a sha256 of prompt; prompt + response
    chosen_rows, rejected_rows, split [n_pairs]   int64: rows of responses; 0 train, 1 validation, 2 test, 3 unused
known.jsonl                                  the pairs in the same order, with texts; absent where texts are private
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from core.data.pairs_file import read_pairs, write_pairs
from core.errors import StoreError
from core.reward.hidden_states import HiddenStates
from core.reward.recorded_files import KNOWN, KNOWN_TEXTS, remedy_for
from core.types import SPLITS, Message, PreferencePairs, sha256_of

UNUSED = len(SPLITS)


@dataclass(frozen=True, kw_only=True)
class FitResponses:
    """Projections, activations and ids of known responses, and their pairs; `pairs`: the texts if they were kept."""

    projections: Float[np.ndarray, "n k"]
    activations: Float[np.ndarray, "n k"]
    n_tokens: Int[np.ndarray, " n"]
    prompt_ids: Int[np.ndarray, " n"]
    response_ids: Int[np.ndarray, " n"]
    chosen_rows: Int[np.ndarray, " n_pairs"]
    rejected_rows: Int[np.ndarray, " n_pairs"]
    split: Int[np.ndarray, " n_pairs"]
    pairs: PreferencePairs | None = None

    def __len__(self) -> int:
        return len(self.projections)

    def rows_of_prompt(self, prompt: Sequence[Message]) -> Int[np.ndarray, " m"]:
        """The known responses to this very prompt."""
        return np.flatnonzero(self.prompt_ids == prompt_id(prompt))

    def pairs_of_split(self, *names: str) -> Int[np.ndarray, " m"]:
        """Numbers of the pairs of these splits."""
        return np.flatnonzero(np.isin(self.split, [SPLITS.index(name) for name in names]))

    def responses_of(self, pairs: Int[np.ndarray, " m"]) -> Int[np.ndarray, " r"]:
        """Rows of the distinct responses of these pairs."""
        return np.unique(np.concatenate([self.chosen_rows[pairs], self.rejected_rows[pairs]]))

    @cached_property
    def held_out_pairs(self) -> Int[np.ndarray, " m"]:
        """The pairs no choice was made on: test; validation where there is no test split."""
        test = self.pairs_of_split("test")
        return test if len(test) else self.pairs_of_split("validation")

    @cached_property
    def held_out_split(self) -> str:
        """The split that held-out pairs are of: test, or validation where there is no test split."""
        return "test" if len(self.pairs_of_split("test")) else "validation"

    @cached_property
    def held_out(self) -> Int[np.ndarray, " r"]:
        """Rows of the responses of held-out pairs."""
        return self.responses_of(self.held_out_pairs)

    @cached_property
    def train(self) -> Int[np.ndarray, " r"]:
        """Rows of the responses of training pairs."""
        return self.responses_of(self.pairs_of_split("train"))

    @cached_property
    def groups(self) -> Int[np.ndarray, " n"]:
        """For each response the number of its prompt: the unit of every statistic."""
        return np.unique(self.prompt_ids, return_inverse=True)[1]

    def sides(self, row: int) -> tuple[str, ...]:
        """`chosen`, `rejected` or both: how the pairs judged this response."""
        rows_of_side = (("chosen", self.chosen_rows), ("rejected", self.rejected_rows))
        return tuple(side for side, rows in rows_of_side if (rows == row).any())

    def texts(self, row: int) -> tuple[tuple[Message, ...], str] | None:
        """Prompt and response; None where texts were not kept."""
        if self.pairs is None:
            return None
        for side, rows in (("chosen", self.chosen_rows), ("rejected", self.rejected_rows)):
            where = np.flatnonzero(rows == row)
            if len(where):
                pair = self.pairs[int(where[0])]
                return pair.prompt, getattr(pair, side)
        return None


def prompt_id(prompt: Sequence[Message]) -> int:
    """The number of a prompt: the 64 bits of `PreferencePair.prompt_id`."""
    return _signed(sha256_of(list(prompt)))


def response_id(prompt: Sequence[Message], response: str) -> int:
    """The number of a response to a prompt."""
    return _signed(sha256_of([list(prompt), response]))


def _signed(digest: str) -> int:
    """The first 16 hex digits as a signed number of 64 bits."""
    return int.from_bytes(bytes.fromhex(digest[:16]), "big", signed=True)


def collect_responses(
    hidden: HiddenStates, pairs: PreferencePairs, projections: Float[np.ndarray, "n_responses k"], activations: Float[np.ndarray, "n_responses k"]
) -> FitResponses:
    """The responses of all pairs. `hidden.chosen_rows[i]` belongs to `pairs[i]`; features go by `hidden.states`."""
    used, places = np.unique(np.concatenate([hidden.chosen_rows, hidden.rejected_rows]), return_inverse=True)
    chosen, rejected = places[: len(pairs)], places[len(pairs) :]
    prompt_ids, response_ids = np.zeros(len(used), dtype=np.int64), np.zeros(len(used), dtype=np.int64)
    for number, pair in enumerate(pairs):
        for row, text in ((chosen[number], pair.chosen), (rejected[number], pair.rejected)):
            prompt_ids[row], response_ids[row] = _signed(pair.prompt_id), response_id(pair.prompt, text)
    return FitResponses(
        projections=projections[used],
        activations=activations[used],
        n_tokens=hidden.n_tokens[used],
        prompt_ids=prompt_ids,
        response_ids=response_ids,
        chosen_rows=chosen,
        rejected_rows=rejected,
        split=np.array([SPLITS.index(name) if name in SPLITS else UNUSED for name in pairs.split], dtype=np.int64),
        pairs=pairs,
    )


def write_responses(known: FitResponses, folder: Path, *, texts: bool) -> None:
    """Writes the tensors into an existing folder, and with `texts` the pairs."""
    tensors = {spec.name: np.ascontiguousarray(getattr(known, spec.name)) for spec in fields(known) if spec.name != "pairs"}
    (folder / KNOWN).write_bytes(save(tensors))
    if texts and known.pairs is not None:
        write_pairs(known.pairs, folder / KNOWN_TEXTS)


def read_responses(folder: Path, k: int) -> FitResponses | None:
    """What a reward model's folder holds of them; None if it holds nothing. Raises StoreError on damaged or
    contradictory files. The caller has checked the folder's recorded files (core.reward.recorded_files): only so a file
    that was deleted is noticed."""
    path = folder / KNOWN
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, "a safetensors file", str(error)) from error
    names = {spec.name for spec in fields(FitResponses)} - {"pairs"}
    if set(tensors) != names:
        raise _damaged(path, ", ".join(sorted(names)), ", ".join(sorted(tensors)))
    _check(tensors, k, path)
    texts = folder / KNOWN_TEXTS
    pairs = read_pairs(texts) if texts.is_file() else None
    if pairs is not None and len(pairs) != len(tensors["split"]):
        expected = f"{len(tensors['split'])} pairs"
        raise StoreError(f"{texts} is not of {KNOWN}", expected=expected, found=str(len(pairs)), remedy=remedy_for(folder))
    return FitResponses(**tensors, pairs=pairs)


def _check(tensors: dict[str, np.ndarray], k: int, path: Path) -> None:
    n, n_pairs = len(tensors["projections"]), len(tensors["split"])
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("projections", "activations"), (n, k))
    shapes |= dict.fromkeys(("n_tokens", "prompt_ids", "response_ids"), (n,)) | dict.fromkeys(("chosen_rows", "rejected_rows", "split"), (n_pairs,))
    for name, shape in shapes.items():
        dtype = np.float32 if len(shape) == 2 else np.int64
        if tensors[name].shape != shape or tensors[name].dtype != dtype:
            raise _damaged(path, f"{name} {np.dtype(dtype)} {list(shape)}", f"{tensors[name].dtype} {list(tensors[name].shape)}")
        ends = {"split": UNUSED + 1}.get(name, n if name.endswith("_rows") else None)
        if ends is not None and ((tensors[name] < 0) | (tensors[name] >= ends)).any():
            raise _damaged(path, f"{name} from 0 to {ends - 1}", "others")
        not_finite = 0 if dtype is np.int64 else int((~np.isfinite(tensors[name])).sum())
        if not_finite:
            raise _damaged(path, f"{name} with finite values", f"{not_finite} that are not")


def _damaged(path: Path, expected: str, actual: str) -> StoreError:
    return StoreError(f"{path} is damaged", expected=expected, found=actual, remedy=remedy_for(path.parent))
