"""Explains the pairs of a fit from the folder alone, in milliseconds: without language model and SAE.

Projections and activations of the fit's responses are in the folder (core.reward.fit_responses). A page does this in
its own process, since torch is not imported; a text that is not in the fit needs the model's process (core.serving).
What is made of a folder here is kept for the last few folders, and shared.
"""

from __future__ import annotations

from functools import lru_cache

from core.explain.explanation import PairExplanation
from core.explain.explanation_builder import ExplanationBuilder
from core.explain.switch import Switchboard
from core.latents.label_book import labels_of
from core.reward.folder import KEPT, ModelFolder
from core.reward.folder_content import FolderContent


def builder_of(folder: ModelFolder) -> ExplanationBuilder:
    """Explains responses of this reward model. Raises ConfigError for a control that has no latents with directions."""
    return _builder(folder.content)


@lru_cache(maxsize=KEPT)
def _builder(content: FolderContent) -> ExplanationBuilder:
    return ExplanationBuilder(content.parts, content.responses, content.faithfulness, content.tokens)


def explain_pair(folder: ModelFolder, number: int) -> PairExplanation:
    """A pair of the fit by number, with the labels in their files now. Raises as `ExplanationBuilder.known_pair`."""
    return builder_of(folder).known_pair(number, labels_of(folder))


def switchboard_of(folder: ModelFolder) -> Switchboard:
    """Switches for the latents of this reward model. Raises ConfigError where the folder keeps no held-out pairs."""
    return _switchboard(folder.content)


@lru_cache(maxsize=KEPT)
def _switchboard(content: FolderContent) -> Switchboard:
    return Switchboard(content.parts, content.responses)
