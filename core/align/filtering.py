"""Which generated pairs DPO may learn from (METHOD.md section 5): those whose intended winner scores higher, by the reward model that filters.

Arms: `sparserm`, a control's name or a folder (that reward model filters); `none` keeps everything; `random` drops as many pairs as the reward model
would, drawn by seed, so that DPO takes equally many steps. Whatever the arm, what DPO can't use (too long, equal answers) is dropped and counted.
Every dropped pair keeps its reason; where a reward model with latents dropped it, the latents that spoke most against its intended winner as well.
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
from core.reward.dialogues import items_of
from core.types import Progress, no_progress

if TYPE_CHECKING:
    from core.reward.model import SparseRM
    from core.reward.parts import RewardParts

SPARSERM, NONE, RANDOM = "sparserm", "none", "random"
MARGIN, AT_RANDOM, UNREAD = "margin", "at random", "unread by the reward model"
TOP = 5  # latents named for a dropped pair
CHUNK = 128  # pairs read between two words to `progress`


@dataclass(frozen=True, kw_only=True)
class Rewarded:
    """What a reward model read of each pair's two texts, the intended winner's first. A text that can't be read has a zero z and the reward NaN."""

    rewards: Float[np.ndarray, "n 2"]
    z: Float[np.ndarray, "n 2 d_model"]

    @property
    def margins(self) -> Float[np.ndarray, " n"]:
        """s_w - s_l; NaN where one of them can't be read."""
        return self.rewards[:, 0] - self.rewards[:, 1]


def judge_folder(arm: str, model: Path) -> Path:
    """The folder of the reward model that scores an arm's pairs: `model`, one of its controls, or another. Raises ConfigError for none of these."""
    if arm in (SPARSERM, NONE, RANDOM):
        return model
    for folder in (model / "controls" / arm, Path(arm).expanduser()):
        if arm and folder.is_dir():  # one without config.json is said to be damaged when it is loaded
            return folder.resolve()
    controls = sorted(path.name for path in (model / "controls").glob("*"))
    raise ConfigError("there is no such arm", expected=" | ".join([SPARSERM, NONE, RANDOM, *controls, "a reward model's folder"]), found=repr(arm))


def check_arm(arm: str, mode: str) -> None:
    """Raises ConfigError where there is nothing to filter: best_of_n lets the reward itself pick the winner."""
    if mode == "best_of_n" and arm in (NONE, RANDOM):
        said = "best_of_n selects by the reward itself, so it has no arm without it"
        raise ConfigError(
            said, expected="arm sparserm, a control's name or a folder", found=arm, remedy="compare arms with two_prompts or contrastive"
        )


def reward_pairs(model: SparseRM, candidates: Sequence[Candidate], progress: Progress = no_progress) -> Rewarded:
    """The rewards of each candidate's two texts and the hidden states they come from. Raises what loading the language model raises."""
    rewards = np.full((len(candidates), 2), np.nan)
    z = np.zeros((len(candidates), 2, model.parts.d_model), dtype=np.float32)
    for at in range(0, len(candidates), CHUNK):
        progress("score pairs", at, len(candidates))
        chunk = candidates[at : at + CHUNK]
        texts = [text for one in chunk for text in (one.chosen, one.rejected)]
        items, _ = items_of([one.prompt for one in chunk for _ in range(2)], texts)
        states, unread = model.reader(list(items.values()))
        read = [number for place, number in enumerate(items) if place not in unread]
        for number, state, reward in zip(read, states, model.rewards_of(states), strict=True):
            z[at + number // 2, number % 2], rewards[at + number // 2, number % 2] = state, reward
    progress("score pairs", len(candidates), len(candidates))
    return Rewarded(rewards=rewards, z=z)


def decide(
    candidates: Sequence[Candidate], rewarded: Rewarded, refused: Mapping[str, str], *, arm: str, min_margin: float, seed: int, parts: RewardParts
) -> list[Decision]:
    """What becomes of each parsed candidate, in order. `rewarded` has a row for each; `refused`: candidate id -> why DPO can't use it.

    `parts` are those of the reward model that gave the rewards: where it has latents, they say why a pair was dropped by it.
    """
    margins = {one.candidate_id: float(margin) for one, margin in zip(candidates, rewarded.margins, strict=True)}
    dropped = {**_dropped([name for name in margins if name not in refused], margins, arm=arm, min_margin=min_margin, seed=seed), **refused}
    by_margin = [row for row, one in enumerate(candidates) if dropped.get(one.candidate_id) == MARGIN]
    latents = dict(zip(by_margin, latents_against(parts, rewarded.z[by_margin]), strict=True))
    return [
        Decision(
            candidate_id=one.candidate_id,
            kept=one.candidate_id not in dropped,
            margin=None if np.isnan(margins[one.candidate_id]) else margins[one.candidate_id],
            reason=dropped.get(one.candidate_id, ""),
            latents=latents.get(row, ()),
        )
        for row, one in enumerate(candidates)
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
    """For each pair the latents whose projections took most from its margin, by integrated gradients from the loser to the intended winner.

    A row a latent: its contribution to the margin (below 0), the deviation over the heads of all seeds and whether they agree in sign, its side, and
    its detection AUROC (labels describe the activation, and a projection need not show it). Empty lists for a reward model without latents.
    """
    from core.explain.attribution import contributions, contributions_by_head, same_sign
    from core.explain.explanation_builder import KINDS

    if parts.kind not in KINDS or parts.directions is None or parts.latent_ids is None:
        return [[] for _ in z]
    v = z.astype(np.float64) @ parts.directions.astype(np.float64).T
    shipped = contributions(parts.head, v[:, 1], v[:, 0])
    heads = contributions_by_head(parts.heads, v[:, 1], v[:, 0])
    found = []
    for row in range(len(z)):
        order = [int(i) for i in np.argsort(shipped[row], kind="stable")[:top] if shipped[row, i] < 0]
        agreed, deviation = same_sign(np.concatenate([shipped[None, row], heads[:, row]])), _deviation(heads[:, row])
        found.append([_latent(parts, i, shipped[row, i], deviation[i], bool(agreed[i])) for i in order])
    return found


def _deviation(by_head: Float[np.ndarray, "heads k"]) -> Float[np.ndarray, " k"]:
    return by_head.std(axis=0, ddof=1) if len(by_head) > 1 else np.zeros(by_head.shape[1])


def _latent(parts: RewardParts, i: int, contribution: float, deviation: float, agreed: bool) -> dict[str, Any]:
    assert parts.latent_ids is not None
    table = parts.selection[i] if parts.selection else {}
    beside = {name: table.get(name) for name in ("side", "detection_auroc")}
    figures = {"contribution": float(contribution), "deviation": float(deviation), "agreed": agreed}
    return {"latent_id": int(parts.latent_ids[i]), **figures, **beside}


def counts_of(candidates: Sequence[Candidate], decisions: Sequence[Decision]) -> dict[str, Any]:
    """Pairs generated, parsed, kept and dropped, and how many were dropped for what: kept + dropped = parsed <= generated."""
    kept = sum(one.kept for one in decisions)
    reasons = Counter(one.reason.partition(":")[0] for one in decisions if not one.kept)
    counts = {"generated": len(candidates), "parsed": len(decisions), "kept": kept, "dropped": len(decisions) - kept}
    return {**counts, "reasons": dict(sorted(reasons.items()))}
