"""What every section of the Response page is drawn for, and what its sections share."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from core.explain.explanation import Explanation, PairExplanation
from core.reward.dialogues import Item
from workbench.frame import state
from workbench.frame.models import FittedModel
from workbench.response.edit_chain import EditStep
from workbench.response.values import ExplainedSubject

NAMES = {"margin": "Margin", "chosen": "Chosen", "rejected": "Rejected", "response": "Response", "edited": "Edited"}
LEFT, RIGHT = 530, 560  # pixels: side by side from about 1,400 on, below one another on narrower screens
LONGEST_TEXT = 200_000  # characters that a person may type in


@dataclass(frozen=True, kw_only=True)
class ResponseView:
    """An explained subject; `name` is what is in view (`margin`, a side, or `edited`), `side` the side that sections
    about one response show, and `edits` the chain of edits that is open, root first.
    """

    model: FittedModel
    explained: ExplainedSubject
    name: str
    side: str
    edits: list[EditStep]

    @property
    def pair_id(self) -> str:
        return self.explained.subject.pair_id

    @property
    def edited(self) -> Explanation | None:
        return self.edits[-1].explanation if self.edits else None

    @property
    def columns(self) -> dict[str, Explanation]:
        """Each side's explanation, and that of the edited text."""
        return {**self.explained.sides, **({} if self.edited is None else {"edited": self.edited})}

    @property
    def response_name(self) -> str:
        """The response that is in view: a side, or `edited`."""
        return "edited" if self.name == "edited" and self.edits else self.side

    @property
    def response(self) -> Explanation:
        """The response in view; of the margin the lower one."""
        return self.columns[self.response_name]

    @property
    def explanation(self) -> Explanation | PairExplanation:
        """What is in view: the margin, or one response."""
        return self.explained.pair if self.name == "margin" and self.explained.pair is not None else self.response

    @property
    def key(self) -> str:
        """Tells the widgets of one response in view from those of another."""
        return f"{self.pair_id} {self.response_name} {self.edits[-1].edit_id if self.edits else ''}"

    def item(self, side: str) -> Item:
        """Prompt and response of a side or of the edited text."""
        return self.columns[side].prompt, self.columns[side].response


def choose_clicked_latent(key: str, picked: list[str]) -> None:
    """Chooses the latent of a mark that has just been clicked. A chart reports its selection at each run, so the last
    one is remembered.
    """
    last, now = st.session_state.get(f"{key} last", ""), "".join(picked[:1])
    st.session_state[f"{key} last"] = now
    if now and now != last and now != state.get("latent"):
        state.choose(latent=now)
        st.rerun()
