"""What can be asked of a live reward model: each request as JSON in, JSON out, in the shapes of `sparserm explain --json`.

    POST /score         {prompts, responses}                        {rewards, refused, shortened}
    POST /score_pairs   {pairs: [{prompt, chosen, rejected}]}       {chosen, rejected, margin, probability, refused, shortened}
    POST /explain       {prompt, response} or {prompt, chosen, rejected}, tokens     {kind, explanation, response | chosen, rejected: {tokens}}
    POST /tokens        {prompt, response}                          {tokens}
    POST /deletions     {prompt, response, spans}                   {deletions}
    POST /gradient      {prompt, response}                          {gradient}
    POST /edit          {prompt, response, parent_id, tokens}       the edit, its chain in `steps`, its tokens
    POST /switch        {latents, prompt, response}                 {off, all_on}
    POST /activations   {text, latents, top, prompt}                {texts, kinds, activation, top}
    POST /get_reward    OpenRLHF: {query, prompts, labels}          {rewards, scores, extra_logs}

A prompt is a text or a list of messages. Where a prompt or a response can't be read, that response has no reward (null) and a reason;
OpenRLHF wants a number, and gets the lowest that held-out responses have, marked as `unreadable` in `extra_logs`. `scores` there are
percentiles among held-out responses, from 0 to 1. `shortened` names the responses that were read without leading turns of their prompt, to
fit the model's length.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import ConfigError, DataError
from core.serving.engine import Engine
from core.serving.texts import Texts

if TYPE_CHECKING:
    from core.explain.edits import Edit
    from core.explain.explainer import Explainer
    from core.explain.switch import Switchboard
    from core.reward.dialogues import Item

MOST_RESPONSES = 4096  # of one request
EDITS = 64  # kept with their explanations
Asked = Mapping[str, Any]
Answer = dict[str, Any]


class Answers:
    """Answers requests with the engine's thread. Raises SparseRMError for what can't be answered, engine.Busy where too much waits."""

    def __init__(self, engine: Engine, texts: Texts) -> None:
        self.engine, self.texts = engine, texts
        self._edits: OrderedDict[str, Edit] = OrderedDict()
        self._switches: Switchboard | None = None

    def routes(self) -> dict[str, Callable[[Asked], Awaitable[bytes]]]:
        """What answers which path."""
        scored = {"score": self.score, "score_pairs": self.score_pairs, "get_reward": self.get_reward}
        explained = ("explain", "tokens", "deletions", "gradient", "edit", "switch", "activations")
        return {**scored, **{name: self._in_thread(getattr(self, name)) for name in explained}}

    def _in_thread(self, answer: Callable[[Asked, Explainer], Answer]) -> Callable[[Asked], Awaitable[bytes]]:
        async def answered(asked: Asked) -> bytes:
            return await asyncio.wrap_future(self.engine.submit(lambda: packed(answer(asked, self._explainer()))))

        return answered

    def _explainer(self) -> Explainer:
        if self.engine.explainer is None:
            raise ConfigError("this reward model can't be explained by latents: it can only score", found=self.engine.model.parts.kind)
        return self.engine.explainer

    # --- scoring ---

    async def score(self, asked: Asked) -> bytes:
        prompts, responses = listed(asked, "prompts"), listed(asked, "responses")
        rewards, refused = await self._rewards(prompts, responses)
        reasons = {str(number): reason for number, reason in sorted(refused.items())}
        shortened = [str(number) for number in await self._shortened(prompts, responses, refused)]
        return packed({"rewards": _numbers(rewards), "refused": reasons, "shortened": shortened})

    async def score_pairs(self, asked: Asked) -> bytes:
        pairs = listed(asked, "pairs")
        if not all(isinstance(pair, Mapping) for pair in pairs):
            raise DataError("pairs can't be read", expected="objects with prompt, chosen and rejected")
        sides = [(pair.get("prompt"), pair.get(side)) for pair in pairs for side in ("chosen", "rejected")]
        prompts, responses = [prompt for prompt, _ in sides], [text for _, text in sides]
        rewards, refused = await self._rewards(prompts, responses)
        shortened = [_side(number) for number in await self._shortened(prompts, responses, refused)]
        margin = rewards[0::2] - rewards[1::2]
        columns = {"chosen": rewards[0::2], "rejected": rewards[1::2], "margin": margin}
        probability = 1 / (1 + np.exp(-self.engine.model.parts.margin_scale * margin))
        reasons = {_side(number): reason for number, reason in sorted(refused.items())}
        numbers = {**{name: _numbers(values) for name, values in columns.items()}, "probability": _numbers(probability)}
        return packed({**numbers, "refused": reasons, "shortened": shortened})

    async def get_reward(self, asked: Asked) -> bytes:
        queries, prompts = several(asked, "query"), several(asked, "prompts") if asked.get("prompts") is not None else None
        if prompts is not None and len(prompts) != len(queries):
            raise DataError("query and prompts must be lists of equal length", found=f"{len(queries)} and {len(prompts)}")
        divided = await asyncio.wrap_future(self.engine.submit(lambda: self._divided(queries, prompts), rank=1))
        readable = [number for number, item in enumerate(divided) if not isinstance(item, str)]
        items = [item for item in divided if not isinstance(item, str)]
        rewards = np.full(len(queries), np.nan)
        rewards[readable], _ = await self._rewards([list(prompt) for prompt, _ in items], [response for _, response in items])
        lost = np.isnan(rewards)
        quantiles = self.engine.model.parts.reward_quantiles
        rewards = np.where(lost, float(quantiles[0]), rewards)
        scores = np.interp(rewards, quantiles.astype(np.float64), np.linspace(0.0, 1.0, len(quantiles)))
        return packed({"rewards": rewards.tolist(), "scores": scores.tolist(), "extra_logs": {"unreadable": lost.astype(float).tolist()}})

    def _divided(self, queries: list[Any], prompts: list[Any] | None) -> list[Item | str]:
        from core.reward.model import BackboneReader
        from core.serving.queries import Queries

        reader = self.engine.model.reader
        assert isinstance(reader, BackboneReader)  # a model that was loaded has one
        return Queries(reader.backbone).divide(queries, prompts)

    async def _shortened(self, prompts: list[Any], responses: list[Any], refused: Mapping[int, str]) -> list[int]:
        """Numbers of the scored responses whose prompts lost leading turns. The model's thread is asked only where a prompt has turns."""
        if not any(isinstance(prompt, list) and len(prompt) > 1 for prompt in prompts):
            return []
        numbers = await asyncio.wrap_future(self.engine.submit(lambda: self.engine.model.shortened(prompts, responses), rank=1))
        return [number for number in numbers if number not in refused]

    async def _rewards(self, prompts: list[Any], responses: list[Any]) -> tuple[np.ndarray, dict[int, str]]:
        if len(prompts) != len(responses):
            raise DataError("prompts and responses must be lists of equal length", found=f"{len(prompts)} and {len(responses)}")
        if len(prompts) > MOST_RESPONSES:
            raise DataError("too many responses at once", expected=f"at most {MOST_RESPONSES}", found=str(len(prompts)))
        rewards, refused = [np.zeros(0)], dict[int, str]()
        pieces = await asyncio.gather(*map(asyncio.wrap_future, self.engine.score(prompts, responses)))
        for values, reasons in pieces:
            at = sum(map(len, rewards))
            rewards.append(values)
            refused |= {at + number: reason for number, reason in reasons.items()}
        return np.concatenate(rewards), refused

    # --- explaining: in the model's thread ---

    def explain(self, asked: Asked, explainer: Explainer) -> Answer:
        from core.explain.features import item_of
        from core.types import PreferencePair

        wanted = asked.get("tokens", True)
        if "response" in asked:
            item = item_of(asked.get("prompt", ""), asked["response"])
            sides, kind = {"response": item}, "response"
            found: Any = explainer.explain(list(item[0]), item[1])
        else:
            sides = {side: item_of(asked.get("prompt", ""), asked.get(side, "")) for side in ("chosen", "rejected")}
            kind, (prompt, chosen) = "pair", sides["chosen"]
            found = explainer.explain_pair(PreferencePair(pair_id="given", prompt=prompt, chosen=chosen, rejected=sides["rejected"][1]))
        tokens = {side: {"tokens": explainer.tokens(list(one[0]), one[1]).to_json() if wanted else None} for side, one in sides.items()}
        return {"kind": kind, "explanation": found.to_json(), **tokens}

    def tokens(self, asked: Asked, explainer: Explainer) -> Answer:
        return {"tokens": explainer.tokens(*dialogue(asked)).to_json()}

    def deletions(self, asked: Asked, explainer: Explainer) -> Answer:
        spans = None if asked.get("spans") is None else [span(one) for one in listed(asked, "spans")]
        return {"deletions": [one.to_json() for one in explainer.deletions(*dialogue(asked), spans)]}

    def gradient(self, asked: Asked, explainer: Explainer) -> Answer:
        return {"gradient": explainer.gradient(*dialogue(asked)).to_json()}

    def switch(self, asked: Asked, explainer: Explainer) -> Answer:
        from core.explain.features import item_of
        from core.explain.switch import Switchboard

        v = None
        if asked.get("response") is not None:
            z = explainer.read(item_of(*dialogue(asked))).z
            v = z.astype(np.float64) @ explainer.builder.directions.T
        latents = whole_numbers(asked, "latents")
        if self._switches is None:
            self._switches = Switchboard(explainer.parts, explainer.known)
        return {"off": self._switches.off(latents, v).to_json(), "all_on": self._switches.off((), v).to_json()}

    def activations(self, asked: Asked, explainer: Explainer) -> Answer:
        from core.explain.features import item_of
        from core.explain.own_text import OwnText, latents_of, read_text

        text, top = asked.get("text"), asked.get("top", 10)
        if not isinstance(text, str) or not isinstance(top, int):
            raise DataError("there is no text to read", expected="text, and how many latents as `top`")
        if asked.get("prompt") is None:
            own = read_text(explainer.backbone, text, layer=explainer.parts.layer)
        else:
            reading = explainer.read(item_of(asked["prompt"], text))
            own = OwnText(texts=reading.texts, kinds=reading.kinds, states=reading.states)
        return latents_of(own, explainer.model.sae, whole_numbers(asked, "latents"), top=min(top, 100))

    # --- edits ---

    def edit(self, asked: Asked, explainer: Explainer) -> Answer:
        parent_id = asked.get("parent_id")
        parent = None if parent_id is None else self._edit(str(parent_id), explainer)
        found = self._keep(explainer.edit(*dialogue(asked), parent))
        explanation = found.explanation
        tokens = explainer.tokens(list(explanation.prompt), explanation.response).to_json() if asked.get("tokens", True) else None
        steps = [_step(edit) for edit in found.chain]
        return {**found.to_json(), "tokens": tokens, "steps": steps}

    def _edit(self, edit_id: str, explainer: Explainer) -> Edit:
        """An edit by its id: from memory, else made again from the texts that are kept."""
        found = self._edits.get(edit_id)
        if found is None:
            for text in self.texts.chain(edit_id):
                found = self._keep(explainer.edit(text["prompt"], text["response"], found))
            assert found is not None  # a chain has a root
        # Under the id that was asked for, too: a text that was kept with outer white space is read without, and then has another name.
        self._edits[edit_id] = found
        self._edits.move_to_end(edit_id)
        return found

    def _keep(self, edit: Edit) -> Edit:
        self._edits[edit.edit_id] = edit
        self._edits.move_to_end(edit.edit_id)
        while len(self._edits) > EDITS:
            self._edits.popitem(last=False)
        self.texts.keep_edit(edit.edit_id, edit.explanation.prompt, edit.explanation.response, edit.parent_id)
        return edit


