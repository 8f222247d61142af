"""Checks of the sparse autoencoder on the fit's texts and at the position that is read (METHOD.md section 2, SAE
traps).

First positions and template tokens are left out. Intervals: bootstrap over documents, or over prompts at the position
that is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from core.backbone.model import Backbone
from core.doctor.report import FAIL, PASS, WARN, Check, interval_text, judge, listed
from core.sae.autoencoder import SparseAutoencoder
from core.sae.card import Sums, sae_card
from core.sae.corpus import pair_dialogues
from core.statistics.bootstrap import resample_weights
from core.types import PreferencePairs, Progress, no_progress

# [C] An SAE's L0 on these texts differs from that of its release, since the texts differ; an SAE that was loaded
# wrongly (ReLU for JumpReLU, a lost factor) has an L0 that is off by far more.
L0_WARN, L0_FAIL = 2.0, 3.0
L0_READ_WARN, L0_READ_FAIL = 2.0, 5.0
FVU_WARN, FVU_FAIL = 0.6, 1.0
DEAD_WARN, DEAD_FAIL = 0.5, 0.9
RARE = 10
RARE_WARN, RARE_FAIL = 0.1, 0.5
RESAMPLES, CHUNK = 1000, 4096
REMEDIES = {
    "turn_end": "read where the SAE was trained: --position response_end",
    "response_mean": "an SAE that was trained on texts like these: sae train --corpus",
    "response_end": "an SAE that saw more response-final tokens, of texts like these: sae train --response-end-share, --corpus",
}

Figure = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class SAEFigures:
    """An SAE measured on the fit's texts: {value, low, high, n_tokens, n_documents} each, on content tokens and at the
    position that is read.

    `card` has the figures that were measured after its training, or is None; `expected_l0` is the L0 that its release
    or the card states, or None.
    """

    content: Mapping[str, Figure]
    read: Mapping[str, Figure]
    position: str
    expected_l0: float | None
    card: Mapping[str, Figure] | None


def measure_sae(
    sae: SparseAutoencoder,
    backbone: Backbone,
    pairs: PreferencePairs,
    z: Float[np.ndarray, "n d_model"],
    groups: Int[np.ndarray, " n"],
    *,
    layer: int,
    position: str,
    card: Mapping[str, Any] | None,
    progress: Progress = no_progress,
) -> SAEFigures:
    """L0, FVU and dead share on the content tokens of these pairs' dialogues, and L0 and FVU on the held-out states z,
    whose prompts `groups` numbers.
    """
    content = sae_card(
        sae, backbone, list(pair_dialogues(pairs)), layer=layer, context=backbone.config.max_length, last_response_only=True, progress=progress
    )
    measured = (card or {}).get("measured")
    expected = sae.identity.get("expected_l0")
    return SAEFigures(
        content={name: content[name] for name in ("l0", "fvu", "fvu_median_dimension", "dead_share")},
        read=_at_position(sae, z, groups),
        position=position,
        expected_l0=float(expected) if expected else _value(measured, "l0") or (float(sae.k) if sae.k else None),
        card=measured,
    )


def _at_position(sae: SparseAutoencoder, z: Float[np.ndarray, "n d_model"], groups: Int[np.ndarray, " n"]) -> dict[str, dict[str, Any]]:
    """L0 and FVU over the states that are read."""
    units = np.unique(groups, return_inverse=True)[1]
    sums = Sums.empty(int(units.max(initial=0)) + 1, z.shape[1])
    for at in range(0, len(z), CHUNK):
        part = torch.from_numpy(np.array(z[at : at + CHUNK], dtype=np.float32)).to(sae.device)
        f = sae.encode(part)
        sums.add(units[at : at + CHUNK], part, sae.decode(f), (f > 0).sum(1))
    weights = np.concatenate(list(resample_weights(len(sums.counts), RESAMPLES))).astype(np.float64)
    return sums.figures("", weights)


def l0_on_our_tokens(figures: SAEFigures) -> Check:
    """Compares the active latents of a token with the number that the SAE was trained for."""
    content, read, expected = figures.content["l0"]["value"], figures.read["l0"]["value"], figures.expected_l0
    bound = (
        f"within a factor of {L0_WARN} of the expected L0 on content tokens ({L0_FAIL} fails), {L0_READ_WARN} at the position ({L0_READ_FAIL} fails)"
    )
    figure = f"{_text(figures.content['l0'], '.1f')} on content tokens, {_text(figures.read['l0'], '.1f')} at {figures.position}"
    off, off_read = (1.0 if not expected else max(value / expected, expected / max(value, 1e-9)) for value in (content, read))
    status = judge(
        (expected is None, WARN),
        (off > L0_WARN, WARN),
        (off_read > L0_READ_WARN, WARN),
        (off > L0_FAIL, FAIL),
        (off_read > L0_READ_FAIL, FAIL),
        (min(content, read) < 1, FAIL),
    )
    return Check(
        name="L0 on our tokens",
        status=status,
        figure=f"{figure}; expected {'not known' if expected is None else f'{expected:.0f}'}",
        bound=bound + "; below 1 fails",
        reason="an SAE loaded wrongly (threshold, norms, input scale) or read at another layer has an L0 far off, and its activity then means little",
        remedy="" if status == PASS else "check the SAE's layer, its model and its folder's format; compare with its card or release",
        value=content,
        low=figures.content["l0"]["low"],
        high=figures.content["l0"]["high"],
        n=figures.content["l0"]["n_tokens"],
        details={"content": dict(figures.content["l0"]), "read": dict(figures.read["l0"]), "expected": expected},
    )


def fvu_on_our_tokens(figures: SAEFigures) -> Check:
    """The share of z's variance that the SAE does not reconstruct, on content tokens and at the position that a reward
    model reads.
    """
    worst = max((figures.content["fvu"], figures.read["fvu"]), key=lambda figure: figure["value"] if figure["value"] is not None else 0.0)
    beside = [f"{name.replace('_', ' ')} {value:.2f}" for name in ("fvu", "fvu_response_end") if (value := _value(figures.card, name)) is not None]
    figure = f"{_text(figures.content['fvu'], '.2f')} on content tokens, {_text(figures.read['fvu'], '.2f')} at {figures.position}"
    value = worst["value"]
    status = judge((value is None, WARN), ((value or 0.0) > FVU_WARN, WARN), ((value or 0.0) >= FVU_FAIL, FAIL))
    return Check(
        name="FVU on our tokens",
        status=status,
        figure=listed([figure, f"its card: {', '.join(beside)}" if beside else ""]),
        bound=f"above {FVU_WARN} warns, from {FVU_FAIL} on it fails",
        reason="at 1 the mean of z would do as well. Measured on SmolLM2, layer 16: 0.41 at the ends of responses for an SAE that saw such tokens in "
        "training, 0.76 for one that did not, 19 on end-of-turn tokens",
        remedy="" if status == PASS else REMEDIES[figures.position],
        value=value,
        low=worst["low"],
        high=worst["high"],
        n=worst["n_tokens"],
        details={"content": dict(figures.content["fvu"]), "read": dict(figures.read["fvu"]), "median": dict(figures.content["fvu_median_dimension"])},
    )


def dead_latents(figures: SAEFigures, selection: Sequence[Mapping[str, Any]]) -> Check:
    """The share of latents without activity on the fit's texts, and of selected latents with too little. `selection`: a
    reward model's table of latents.
    """
    dead, n = figures.content["dead_share"]["value"], figures.content["dead_share"]["n_tokens"]
    active = [row["n_active"] for row in selection if row.get("n_active") is not None]
    rare = sum(count < RARE for count in active)
    share = rare / len(active) if active else 0.0
    status = judge((dead > DEAD_WARN, WARN), (share > RARE_WARN, WARN), (dead > DEAD_FAIL, FAIL), (share > RARE_FAIL, FAIL))
    return Check(
        name="dead latents",
        status=status,
        figure=f"{dead:.0%} of the latents are active on none of {n:,} content tokens (more tokens, fewer); of {len(active)} selected ones "
        f"{rare} are active in fewer than {RARE} training responses",
        bound=f"above {DEAD_WARN:.0%} warns, above {DEAD_FAIL:.0%} fails; of the selected ones above {RARE_WARN:.0%} and {RARE_FAIL:.0%}",
        reason="an SAE with few active latents on these texts was made for others, and a latent seen a few times separates the sides by luck",
        remedy="" if status == PASS else "an SAE trained on texts like these (sae train --corpus), more pairs, or a smaller --k",
        value=dead,
        n=n,
        details={"rare_selected": rare, "selected": len(active)},
    )


def _text(figure: Figure, form: str) -> str:
    if figure["value"] is None:
        return "not measurable"
    size = f"n = {figure['n_tokens']:,} tokens of {figure['n_documents']:,} prompts"
    return f"{figure['value']:{form}}{interval_text(figure['low'], figure['high'], form)}, {size}"


def _value(figures: Mapping[str, Any] | None, name: str) -> float | None:
    figure = (figures or {}).get(name) or {}
    return figure.get("value")
