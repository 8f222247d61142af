"""Parts of the live server by themselves: OpenRLHF's texts taken apart, what is scored together, progress, and what a person kept."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from backbone_helpers import DATED, GEMMA_LIKE, LLAMA2_LIKE, NEMO_LIKE, QWEN_LIKE, R1_LIKE, tiny_tokenizer
from model_helpers import FakeReader, make_parts, quick_tiny

from core.backbone.model import Backbone, load_backbone
from core.backbone.presets import preset
from core.backbone.thinking import without_empty_block
from core.errors import ConfigError, StoreError, error_from_dict, error_to_dict
from core.explain.from_folder import explain_pair, switchboard_of
from core.fit.pipeline import fit
from core.reward.folder import ModelFolder
from core.reward.model import SparseRM
from core.runs.store import Store
from core.serving.answers import Answers
from core.serving.engine import MOST_WAITING, PHASES, PIECE, Busy, Engine, Loading
from core.serving.queries import Queries
from core.types import Message

CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"


@pytest.fixture(autouse=True)
def _uncapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine caps the memory of its process; here that is the tests', whose browsers would inherit it and crash."""
    monkeypatch.setattr("core.serving.engine.cap_memory", lambda _more: None)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(preset("tiny").backbone, depth=2)


# --- texts of trainers ------------------------------------------------------------------------------------------------

DIALOGUES: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "How long?"}],
    [{"role": "system", "content": "Be short."}, {"role": "user", "content": "How\n\nlong?"}],
    [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "(.*?) [x] \\d"}],
    [{"role": "user", "content": "assistant\nuser"}],
    [{"role": "user", "content": "שלום 🙂"}],
]


def rendered(backbone: Backbone, messages: list[dict[str, str]]) -> str:
    return backbone.template.text([*messages, {"role": "assistant", "content": "\ue005"}]).partition("\ue005")[0]  # type: ignore[list-item]


@pytest.mark.parametrize("messages", DIALOGUES)
@pytest.mark.parametrize("end", ["", "<|im_end|>", "<|im_end|>\n", "<|im_end|>\n<|endoftext|><|endoftext|>"])
@pytest.mark.parametrize("with_prompts", [True, False])
def test_a_rendered_dialogue_is_taken_apart(backbone: Backbone, messages: list[dict[str, str]], end: str, with_prompts: bool) -> None:
    prompt = rendered(backbone, messages)
    item = Queries(backbone).divide([f"{prompt}Ten minutes.\nOr so.{end}"], [prompt] if with_prompts else None)
    assert item == [(tuple(messages), "Ten minutes.\nOr so.")]


# Templates with the habits of real ones, how a policy's text begins in them and how it ends; the thinking block of an answer stays with it.
TEMPLATES = {
    "chatml": (CHATML, "", "<|im_end|>\n"),
    "gemma": (GEMMA_LIKE, "", "<|im_end|>"),
    "nemo": (NEMO_LIKE, "", "<|im_end|>"),
    "llama2": (LLAMA2_LIKE, "", " <|im_end|><|endoftext|>"),
    "qwen": (QWEN_LIKE, "", "<|im_end|>"),
    "qwen, thinking off": (QWEN_LIKE, "<think>\n\n</think>\n\n", "<|im_end|>"),
    "r1": (R1_LIKE, "<think>\n", "<|im_end|>"),
    "dated": (DATED, "", "<|im_end|>"),
}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("with_prompts", [True, False])
def test_templates_in_the_wild_are_taken_apart(backbone: Backbone, name: str, number: int, with_prompts: bool) -> None:
    source, opened, end = TEMPLATES[name]
    tokenizer = tiny_tokenizer(source, real_bos=name in ("gemma", "r1"))
    other = Backbone(backbone.model, tokenizer, replace(backbone.config, template_date="1 May 2020"), backbone.identity)
    messages = DIALOGUES[number] if not (name == "gemma" and number == 1) else DIALOGUES[0]
    policy = Backbone(backbone.model, tokenizer, replace(backbone.config, template_date="29 Nov 2026"), backbone.identity)
    prompt = without_empty_block(rendered(policy, messages)).rstrip(" ") + opened
    answer = "It is hot.</think>\n\nTen minutes." if name == "r1" else "Ten minutes.\nOr so."
    expected = opened + answer if name == "r1" else answer
    ((prompt_messages, response),) = Queries(other).divide([prompt + answer + end], [prompt] if with_prompts else None)
    assert response == expected.strip()
    whole = [Message(role="assistant", content=response)]
    assert other.template.text([*prompt_messages, *whole]) == other.template.text([*messages, *whole])  # type: ignore[list-item]


