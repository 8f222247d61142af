"""The section Similar: where the response stands among held-out ones, and the training responses most like it."""

from __future__ import annotations

from typing import Any

import numpy as np
import streamlit as st

from core.explain.neighbours import Neighbour
from core.text_safety import visible
from workbench.frame import state
from workbench.frame.downloads import download_rows, show_chart
from workbench.response.charts import reward_place
from workbench.response.response_view import ResponseView
from workbench.response.values import one_line

SIDE_NAMES = {"response": "this response"}


def draw(view: ResponseView) -> None:
    """Where it stands among held-out responses, and the training responses most like it."""
    explanation = view.response
    rewards = {SIDE_NAMES.get(side, side): of_side.reward for side, of_side in view.columns.items()}
    chart = reward_place(view.model.parts.reward_quantiles.tolist(), rewards, explanation.figures.n_held_out)
    show_chart(chart, key=f"response place {view.pair_id}", name=view.model.name)
    if not explanation.neighbours:
        st.caption("No training responses are kept beside this reward model.")
        return
    st.caption("The training responses with the most similar projections. Choose a row to open its pair.")
    rows = [_neighbour(view, neighbour) for neighbour in explanation.neighbours]
    key = f"response similar {view.pair_id} {view.side}"

    def opened() -> None:
        picked = st.session_state[key]["selection"]["rows"]
        if picked and rows[picked[0]]["pair"]:
            state.choose(pair=rows[picked[0]]["pair"])

    numbers = {name: st.column_config.NumberColumn(format="%.2f") for name in ("reward", "distance")}
    shown = {name: [one_line(row[name]) if isinstance(row[name], str) else row[name] for row in rows] for name in rows[0] if name != "pair"}
    st.dataframe(shown, key=key, on_select=opened, selection_mode="single-row", hide_index=True, height="auto", column_config=numbers)
    with st.container(horizontal=True):
        download_rows(rows, name=view.model.name, what="similar", key="response similar files")
    st.caption("Distance is Euclidean, in standardised projections.")


def _neighbour(view: ResponseView, neighbour: Neighbour) -> dict[str, Any]:
    """A row of the table; `pair` is the id of a pair that holds the response, empty where the pairs' texts are not
    kept.
    """
    responses = view.model.find_responses()
    pair_id = ""
    if responses is not None and responses.pairs is not None:
        numbers = np.flatnonzero((responses.chosen_rows == neighbour.row) | (responses.rejected_rows == neighbour.row))
        pair_id = responses.pairs[int(numbers[0])].pair_id if len(numbers) else ""
    return {
        "reward": neighbour.reward,
        "distance": neighbour.distance,
        "judged": " and ".join(neighbour.sides),
        "response": visible(neighbour.response or ""),
        "prompt": visible(neighbour.prompt[-1]["content"] if neighbour.prompt else ""),
        "pair": pair_id,
    }
