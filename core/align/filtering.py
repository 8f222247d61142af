"""The filter: DPO learns from the pairs whose intended winner has the higher reward (METHOD.md section 5).

Arms: `sparserm`, a control's name or a folder (that reward model filters); `none` keeps everything; `random` drops as
many pairs as the reward model would, drawn by seed, so that DPO takes equally many steps. In every arm, pairs that DPO
can't use (too long, equal answers) are dropped and counted. Every dropped pair has a reason; where a reward model with
latents dropped it, also the latents that lowered its margin most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from core.align.values import Candidate, Decision
from core.errors import ConfigError
from core.explain.attribution import contributions, contributions_by_head, same_sign
from core.explain.explanation_builder import KINDS
from core.reward.dialogues import Item, items_of
from core.types import Progress, no_progress

if TYPE_CHECKING:
    from core.reward.model import SparseRM
    from core.reward.parts import RewardParts

SPARSERM, NONE, RANDOM = "sparserm", "none", "random"
MARGIN, AT_RANDOM, UNREAD = "margin", "at random", "unread by the reward model"
TOP = 5  # latents named for a dropped pair
CHUNK = 128  # pairs between two calls of `progress`


@dataclass(frozen=True, kw_only=True)
class ScoredCandidates:
    """Rewards and hidden states of each pair's texts, the intended winner first; unreadable: z = 0, reward NaN."""

    rewards: Float[np.ndarray, "n 2"]
    z: Float[np.ndarray, "n 2 d_model"]

    @property
    def margins(self) -> Float[np.ndarray, " n"]:
        """Reward of the intended winner less that of the other text; NaN where one of them is unreadable."""
        return self.rewards[:, 0] - self.rewards[:, 1]


def judge_folder(arm: str, model: Path) -> Path:
    """The folder that scores an arm's pairs: `model`, one of its controls, or another. ConfigError: none of these."""
    if arm in (SPARSERM, NONE, RANDOM):
        return model
    for folder in (model / "controls" / arm, Path(arm).expanduser()):
        if arm and folder.is_dir():  # loading reports a folder without config.json
            return folder.resolve()
    controls = sorted(path.name for path in (model / "controls").glob("*"))
    raise ConfigError("there is no such arm", expected=" | ".join([SPARSERM, NONE, RANDOM, *controls, "a reward model's folder"]), found=repr(arm))


def check_arm(arm: str, mode: str) -> None:
    """Raises ConfigError for best_of_n, which selects the winner by the reward, with an arm without reward model."""
    if mode == "best_of_n" and arm in (NONE, RANDOM):
        problem, remedy = "best_of_n selects by the reward itself, so it has no arm without it", "compare arms with two_prompts or contrastive"
        raise ConfigError(problem, expected="arm sparserm, a control's name or a folder", found=arm, remedy=remedy)


def score_pairs(model: SparseRM, candidates: Sequence[Candidate], progress: Progress = no_progress) -> ScoredCandidates:
    """Rewards and hidden states of each candidate's two texts. Raises the errors of loading the language model."""
    rewards = np.full((len(candidates), 2), np.nan)
    z = np.zeros((len(candidates), 2, model.parts.d_model), dtype=np.float32)
    for at in range(0, len(candidates), CHUNK):
        progress("score pairs", at, len(candidates))
        chunk = slice(at, at + CHUNK)
        items = [(candidate.prompt, text) for candidate in candidates[chunk] for text in (candidate.chosen, candidate.rejected)]
        by_text, states = score_texts(model, items)
        rewards[chunk], z[chunk] = by_text.reshape(-1, 2), states.reshape(-1, 2, z.shape[2])
    progress("score pairs", len(candidates), len(candidates))
    return ScoredCandidates(rewards=rewards, z=z)


def score_texts(model: SparseRM, items: Sequence[Item]) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n d_model"]]:
    """Rewards and hidden states of items in one batch; an unreadable item has the reward NaN and z = 0."""
    readable, _ = items_of([prompt for prompt, _ in items], [text for _, text in items])
    states, unread = model.reader(list(readable.values()))
    rows = [number for place, number in enumerate(readable) if place not in unread]
    rewards, z = np.full(len(items), np.nan), np.zeros((len(items), model.parts.d_model), dtype=np.float32)
    rewards[rows], z[rows] = model.rewards_of(states), states
    return rewards, z