def test_a_plain_prompt_is_a_users_message(backbone: Backbone) -> None:
    item = Queries(backbone).divide(["How long? Ten minutes.</s>"], ["How long?"])
    assert item == [(({"role": "user", "content": "How long?"},), "Ten minutes.")]


@pytest.mark.parametrize(
    ("query", "prompt", "said"),
    [
        ("<start_of_turn>user\nHow?<end_of_turn>\n<start_of_turn>model\nSo.", "<start_of_turn>user\nHow?<end_of_turn>\n", "another model's"),
        ("[INST] How? [/INST] So.", "[INST] How? [/INST]", "another model's"),
        ("How long? Ten minutes.", None, "can't be divided"),
        ("How long? Ten minutes.", "Something else", "can't be divided"),
    ],
)
def test_what_is_unclear_is_refused_and_the_others_go_on(backbone: Backbone, query: str, prompt: str | None, said: str) -> None:
    good = rendered(backbone, DIALOGUES[0])
    unclear, clear = Queries(backbone).divide([query, good + "So."], None if prompt is None else [prompt, good])
    assert isinstance(unclear, str) and said in unclear
    assert clear == (tuple(DIALOGUES[0]), "So.")


@pytest.mark.parametrize("strange", [None, 7, ["a"], {"query": "a"}])
def test_a_query_that_is_no_text_is_unreadable_alone(backbone: Backbone, strange: Any) -> None:
    good = rendered(backbone, DIALOGUES[0])
    unclear, clear = Queries(backbone).divide([strange, good + "So."], [good, strange])
    assert unclear == f"not a text but {type(strange).__name__}" and clear == (tuple(DIALOGUES[0]), "So.")


# --- the model's thread -----------------------------------------------------------------------------------------------


class Held:
    """An engine whose thread is not started: the test does its work."""

    def __init__(self) -> None:
        self.engine = Engine(Path("/nowhere"), "cpu", {})
        parts = make_parts()
        self.reader = FakeReader(parts.d_model)
        self.engine.model = SparseRM(parts, self.reader)
        self.calls: list[int] = []

    def step(self) -> list[Any]:
        works = self.engine.next_works()
        before = len(self.reader.asked)
        self.engine.do(works)
        self.calls.append(len(self.reader.asked) - before)
        return works


def test_what_waits_together_is_scored_together() -> None:
    held = Held()
    futures = [held.engine.score([f"p{i}"], [f"r{i}"])[0] for i in range(10)]
    held.step()
    assert held.calls == [10]
    alone = [held.engine.model.score([f"p{i}"], [f"r{i}"])[0] for i in range(10)]
    np.testing.assert_allclose([future.result()[0][0] for future in futures], alone, rtol=1e-12)


