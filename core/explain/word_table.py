"""A reward split exactly over the words of a response and the latents that read them (METHOD.md section 4).

Where the whole response is read, v is the mean over its T tokens of p_t = <z_t, d_j>. With g the effective weights of the
head along the path from b to v (core.explain.attribution), the table

    contribution_tj = g_j (p_tj - b_j) / T

has columns that sum to the latents' contributions and rows that sum to the words'; its total is s(v) - s(b). For a pair
along the path from v_l to v_w the tokens of the chosen response get g_j (p_tj - b_j) / T_w and those of the rejected
response -g_j (p_tj - b_j) / T_l: together they sum to the margin, whatever b is.

A token's state carries what stood before it, so the table says where the reward is read, not what caused it. Only numpy,
in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from core.explain.attribution import active_fraction
from core.reward.head import Head


def effective_weights(head: Head, start: Float[np.ndarray, " k"], end: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """g_j = sum_h w2_h W1_hj alpha_h: the head's mean gradient along the straight path, so g . (end - start) is
    s(end) - s(start).
    """
    first, bias = head.weight_1.astype(np.float64), head.bias_1.astype(np.float64)
    alpha = active_fraction(first @ start.astype(np.float64) + bias, first @ end.astype(np.float64) + bias)
    return (alpha * head.weight_2[0].astype(np.float64)) @ first


def response_table(head: Head, tokens: Float[np.ndarray, "t k"], baseline: Float[np.ndarray, " k"]) -> Float[np.ndarray, "t k"]:
    """Contributions of each token and latent of one response to s(v) - s(baseline), v being the mean of `tokens`."""
    projections = tokens.astype(np.float64)
    return effective_weights(head, baseline, projections.mean(axis=0)) * (projections - baseline) / len(projections)


def pair_tables(
    head: Head, chosen: Float[np.ndarray, "t_chosen k"], rejected: Float[np.ndarray, "t_rejected k"], baseline: Float[np.ndarray, " k"]
) -> tuple[Float[np.ndarray, "t_chosen k"], Float[np.ndarray, "t_rejected k"]]:
    """Contributions of each token and latent of both responses to the margin s(v_w) - s(v_l); the two tables sum to it."""
    winner, loser = chosen.astype(np.float64), rejected.astype(np.float64)
    weights = effective_weights(head, loser.mean(axis=0), winner.mean(axis=0))
    return weights * (winner - baseline) / len(winner), -weights * (loser - baseline) / len(loser)


def summed(table: Float[np.ndarray, "t *k"], unit_of_token: Int[np.ndarray, " t"], n_units: int) -> Float[np.ndarray, "n_units *k"]:
    """Rows added up by word, sentence or line; `unit_of_token` gives each token's unit."""
    sums = np.zeros((n_units, *table.shape[1:]), dtype=np.float64)
    np.add.at(sums, unit_of_token, table)
    return sums


def units_of_tokens(token_starts: Sequence[int], unit_starts: Sequence[int]) -> Int[np.ndarray, " t"]:
    """The unit that each token begins in, from the places in the text where tokens and units begin, both rising. A token
    that begins before the first unit belongs to it.
    """
    return np.maximum(np.searchsorted(np.asarray(unit_starts), np.asarray(token_starts), side="right") - 1, 0)


def running_rewards(head: Head, tokens: Float[np.ndarray, "t k"]) -> Float[np.ndarray, " t"]:
    """The reward of the response up to and with each of its tokens: what an answer that stopped there would get, since
    no token's state depends on later ones."""
    so_far = np.cumsum(tokens.astype(np.float64), axis=0) / np.arange(1, len(tokens) + 1)[:, None]
    return head.reward(so_far)
