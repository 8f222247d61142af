"""Explains what a reward model scores, at whatever depth is asked for (METHOD.md section 4).

    explainer = Explainer(reward_model)       # or reward_model.explain(prompt, response), .explain_pair(pair)
    explainer.explain(prompt, response)       # contributions, parts, interventions, neighbours, the sentence
    explainer.explain_pair(pair)              # both responses and their margin
    explainer.explain_known(number)           # a pair of the fit: from saved figures, without the language model
    explainer.edit(prompt, response, parent=...)             # a changed text, computed from its first changed token on
    explainer.tokens / deletions / gradient(prompt, response)

It reads texts (core.explain.response_reader) and makes explanations of what was read
(core.explain.explanation_builder). `labels` (latent id -> Label) name latents in the sentence: by default the best that
this machine has of the SAE (core.latents.label_book), as they stand when something is explained.
"""

from __future__ import annotations

from core.explain.edits import Edit
from core.explain.explanation import Explanation, PairExplanation
from core.explain.explanation_builder import ExplanationBuilder
from core.explain.response_reader import ResponseReader
from core.latents.label_book import book_of_sae
from core.latents.labels import Labels
from core.reward.dialogues import Dialogue
from core.reward.fit_responses import FitResponses
from core.reward.folder import ModelFolder
from core.reward.model import SparseRM
from core.types import PreferencePair


class Explainer(ResponseReader):
    """Explains one reward model. Raises ConfigError for a control that has no latents with directions."""

    def __init__(self, model: SparseRM, *, labels: Labels | None = None) -> None:
        super().__init__(model)
        self._labels, self._book = labels, book_of_sae(model.parts.sae)
        folder = None if model.folder is None else ModelFolder(model.folder)
        beside = (None, None) if folder is None else (folder.faithfulness, folder.tokens)
        self.builder = ExplanationBuilder(model.parts, model.known, *beside)

    @property
    def labels(self) -> Labels:
        """The names of the latents."""
        if self._labels is not None:
            return self._labels
        return self._book.labels() if self._book else {}

    @property
    def known(self) -> FitResponses | None:
        """The responses of the fit; None where the folder does not hold them."""
        return self.builder.known

    def explain(self, prompt: Dialogue, response: Dialogue) -> Explanation:
        """One response explained. Raises DataError where prompt or response can't be read."""
        return self.builder.response(self.features(prompt, response), self.labels)

    def explain_pair(self, pair: PreferencePair) -> PairExplanation:
        """A pair explained; what both responses begin with is computed once."""
        chosen, rejected = (self.features(list(pair.prompt), text) for text in (pair.chosen, pair.rejected))
        return self.builder.pair(chosen, rejected, self.labels)

    def explain_known(self, number: int) -> PairExplanation:
        """A pair of the fit, by its number there. Raises as `ExplanationBuilder.known_pair`."""
        return self.builder.known_pair(number, self.labels)

    def edit(self, prompt: Dialogue, response: Dialogue, parent: Edit | None = None) -> Edit:
        """A changed prompt or response with the change per latent against its parent; without one, a chain's root."""
        return self.builder.edit(self.features(prompt, response, parent=None if parent is None else parent.item), self.labels, parent)
