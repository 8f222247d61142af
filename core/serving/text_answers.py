"""Answers about texts, computed in the model's thread with the language model and the SAE. It imports torch, so it is
imported there, while /health answers already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from core.backbone.model import Backbone
from core.errors import DataError
from core.explain.explainer import Explainer
from core.explain.explanation import Explanation
from core.explain.features import item_of
from core.explain.own_text import OwnText, latents_of, read_text
from core.explain.switch import Switchboard
from core.reward.dialogues import Item
from core.reward.model import BackboneReader, SparseRM
from core.serving.bodies import Answer, Body, dialogue, spans, whole_numbers
from core.serving.queries import Queries
from core.types import PreferencePair

MOST_TOP = 100  # latents of highest activation


def features(body: Body, explainer: Explainer) -> Answer:
    """v and f of a response; with `tokens` also the response token by token."""
    prompt, response = dialogue(body)
    parent = None if body.get("parent") is None else item_of(*dialogue(body["parent"]))
    read = explainer.features(prompt, response, parent=parent)
    return {"features": read.to_json(), "tokens": explainer.tokens(prompt, response).to_json() if body.get("tokens") else None}


def explain(body: Body, explainer: Explainer) -> Answer:
    """A response, or a pair (`chosen` and `rejected`), explained."""
    change = None
    if "response" in body:
        kind, texts = "response", {"response": item_of(*dialogue(body))}
        parent = None if body.get("parent") is None else explainer.edit(*dialogue(body["parent"]))
        edit = explainer.edit(*dialogue(body), parent)
        explanation, looked_at = edit.explanation.to_json(), edit.explanation
        change = None if edit.change is None else edit.change.to_json()
    else:
        kind, texts = "pair", {side: item_of(body.get("prompt", ""), body.get(side, "")) for side in ("chosen", "rejected")}
        prompt, chosen = texts["chosen"]
        pair = explainer.explain_pair(PreferencePair(pair_id="given", prompt=prompt, chosen=chosen, rejected=texts["rejected"][1]))
        explanation, looked_at = pair.to_json(), pair.chosen
    wanted = body.get("tokens", True)
    tokens = {side: {"tokens": explainer.tokens(list(item[0]), item[1]).to_json() if wanted else None} for side, item in texts.items()}
    return {"kind": kind, "explanation": explanation, "change": change, **_switched_off(body, explainer, looked_at), **tokens}


def _switched_off(body: Body, explainer: Explainer, explanation: Explanation) -> Answer:
    """The response's reward and the held-out accuracy with the latents of `off` held at their means, and with none."""
    latents = whole_numbers(body, "off")
    if not latents:
        return {"off": None, "all_on": None}
    board, v = Switchboard(explainer.parts, explainer.known), explanation.attribution.projection
    return {"off": board.off(latents, v).to_json(), "all_on": board.off((), v).to_json()}


def deletions(body: Body, explainer: Explainer) -> Answer:
    """What each span of characters, or each sentence, adds to the reward."""
    return {"deletions": [deletion.to_json() for deletion in explainer.deletions(*dialogue(body), spans(body))]}


def gradient(body: Body, explainer: Explainer) -> Answer:
    """Gradient norms, a number a token."""
    return {"gradient": explainer.gradient(*dialogue(body)).to_json()}


def activations(body: Body, explainer: Explainer) -> Answer:
    """Latents of the whole SAE on a text: as a user's message, or as the answer to `prompt`."""
    text, top = body.get("text"), body.get("top", 10)
    if not isinstance(text, str) or not isinstance(top, int):
        raise DataError("there is no text to read", expected="text, and how many latents as `top`")
    if body.get("prompt") is None:
        own_text = read_text(explainer.backbone, text, layer=explainer.parts.layer)
    else:
        reading = explainer.read(item_of(body["prompt"], text))
        own_text = OwnText(texts=reading.texts, kinds=reading.kinds, states=reading.states)
    return latents_of(own_text, explainer.model.sae, whole_numbers(body, "latents"), top=min(top, MOST_TOP))


ANSWERS: Mapping[str, Callable[[Body, Explainer], Answer]] = {
    "features": features,
    "explain": explain,
    "deletions": deletions,
    "gradient": gradient,
    "activations": activations,
}


def load_model(folder: Path, device: str) -> SparseRM:
    """The reward model, without its language model and SAE. Raises as `SparseRM.load`."""
    return SparseRM.load(folder, device=device)


def backbone_of(model: SparseRM) -> Backbone:
    """The language model, loaded when it is first asked for."""
    assert isinstance(model.reader, BackboneReader)  # a model that was loaded has one
    return model.reader.backbone


def divide_queries(model: SparseRM, queries: list[Any], prompts: list[Any] | None) -> list[Item | str]:
    """OpenRLHF's texts as prompt and response, or why one can't be divided (core.serving.queries)."""
    return Queries(backbone_of(model)).divide(queries, prompts)
