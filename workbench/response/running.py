"""The section Running reward: the reward if the answer stopped at each of its tokens, both responses in one chart."""

from __future__ import annotations

import streamlit as st

from core.explain.word_rows import word_rows
from workbench.frame.downloads import show_chart
from workbench.response.charts import running_reward
from workbench.response.readings import tokens_of
from workbench.response.response_view import ResponseView, live_ready
from workbench.response.values import kept_running

NEEDS = "The running reward of these texts needs the language model. It loads in seconds and is stopped when it is idle."
AT_END = "Exploratory: the head was trained on the last token of each answer only."
WHOLE = "Exact: an answer that stopped here would get this reward. The head was trained on whole answers, so the first tokens say little."


def draw(view: ResponseView) -> None:
    lines = {side: kept_running(view.model, view.explained.subject, side) for side in view.columns}
    if any(line is None for line in lines.values()):
        if not live_ready(view, NEEDS, key="running"):
            return
        for side in view.columns:
            words = word_rows(tokens_of(view.model, view.item(side)), None)
            lines[side] = [word.text for word in words], [word.running for word in words]
    st.caption(WHOLE if view.whole else AT_END)
    drawn = {side: line for side, line in lines.items() if line is not None}
    show_chart(running_reward(drawn), key=f"response running {view.key}", name=view.model.name)
