"""Projections and activations at the tokens of held-out responses, which a fit keeps beside its reward model."""

from __future__ import annotations

import numpy as np

from core.reward.fit_responses import FitResponses
from core.reward.hidden_states import HiddenStates
from core.reward.projection import activations, project
from core.reward.response_tokens import MOST_BYTES, KeptTokens
from core.reward.selection import Encoder
from core.types import SelectedDirections


def collect_tokens(hidden: HiddenStates, responses: FitResponses, selected: SelectedDirections, sae: Encoder) -> KeptTokens:
    """The tokens of held-out responses, as many as the extraction kept and MOST_BYTES admit. `responses` are those of
    the pairs of `hidden`."""
    assert hidden.tokens is not None  # read at `response_mean`
    rows = np.unique(np.concatenate([hidden.chosen_rows, hidden.rejected_rows]))  # of each of `responses`
    k, states = len(selected.latent_ids), hidden.tokens
    places = states.places(rows[responses.held_out])
    lengths = np.where(places >= 0, np.diff(states.starts)[places], 0) if len(states.rows) else np.zeros(len(places), dtype=np.int64)
    fits = (places >= 0) & (np.cumsum(lengths) <= MOST_BYTES // (8 * max(k, 1)))
    kept, kept_places = responses.held_out[fits], places[fits]
    tokens = np.concatenate([np.zeros(0, dtype=np.int64), *(np.arange(*states.starts[place : place + 2]) for place in kept_places.tolist())])
    z = np.asarray(states.states[tokens], dtype=np.float32)
    return KeptTokens(
        rows=kept.astype(np.int64),
        starts=np.concatenate([[0], np.cumsum(lengths[fits])]).astype(np.int64),
        offsets=states.offsets[tokens],
        projections=project(z, selected.directions),
        activations=activations(z, selected.latent_ids, sae),
    )
