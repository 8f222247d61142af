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
from core.reward.recorded_files import TOKENS, record_files
from core.reward.response_tokens import KeptTokens, ResponseTokens, write_tokens
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


def add_model(
    root: Path, *, seed: int = 0, texts: bool = True, pairs: PreferencePairs | None = None, position: str = "response_end", **sizes: Any
) -> str:
    """A reward model of 5 latents in the cache, fitted on nothing; returns its id. At `response_mean` the tokens of all
    held-out responses are kept.
    """
    parts, known = hand_made(seed=seed, **sizes)
    parts = replace(parts, sae=SAE, backbone_config=replace(parts.backbone_config, position=position))
    known = known if pairs is None else with_texts(known, pairs)

    def make(folder: Path, _scratch: Path) -> dict[str, Any]:
        write_parts(parts, folder)
        write_responses(known, folder, texts=texts)
        if position == "response_mean":
            write_tokens(kept_tokens(known), folder / TOKENS)
        record_files(folder)
        about = {"data": "toy.jsonl", "backbone": "toy", "sae": "toy", "layer": 2, "position": position, "n_prompts": {}}
        return {**about, "selection": {"k": 5}}

    config = {"seed": seed, "texts": texts, **sizes, **({} if position == "response_end" else {"position": position})}
    return Store(root).get_or_make("reward_model", 1, config, [], make).fingerprint[:ID_LENGTH]


def kept_tokens(known: FitResponses, spread: float = 1.0) -> KeptTokens:
    """Tokens of every held-out response of pairs with texts: a word is a token, the mean of its projections the response's."""
    assert known.pairs is not None
    texts = {int(row): pair.chosen for row, pair in zip(known.chosen_rows, known.pairs, strict=True)}
    texts |= {int(row): pair.rejected for row, pair in zip(known.rejected_rows, known.pairs, strict=True)}
    rows = sorted(int(row) for row in known.held_out if int(row) in texts)
    tokens = [response_tokens(texts[row], known.projections[row], spread) for row in rows]
    return KeptTokens(
        rows=np.array(rows, dtype=np.int64),
        starts=np.cumsum([0, *map(len, tokens)]),
        offsets=np.concatenate([of_row.offsets for of_row in tokens]).astype(np.int32),
        projections=np.concatenate([of_row.projections for of_row in tokens]).astype(np.float32),
        activations=np.concatenate([of_row.activations for of_row in tokens]).astype(np.float32),
    )


def response_tokens(text: str, v: np.ndarray, spread: float = 1.0) -> ResponseTokens:
    """A token for each word of a text, drawn from the text, with projections of the mean v."""
    offsets = np.array([match.span() for match in re.finditer(r"\s*\S+|\s+$", text)] or [(0, len(text))])
    rng = np.random.default_rng(list(text.encode("utf-8", "surrogatepass")))
    moved = spread * rng.normal(size=(len(offsets), len(v)))
    projections = np.asarray(v, dtype=np.float64) + moved - moved.mean(axis=0)
    return ResponseTokens(offsets=offsets, projections=projections, activations=np.maximum(moved, 0))


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

    def __init__(self, root: Path, name: str = "ready", latents: tuple[int, ...] = (10, 11, 12, 13, 14), position: str = "response_end") -> None:
        self.texts, self.name, self.latents, self.position = KeptTexts(root), name, latents, position
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
        tokens = response_tokens(response, v) if self.position == "response_mean" else None
        return ResponseFeatures(item=(tuple(prompt), response), v=v, f=f, n_tokens=9, n_computed=4 if parent else 9, tokens=tokens)

    def vectors(self, response: str) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(list(response.encode("utf-8", "surrogatepass")))
        return rng.normal(size=len(self.latents)), np.maximum(rng.normal(size=len(self.latents)), 0)

    def tokens(self, prompt: Any, response: str) -> dict[str, Any]:
        words = re.findall(r"\s*\S+|\s+$", response)
        texts, kinds = ["<s>", "asked", *words], ["first", "prompt", *(["response"] * len(words))]
        active = {str(self.latents[0]): [0.0] * 2 + [float(i % 3) for i in range(len(words))]}
        running = [0.1 * i for i in range(len(texts))]
        return {"texts": texts, "kinds": kinds, "activation": active, "running_reward": running, "so_far": self.position == "response_mean"}

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
