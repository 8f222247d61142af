"""The requests that a live reward model answers: JSON in, JSON out.

    POST /score         {prompts, responses}                       {rewards, refused, shortened}
    POST /score_pairs   {pairs: [{prompt, chosen, rejected}]}      {chosen, rejected, margin, probability, refused, shortened}
    POST /get_reward    OpenRLHF: {query, prompts, labels}         {rewards, scores, extra_logs}
    POST /features      {prompt, response, parent, tokens}         {features, tokens}
    POST /deletions     {prompt, response, spans}                  {deletions}
    POST /gradient      {prompt, response}                         {gradient}
    POST /activations   {text, latents, top, prompt}               {texts, kinds, activation, top}
    POST /explain       {prompt, response, parent} or              {kind, explanation, change, off, all_on,
                        {prompt, chosen, rejected}; off, tokens     response or chosen and rejected: {tokens}}

Pages ask for /features: v and f of a text (core.explain.features). They make the explanation themselves, with the code
that explains the pairs of the fit. /explain does the same in this process, for callers that are not written in Python;
its answer has the shapes of `sparserm explain --json`. `parent` ({prompt, response}) is the text that this one was made
from: what the two begin with is computed once, and /explain adds the change by latent. `off` lists latents to hold at
their training means. core.serving.text_answers computes what is not a reward alone.

A prompt is a text or a list of messages. A prompt or response that can't be read has no reward (null) but a reason;
OpenRLHF needs a number, and gets the lowest reward of held-out responses, marked as `unreadable` in `extra_logs`.
`scores` there are percentiles among held-out responses, from 0 to 1. `shortened` lists the responses that were read
without leading turns of their prompt, to fit the model's length.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np

from core.errors import ConfigError, DataError
from core.reward.dialogues import Item
from core.serving.bodies import Answer, Body, listed, several
from core.serving.engine import Engine

MOST_RESPONSES = 4096  # of one request
ABOUT_TEXTS = ("features", "explain", "deletions", "gradient", "activations")  # core.serving.text_answers


class Answers:
    """Answers requests with the engine's thread.

    Raises SparseRMError for a request that can't be answered, engine.Busy where too much waits.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def routes(self) -> dict[str, Callable[[Body], Awaitable[bytes]]]:
        """The answering function of each path."""
        scores = {"score": self.score, "score_pairs": self.score_pairs, "get_reward": self.get_reward}
        return {**scores, **{name: self._about_text(name) for name in ABOUT_TEXTS}}

    def _about_text(self, name: str) -> Callable[[Body], Awaitable[bytes]]:
        def answer(body: Body) -> bytes:
            from core.serving.text_answers import ANSWERS  # loaded by now, in this thread: it imports torch

            if self.engine.explainer is None:
                problem = "this reward model can't be explained by latents: it can only score"
                raise ConfigError(problem, found=self.engine.model.parts.kind)
            return packed(ANSWERS[name](body, self.engine.explainer))

        async def answered(body: Body) -> bytes:
            return await asyncio.wrap_future(self.engine.submit(lambda: answer(body)))

        return answered

    # --- scoring ---

    async def score(self, body: Body) -> bytes:
        prompts, responses = listed(body, "prompts"), listed(body, "responses")
        rewards, refused = await self._rewards(prompts, responses)
        reasons = {str(number): reason for number, reason in sorted(refused.items())}
        shortened = [str(number) for number in await self._shortened(prompts, responses, refused)]
        return packed({"rewards": _numbers(rewards), "refused": reasons, "shortened": shortened})

    async def score_pairs(self, body: Body) -> bytes:
        pairs = listed(body, "pairs")
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

    async def get_reward(self, body: Body) -> bytes:
        queries, prompts = several(body, "query"), several(body, "prompts") if body.get("prompts") is not None else None
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
        from core.serving.text_answers import divide_queries  # loaded by now, in this thread: it imports torch

        return divide_queries(self.engine.model, queries, prompts)

    async def _shortened(self, prompts: list[Any], responses: list[Any], refused: Mapping[int, str]) -> list[int]:
        """Numbers of the scored responses whose prompts lost leading turns. The model's thread is asked only where a
        prompt has turns.
        """
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


def _side(number: int) -> str:
    """`3.chosen`: the pair and side of a response, where chosen and rejected ones alternate."""
    return f"{number // 2}.{('chosen', 'rejected')[number % 2]}"


def packed(answer: Answer) -> bytes:
    """The answer as JSON. Called in the model's thread, so that no other request waits for it."""
    return json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]
