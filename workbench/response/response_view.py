"""What every section of the Response page is drawn for, and what its sections share."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

from core.explain.explanation import Explanation, PairExplanation
from core.reward.dialogues import Item
from core.reward.hidden_states import WHOLE
from workbench.frame import live_panel, state
from workbench.frame.models import FittedModel
from workbench.response.edit_chain import EditStep
from workbench.response.values import ExplainedSubject, row_of

NAMES = {"margin": "Margin", "chosen": "Chosen", "rejected": "Rejected", "response": "Response", "edited": "Edited"}
TITLES = {
    "margin": "Margin",
    "chosen": "Chosen response",
    "rejected": "Rejected response",
    "response": "Response",
    "edited": "Edited response",
}
LEFT, RIGHT = 530, 560  # pixels: side by side from about 1,400 on, below one another on narrower screens
LONGEST_TEXT = 200_000  # characters that a person may type in


@dataclass(frozen=True, kw_only=True)
class ResponseView:
    """An explained subject; `name` is what is in view (`margin`, a side, or `edited`), `side` the side that the sections
    about one response act on (`usual_side` where nobody chose one), and `edits` the chain of edits that is open, root
    first. `waits`: the page already shows how the language model is started, or how far it is.
    """

    model: FittedModel
    explained: ExplainedSubject
    name: str
    side: str
    usual_side: str
    edits: list[EditStep]
    waits: bool = False

    @property
    def pair_id(self) -> str:
        return self.explained.subject.pair_id

    @property
    def edited(self) -> Explanation | None:
        return self.edits[-1].explanation if self.edits else None

    @property
    def chain(self) -> list[EditStep]:
        """The open chain of edits where it began with the side that the sections act on; else none."""
        return self.edits if self.edits and self.edits[0].response == self.explained.subject.texts[self.side] else []

    @property
    def whole(self) -> bool:
        """Whether this reward model reads the whole response, so that a reward splits over its words."""
        return self.model.parts.position == WHOLE

    @property
    def columns(self) -> dict[str, Explanation]:
        """Each side's explanation, and that of the edited text."""
        return {**self.explained.sides, **({} if self.edited is None else {"edited": self.edited})}

    @property
    def panes(self) -> tuple[str, ...]:
        """The texts that stand side by side: both responses; with an open edit the one that was edited and the edited."""
        texts = self.explained.subject.texts
        began = next((side for side in texts if self.edits and texts[side] == self.edits[0].response), "")
        return (began, "edited") if began and self.name in (began, "edited") else tuple(self.explained.sides)

    @property
    def response_name(self) -> str:
        """The response that is in view: a side, or `edited`."""
        return "edited" if self.name == "edited" and self.edits else self.side

    @property
    def response(self) -> Explanation:
        """The response that the sections act on: the one in view, or the side chosen for the margin."""
        return self.columns[self.response_name]

    @property
    def explanation(self) -> Explanation | PairExplanation:
        """What is in view: the margin, or one response."""
        return self.explained.pair if self.name == "margin" and self.explained.pair is not None else self.response

    @property
    def key(self) -> str:
        """Tells the widgets of one response in view from those of another."""
        return f"{self.pair_id} {self.response_name} {self.edits[-1].edit_id if self.edits else ''}"

    def activation(self, latent_id: int) -> float | None:
        """How active a latent is in what is in view (of a margin in either response); None where it is not known."""
        explanations = list(self.explained.sides.values()) if self.name == "margin" else [self.response]
        values = [row_of(explanation, latent_id).get("activation") for explanation in explanations]
        return max((float(value) for value in values if value is not None), default=None)

    def item(self, side: str) -> Item:
        """Prompt and response of a side or of the edited text."""
        return self.columns[side].prompt, self.columns[side].response


def live_ready(view: ResponseView, what: str, *, key: str) -> bool:
    """Whether the language model is up. Where it is not, a section shows the way to it, unless the page does already."""
    if view.waits:
        st.caption(f"{what} Start it above.")
        return False
    return live_panel.ready(view.model, what, key=key)


def choose_latent(view: ResponseView, latent_id: int) -> None:
    """Chooses a latent and colours the words by its share; for callbacks."""
    state.choose(latent=latent_id, response_shade="latent" if view.whole else None)


def choose_clicked_latent(key: str, picked: list[str]) -> None:
    """Chooses the latent of a mark that has just been clicked. A chart reports its selection at each run, so the last
    one is remembered.
    """
    last, now = st.session_state.get(f"{key} last", ""), "".join(picked[:1])
    st.session_state[f"{key} last"] = now
    if now and now != last and now != state.get("latent"):
        state.choose(latent=now)
        st.rerun()