def _side(number: int) -> str:
    """`3.chosen`: the pair and side of a response, where chosen and rejected ones alternate."""
    return f"{number // 2}.{('chosen', 'rejected')[number % 2]}"


def _step(edit: Edit) -> Answer:
    one = edit.explanation
    return {"edit_id": edit.edit_id, "prompt": list(one.prompt), "response": one.response, "reward": one.reward}


# --- what was asked --------------------------------------------------------------------------------------------------


def listed(asked: Asked, name: str) -> list[Any]:
    """A list. Raises DataError where it is none."""
    found = asked.get(name)
    if not isinstance(found, list):
        raise DataError(f"{name} can't be read", expected="a list", found=type(found).__name__)
    return found


def several(asked: Asked, name: str) -> list[Any]:
    """A list; one text stands for itself. Raises DataError."""
    return [asked[name]] if isinstance(asked.get(name), str) else listed(asked, name)


def whole_numbers(asked: Asked, name: str) -> list[int]:
    """A list of whole numbers, empty where it is not given. Raises DataError."""
    found = listed(asked, name) if asked.get(name) is not None else []
    if not all(isinstance(one, int) and not isinstance(one, bool) and abs(one) < 2**31 for one in found):
        raise DataError(f"{name} can't be read", expected="whole numbers")
    return found


def span(one: Any) -> tuple[int, int]:
    """Two whole numbers. Raises DataError."""
    if not isinstance(one, list) or len(one) != 2 or not all(isinstance(end, int) and not isinstance(end, bool) for end in one):
        raise DataError("spans can't be read", expected="[start, stop] in characters of the response")
    return one[0], one[1]


def dialogue(asked: Asked) -> tuple[Any, Any]:
    """Prompt and response: a text or messages each. Raises DataError where one is missing."""
    for name in ("prompt", "response"):
        if not isinstance(asked.get(name), (str, list)):
            raise DataError(f"{name} can't be read", expected="a text, or messages {role, content}", found=type(asked.get(name)).__name__)
    return asked["prompt"], asked["response"]


def packed(answer: Answer) -> bytes:
    """JSON, made where it costs nobody else: in the model's thread."""
    return json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]