def test_a_persons_question_goes_before_a_trainers_thousands() -> None:
    held, order = Held(), []
    many = held.engine.score(["p"] * 1000, [f"r{i}" for i in range(1000)])
    assert len(many) == -(-1000 // PIECE)
    held.engine.submit(lambda: order.append("asked"))
    held.step()
    assert order == ["asked"] and held.calls == [0]
    one = held.engine.score(["p"], ["single"])[0]
    held.step()
    assert one.done() and not many[-1].done(), "one response does not wait for the thousand"


def test_who_asks_wrongly_is_refused_alone() -> None:
    held = Held()
    good, bad = held.engine.score(["p"], ["r"])[0], held.engine.score([[{"role": "nobody", "content": "x"}]], ["r"])[0]
    held.step()
    np.testing.assert_allclose(good.result()[0], held.engine.model.score(["p"], ["r"]), rtol=1e-12)
    rewards, reasons = bad.result()
    assert np.isnan(rewards).tolist() == [True] and reasons[0].startswith("prompt: a message whose role is not")


def test_reasons_come_back_to_who_asked() -> None:
    held = Held()
    first, second = held.engine.score(["p", "p"], ["a", "b"])[0], held.engine.score(["p", "p"], ["c", " "])[0]
    held.step()
    assert first.result()[1] == {} and list(second.result()[1]) == [1] and np.isnan(second.result()[0][1])


def test_errors_and_memory_are_said() -> None:
    held = Held()

    def fail() -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    future = held.engine.submit(fail)
    held.step()
    with pytest.raises(Exception, match="does not fit into the memory"):
        future.result()
    assert held.engine.submit(lambda: 5) and held.step()[0].future.result() == 5


def test_what_was_given_up_is_not_done() -> None:
    held, done = Held(), []
    future: Future[Any] = held.engine.submit(lambda: done.append(1))
    future.cancel()
    held.step()
    assert done == []


def test_too_much_is_refused() -> None:
    held = Held()
    held.engine.score(["p"] * PIECE * MOST_WAITING, ["r"] * PIECE * MOST_WAITING)
    with pytest.raises(Busy):
        held.engine.score(["p"], ["r"])


def test_idle_counts_from_the_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("core.serving.engine.time.monotonic", lambda: now[0])
    held = Held()
    now[0] = 50.0
    assert held.engine.idle() == 50.0
    held.engine.submit(lambda: None)
    now[0] = 90.0
    assert held.engine.idle() == 0.0, "something waits"
    works = held.engine.next_works()
    now[0] = 95.0
    assert held.engine.idle() == 0.0, "something is being done"
    held.engine.do(works)
    now[0] = 105.0
    assert held.engine.idle() == 10.0


def test_progress_only_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("core.serving.engine.time.monotonic", lambda: now[0])
    loading, seen = Loading({"Loading libraries": 5.0}), []
    for phase in PHASES:
        loading.enter(phase)
        for _ in range(40):  # far longer than expected
            now[0] += 0.5
            seen.append(loading.to_json())
    fractions = [one["fraction"] for one in seen]
    assert fractions == sorted(fractions) and len(set(fractions)) == len(fractions) and fractions[0] > 0 and fractions[-1] < 1
    assert all(one["left"] >= 0 for one in seen) and seen[0]["left"] > 5
    loading.enter("")
    assert loading.took == dict.fromkeys(PHASES, 20.0)


def test_errors_cross_processes() -> None:
    error = StoreError("gone", expected="here", found="there", remedy="look")
    again = error_from_dict(error_to_dict(error))
    assert type(again) is StoreError and str(again) == str(error)
    assert type(error_from_dict(error_to_dict(ValueError("odd")))).__name__ == "SparseRMError"


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "problem", "found", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/cache/x"), "No space left on device", "/cache/x", "make room on that disk"),
        (PermissionError(errno.EACCES, "Permission denied", "/cache/x"), "Permission denied", "/cache/x", "check the permissions"),
        (OSError(errno.EXDEV, "Cross-device link", "/a", None, "/b"), "Cross-device link", "/a and /b", "refused by the system"),
        (OSError("no such tokenizer"), "no such tokenizer", "OSError", "refused by the system"),
        (MemoryError("1 GB"), "the memory does not suffice", "1 GB", "close other programs"),
        (OutOfMemoryError("CUDA out of memory.\nTried"), "the memory does not suffice", "CUDA out of memory.", "close other programs"),
        (KeyError("x"), "unexpected KeyError", "'x'", "this is a bug"),
    ],
)
def test_only_our_own_faults_are_called_bugs(error: Exception, problem: str, found: str, remedy: str) -> None:
    texts = error_to_dict(error)
    assert (texts["problem"], texts["found"], texts["exit_code"]) == (problem, found, 1)
    assert texts["remedy"].startswith(remedy) and ("bug" in texts["remedy"]) == (type(error) is KeyError)
    assert error_from_dict({}).problem == "something went wrong"


