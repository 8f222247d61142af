"""What the tests of the Response and Compare pages share: reward models by hand in a cache, and a model's process that is only pretended."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from explain_helpers import hand_made, question
from streamlit.testing.v1 import AppTest

from core.errors import DataError
from core.explain.features import ResponseFeatures
from core.reward.fit_responses import FitResponses, prompt_id, response_id, write_responses
from core.reward.parts_files import write_parts
from core.reward.recorded_files import record_files
from core.runs.store import Store
from core.types import PreferencePair, PreferencePairs
from workbench.frame.kept_texts import KeptTexts
from workbench.frame.model_client import LiveState
from workbench.frame.models import ID_LENGTH

ROOT = Path(__file__).resolve().parents[1]
SAE = {"name": "toy sae", "sha256": "5ae" * 21 + "5", "d_model": 6, "d_sae": 1000}
HOSTILE = {
    "script": "<script>alert(1)</script>",
    "image": '<img src=x onerror="alert(2)">',
    "markdown": "![a](http://example.invalid/a.png) [b](javascript:alert(3)) **bold** # head",
    "latex": "$\\frac{1}{2}$ \\(x\\) $$\\href{http://example.invalid}{y}$$",
    "long": "w" * 10_000,
    "null": "before\x00after",
    "rtl": "abc \u202egnp.exe\u202c \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "emoji": "👩🏽‍🚀 :material/delete: :red[danger] :smile:",
}


def add_model(root: Path, *, seed: int = 0, texts: bool = True, pairs: PreferencePairs | None = None, **sizes: Any) -> str:
    """A reward model of 5 latents in the cache, fitted on nothing; returns its id."""
    parts, known = hand_made(seed=seed, **sizes)
    parts = replace(parts, sae=SAE)
    known = known if pairs is None else with_texts(known, pairs)

    def make(folder: Path, _scratch: Path) -> dict[str, Any]:
        write_parts(parts, folder)
        write_responses(known, folder, texts=texts)
        record_files(folder)
        about = {"data": "toy.jsonl", "backbone": "toy", "sae": "toy", "layer": 2, "position": "response_end", "n_prompts": {}}
        return {**about, "selection": {"k": 5}}

    return Store(root).get_or_make("reward_model", 1, {"seed": seed, "texts": texts, **sizes}, [], make).fingerprint[:ID_LENGTH]


def with_texts(known: FitResponses, pairs: PreferencePairs) -> FitResponses:
    """The same responses, said in other words: `pairs` takes the place of the first ones."""
    held = list(known.pairs or ())
    held[-len(pairs) :] = list(pairs)
    prompts, responses = known.prompt_ids.copy(), known.response_ids.copy()
    for number, pair in enumerate(held):
        for rows, text in ((known.chosen_rows, pair.chosen), (known.rejected_rows, pair.rejected)):
            prompts[rows[number]] = prompt_id(pair.prompt)
            responses[rows[number]] = response_id(pair.prompt, text)
    return replace(known, pairs=PreferencePairs(pairs=tuple(held)), prompt_ids=prompts, response_ids=responses)


def hostile_pairs() -> PreferencePairs:
    """A pair for each text, and last one that holds them all."""
    texts = {**HOSTILE, "everything": "\n".join(HOSTILE.values())}
    pairs = (PreferencePair(pair_id=f"bad {name}", prompt=question(text), chosen=text, rejected=f"{text} again") for name, text in texts.items())
    return PreferencePairs(pairs=tuple(pairs))


class FakeLive:
    """Speaks as workbench.frame.model_client.Live does. `name` is how the process stands; a word is a token; a text's
    projections are drawn from it.
    """

    def __init__(self, root: Path, name: str = "ready", latents: tuple[int, ...] = (10, 11, 12, 13, 14)) -> None:
        self.texts, self.name, self.latents = KeptTexts(root), name, latents
        self.started, self.asked = 0, []

    def state(self) -> LiveState:
        error = {"problem": "the language model is gone", "expected": "a folder", "found": "nothing", "remedy": "fetch it again"}
        return LiveState(name=self.name, text="Loading weights", fraction=0.4, left=3.0, error=error if self.name == "failed" else None)

    def ensure(self, *, again: bool = False) -> LiveState:
        self.started += 1
        self.name = "starting" if self.name == "off" or again else self.name
        return self.state()

    def features(self, prompt: Any, response: str, *, parent: Any = None) -> ResponseFeatures:
        self.asked.append(("features", response))
        v, f = self.vectors(response)
        return ResponseFeatures(item=(tuple(prompt), response), v=v, f=f, n_tokens=9, n_computed=4 if parent else 9)

    def vectors(self, response: str) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(list(response.encode("utf-8", "surrogatepass")))
        return rng.normal(size=len(self.latents)), np.maximum(rng.normal(size=len(self.latents)), 0)

    def tokens(self, prompt: Any, response: str) -> dict[str, Any]:
        words = re.findall(r"\s*\S+|\s+$", response)
        texts, kinds = ["<s>", "asked", *words], ["first", "prompt", *(["response"] * len(words))]
        active = {str(self.latents[0]): [0.0] * 2 + [float(i % 3) for i in range(len(words))]}
        return {"texts": texts, "kinds": kinds, "activation": active, "running_reward": [0.1 * i for i in range(len(texts))]}

    def gradient(self, prompt: Any, response: str) -> dict[str, Any]:
        self.asked.append(("gradient", response))
        return {"norm": [0.5 + i for i in range(len(self.tokens(prompt, response)["texts"]))], "reward": 0.0}

    def deletions(self, prompt: Any, response: str, spans: Any = None) -> list[dict[str, Any]]:
        self.asked.append(("deletions", spans))
        if "unreadable" in response:
            raise DataError("the response can't be read", found="the word unreadable", remedy="leave it out")
        asked = spans or [(0, len(response) // 2), (len(response) // 2, len(response))]
        return [{"start": a, "stop": b, "text": response[a:b], "effect": 0.25} for a, b in asked]


def open_page(name: str, **ids: str) -> AppTest:
    """The page as a browser would open it by a link."""
    at = AppTest.from_file(str(ROOT / "workbench" / "app.py"), default_timeout=120)
    for key, value in ids.items():
        at.query_params[key] = value
    at.switch_page(f"../pages/{name}.py")
    return at.run()


def words(at: AppTest) -> str:
    """All plain text of a page."""
    kinds = (at.text, at.caption, at.markdown, at.error, at.warning)
    return "\n".join(str(element.value) for kind in kinds for element in kind)
