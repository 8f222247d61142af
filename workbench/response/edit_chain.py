"""Edits of a response, as values: kept as texts under ids that a link can hold, and explained when they are looked at.
No Streamlit here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from core.errors import MissingError
from core.explain.edits import Edit, edit_name
from core.explain.explanation import Explanation
from core.explain.from_folder import builder_of
from core.explain.waterfall import Bar, change_steps
from core.latents.label_book import labels_of
from core.reward.dialogues import Item
from workbench.frame.model_client import live_model
from workbench.frame.models import FittedModel
from workbench.response.readings import features_of, hashable
from workbench.response.values import Subject


@dataclass(frozen=True, kw_only=True)
class EditStep:
    """A text of a chain of edits, under the id it is kept by."""

    edit_id: str
    edit: Edit

    @property
    def explanation(self) -> Explanation:
        return self.edit.explanation

    @property
    def response(self) -> str:
        return self.edit.explanation.response


def keep_edit(model: FittedModel, item: Item, response: str, parent_id: str) -> str:
    """Keeps an edit of `item`, after `parent_id` (empty: the first one), and returns its id. Needs no process: it is
    scored when it is looked at.

    The response is kept as the reward model will read it, without outer white space, since the id is made of the text.
    """
    texts = live_model(str(model.path), model.root).texts
    prompt, response = list(item[0]), response.strip()
    if not parent_id:
        parent_id = edit_name("", prompt, item[1])
        texts.keep_edit(parent_id, prompt, item[1], None)
    edit_id = edit_name(parent_id, prompt, response)
    texts.keep_edit(edit_id, prompt, response, parent_id)
    return edit_id


def edited_side(model: FittedModel, subject: Subject, edit_id: str) -> str:
    """The side of the subject that this edit began with; empty where it is an edit of something else, or is not kept
    here.
    """
    chain = _kept_chain(model, edit_id)
    if not chain or hashable((tuple(chain[0]["prompt"]), "")) != hashable((subject.prompt, "")):
        return ""
    return next((side for side, text in subject.texts.items() if text == chain[0]["response"]), "")


def edit_steps(model: FittedModel, edit_id: str) -> list[EditStep]:
    """The chain explained, root first; the process must be ready. Raises SparseRMError."""
    builder, labels = builder_of(model), labels_of(model)
    steps: list[EditStep] = []
    for text in _kept_chain(model, edit_id):
        parent = steps[-1].edit if steps else None
        features = features_of(model, (tuple(text["prompt"]), text["response"]), None if parent is None else parent.item)
        steps.append(EditStep(edit_id=text["edit_id"], edit=builder.edit(features, labels, parent)))
    return steps


def change_bars(model: FittedModel, before: Explanation, after: Explanation) -> list[Bar]:
    """What each latent did to the reward between two texts: the bars sum to the change."""
    builder = builder_of(model)
    return change_steps(builder.path(before.attribution, after.attribution), builder.figures.groups, labels_of(model))


def _kept_chain(model: FittedModel, edit_id: str) -> list[dict[str, Any]]:
    """The texts from the root to this edit; none where it is not kept here."""
    try:
        return live_model(str(model.path), model.root).texts.chain(edit_id) if edit_id else []
    except MissingError:
        return []