# --- what is kept beside a model --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder() -> Path:
    return fit(quick_tiny(), Store()).artefact


def test_a_kept_pair_is_explained_as_the_model_explains_it(folder: Path) -> None:
    kept, model = ModelFolder(folder), SparseRM.load(folder)
    for number in (0, int(kept.ranked()[0])):
        assert explain_pair(kept, number).to_json() == model.explainer.explain_known(number).to_json()
    assert kept.pair_number(kept.pair(3).pair_id) == 3 and kept.pair_number("nobody") is None
    with pytest.raises(ConfigError, match="no such known pair"):
        explain_pair(kept, len(kept.margins))


def test_held_out_pairs_are_ranked(folder: Path) -> None:
    kept, model = ModelFolder(folder), SparseRM.load(folder)
    pairs = [kept.pair(int(number)) for number in kept.ranked()]
    chosen, rejected = model.score_pairs(pairs)
    assert set(kept.ranked("worst")) == set(kept.ranked("misranked")) == set(kept.ranked())
    np.testing.assert_allclose(kept.margins[kept.ranked("misranked")], np.sort(chosen - rejected), atol=1e-4)
    np.testing.assert_allclose(kept.pair_rewards[kept.ranked("worst")].min(axis=1), np.sort(np.minimum(chosen, rejected)), atol=1e-4)
    with pytest.raises(ConfigError, match="worst, misranked"):
        kept.ranked("best")


def test_latents_are_switched_off_without_a_model(folder: Path) -> None:
    from core.explain.switch import Switchboard

    kept, model = ModelFolder(folder), SparseRM.load(folder)
    assert kept.parts.latent_ids is not None
    latents, number = kept.parts.latent_ids[:3].tolist(), int(kept.ranked("worst")[0])
    kept_v = kept.responses.projections[kept.responses.rejected_rows[number]].astype(np.float64)
    off, plain = switchboard_of(kept).off(latents, kept_v), switchboard_of(kept).off((), kept_v)
    v = model.explainer.explain_known(number).rejected.attribution.projection
    board = Switchboard(model.parts, model.known)
    assert (off.to_json(), plain.to_json()) == (board.off(latents, v).to_json(), board.off((), v).to_json())
    assert plain.reward == pytest.approx(kept.pair_rewards[number, 1], abs=1e-6)
    assert switchboard_of(kept).off(latents).reward is None


def test_an_engine_has_one_thread(folder: Path) -> None:
    """Answers come from the thread that loaded the model, whichever thread asks."""
    ended = threading.Event()
    engine = Engine(folder, "cpu", {})
    engine.start(ended.set)
    assert ended.wait(120) and engine.state == "ready" and engine.health()["explains"]
    names = {engine.submit(lambda: threading.current_thread().name).result(30) for _ in range(3)}
    assert names == {"model"}


def test_a_control_that_cannot_be_explained_scores(folder: Path, tmp_path: Path) -> None:
    dense, ended = folder / "controls" / "dense", threading.Event()
    engine = Engine(dense, "cpu", {})
    engine.start(ended.set)
    assert ended.wait(120) and engine.state == "ready" and not engine.health()["explains"]
    routes = Answers(engine).routes()
    found = json.loads(asyncio.run(routes["score"]({"prompts": ["How?"], "responses": ["So."]})))
    np.testing.assert_allclose(found["rewards"], SparseRM.load(dense).score(["How?"], ["So."]), atol=1e-5)
    with pytest.raises(ConfigError, match="can't be explained"):
        asyncio.run(routes["explain"]({"prompt": "How?", "response": "So."}))