def decide(
    candidates: Sequence[Candidate],
    scored: ScoredCandidates,
    refused: Mapping[str, str],
    *,
    arm: str,
    min_margin: float,
    seed: int,
    parts: RewardParts,
) -> list[Decision]:
    """The decision on each parsed candidate, in order.

    `scored` has a row for each; `refused`: candidate id -> why DPO can't use it. `parts` are those of the reward model
    that gave the rewards. Where it has latents, a pair that it drops gets those that lowered its margin most.
    """
    ids = [candidate.candidate_id for candidate in candidates]
    margins = dict(zip(ids, map(float, scored.margins), strict=True))
    dropped = {**_dropped([name for name in ids if name not in refused], margins, arm=arm, min_margin=min_margin, seed=seed), **refused}
    by_margin = [row for row, name in enumerate(ids) if dropped.get(name) == MARGIN]
    latents = dict(zip(by_margin, latents_against(parts, scored.z[by_margin]), strict=True))
    return [
        Decision(
            candidate_id=name,
            kept=name not in dropped,
            margin=None if np.isnan(margins[name]) else margins[name],
            reason=dropped.get(name, ""),
            latents=latents.get(row, ()),
        )
        for row, name in enumerate(ids)
    ]


def _dropped(names: Sequence[str], margins: Mapping[str, float], *, arm: str, min_margin: float, seed: int) -> dict[str, str]:
    """The pairs that the arm drops, each with its reason."""
    if arm == NONE:
        return {}
    failing = {name: UNREAD if np.isnan(margins[name]) else MARGIN for name in names if not margins[name] > min_margin}
    if arm == RANDOM:
        drawn = np.random.default_rng(seed).permutation(len(names))[: len(failing)]
        return {names[number]: AT_RANDOM for number in sorted(drawn)}
    return failing


def latents_against(parts: RewardParts, z: Float[np.ndarray, "n 2 d_model"], top: int = TOP) -> list[list[dict[str, Any]]]:
    """For each pair the latents that lowered its margin most.

    Contributions are integrated gradients from the other text to the intended winner. A row holds a latent's
    contribution to the margin (below 0), its standard deviation over the heads of all seeds and whether they agree in
    sign, its side, and its detection AUROC (labels describe the activation, and a projection need not show it). Empty
    lists for a reward model without latents.
    """
    if parts.kind not in KINDS or parts.directions is None or parts.latent_ids is None:
        return [[] for _ in z]
    v = z.astype(np.float64) @ parts.directions.astype(np.float64).T
    shipped = contributions(parts.head, v[:, 1], v[:, 0])
    heads = contributions_by_head(parts.heads, v[:, 1], v[:, 0])
    by_pair = []
    for row in range(len(z)):
        order = [int(i) for i in np.argsort(shipped[row], kind="stable")[:top] if shipped[row, i] < 0]
        agreed, deviation = same_sign(np.concatenate([shipped[None, row], heads[:, row]])), _deviation(heads[:, row])
        by_pair.append([_latent(parts, i, shipped[row, i], deviation[i], bool(agreed[i])) for i in order])
    return by_pair


def _deviation(by_head: Float[np.ndarray, "heads k"]) -> Float[np.ndarray, " k"]:
    return by_head.std(axis=0, ddof=1) if len(by_head) > 1 else np.zeros(by_head.shape[1])


def _latent(parts: RewardParts, i: int, contribution: float, deviation: float, agreed: bool) -> dict[str, Any]:
    assert parts.latent_ids is not None
    table = parts.selection[i] if parts.selection else {}
    figures = {"contribution": float(contribution), "deviation": float(deviation), "agreed": agreed}
    return {"latent_id": int(parts.latent_ids[i]), **figures, **{name: table.get(name) for name in ("side", "detection_auroc")}}


def counts_of(candidates: Sequence[Candidate], decisions: Sequence[Decision]) -> dict[str, Any]:
    """Numbers of pairs by fate and of dropped pairs by reason: kept + dropped = parsed <= generated."""
    kept = sum(decision.kept for decision in decisions)
    reasons = Counter(decision.reason.partition(":")[0] for decision in decisions if not decision.kept)
    counts = {"generated": len(candidates), "parsed": len(decisions), "kept": kept, "dropped": len(decisions) - kept}
    return {**counts, "reasons": dict(sorted(reasons.items()))}
