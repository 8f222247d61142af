"""A live reward model in a process of its own: what it answers is what the engine says here, who may ask, and how it dies and comes back."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_helpers import quick_tiny

from core.backbone.presets import preset
from core.errors import BackboneError, ConfigError, DataError, MissingError, StoreError
from core.explain.full_explanation import explain_fully
from core.fit.pipeline import fit
from core.reward.model import SparseRM
from core.runs.store import Store
from core.serving.launch import health, start
from core.serving.server_folder import Address, server_folder_of
from core.types import PreferencePair
from workbench.frame.model_client import Live

ROOT = Path(__file__).resolve().parents[1]
QUESTION, GOOD, BAD = "How do I boil an egg?", "Boil it for eight minutes. Then cool it.", "I do not know. Ask another."
USER = ({"role": "user", "content": QUESTION},)
WAIT = 240.0  # seconds: machines that test are busy
CLOSE = {"rtol": 0, "atol": 1e-5}  # the tiny model computes in float32


@pytest.fixture(scope="module")
def folder() -> Path:
    return fit(quick_tiny(), Store()).artefact


@pytest.fixture(scope="module")
def model(folder: Path) -> SparseRM:
    return SparseRM.load(folder)


@pytest.fixture(scope="module")
def live(folder: Path) -> Iterator[Live]:
    found = Live(folder, patience=WAIT)
    assert found.wait().ready, found.server_folder.log_tail()
    yield found
    found.stop()


def raw(live: Live, path: str, body: bytes = b"{}", *, method: str = "POST", **headers: str) -> tuple[int, Any]:
    """A request as anybody could make it."""
    address = live.server_folder.address()
    assert address is not None
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", address.port, timeout=60)) as connection:
        connection.request(method, path, body, {"Authorization": f"Bearer {address.secret}", **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")


def asked(live: Live, path: str, **body: Any) -> dict[str, Any]:
    """The answer to a request that is made without the client."""
    status, answer = raw(live, f"/{path}", json.dumps(body).encode())
    assert status == 200, answer
    return dict(answer)


def address_of(live: Live) -> Address:
    found = live.server_folder.address()
    assert found is not None
    return found


# --- what it answers --------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_engine(live: Live, model: SparseRM) -> None:
    found = live.score([QUESTION, list(USER), QUESTION], [GOOD, BAD, "  "])
    np.testing.assert_allclose(found["rewards"][:2], model.score([QUESTION] * 2, [GOOD, BAD]), **CLOSE)
    assert found["rewards"][2] is None and found["refused"] == {"2": "response: empty"}


def test_scores_of_many_come_in_order(live: Live, model: SparseRM) -> None:
    texts = [f"{i} eggs" if i % 7 else "" for i in range(100)]
    found = live.score([QUESTION] * 100, texts)
    rewards, refused = model.try_score([QUESTION] * 100, texts)
    np.testing.assert_allclose([np.nan if r is None else r for r in found["rewards"]], rewards, **CLOSE)
    assert found["refused"] == {str(number): reason for number, reason in sorted(refused.items())}


def test_pairs(live: Live, model: SparseRM) -> None:
    found = live.score_pairs([(QUESTION, GOOD, BAD), (QUESTION, GOOD, "")])
    chosen, rejected = model.score([QUESTION] * 2, [GOOD, BAD])
    np.testing.assert_allclose([found["chosen"][0], found["rejected"][0], found["margin"][0]], [chosen, rejected, chosen - rejected], **CLOSE)
    np.testing.assert_allclose(found["probability"][0], 1 / (1 + np.exp(-model.parts.margin_scale * (chosen - rejected))), **CLOSE)
    assert found["margin"][1] is found["rejected"][1] is None and found["refused"] == {"1.rejected": "response: empty"}


def test_a_prompt_that_is_cut_is_named(live: Live, model: SparseRM) -> None:
    """The first question is far longer than the model reads: it is left out, and the reward is that of the rest."""
    turns = [{"role": "user", "content": "word " * 3000}, {"role": "assistant", "content": GOOD}, *USER]
    assert model.shortened([turns, [*USER, turns[1], *USER]], [GOOD, GOOD]) == [0]
    found = live.score([turns, QUESTION, turns], [GOOD, GOOD, " "])
    np.testing.assert_allclose(found["rewards"][:2], model.score([QUESTION] * 2, [GOOD] * 2), **CLOSE)
    assert found["shortened"] == ["0"] and list(found["refused"]) == ["2"]
    assert live.score_pairs([(QUESTION, GOOD, BAD), (turns, GOOD, BAD)])["shortened"] == ["1.chosen", "1.rejected"]


def same(found: Any, expected: Any, path: str = "") -> None:
    """Equal JSON, numbers up to rounding: texts are read in another order here and there."""
    if isinstance(expected, dict):
        assert set(found) == set(expected), path
        for name in expected:
            same(found[name], expected[name], f"{path}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for number, one in enumerate(expected):
            same(found[number], one, f"{path}[{number}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=2e-4), path
    else:
        assert found == expected, path


def test_what_is_read_of_a_text_is_what_the_command_shows(live: Live, model: SparseRM) -> None:
    expected = explain_fully(SparseRM.load(model.folder or "").explainer, (USER, GOOD)).to_json()
    same(live.tokens(QUESTION, GOOD), expected["response"]["tokens"])
    same(live.deletions(QUESTION, GOOD), expected["response"]["deletions"])
    same(live.gradient(QUESTION, GOOD), expected["response"]["gradient"])


def test_an_explanation_from_features_is_that_of_the_model(live: Live, model: SparseRM) -> None:
    """Pages make it from v and f, with the code that explains the pairs of the fit."""
    explainer = SparseRM.load(model.folder or "").explainer
    chosen, rejected = live.features(QUESTION, GOOD), live.features(f"{QUESTION} ", f" {BAD}\n")
    assert chosen.item == (USER, GOOD) and rejected.item == (USER, BAD), "as the model reads them"
    same(explainer.builder.response(chosen, explainer.labels).to_json(), explainer.explain(QUESTION, GOOD).to_json())
    pair = PreferencePair(pair_id="x", prompt=USER, chosen=GOOD, rejected=BAD)
    same(explainer.builder.pair(chosen, rejected, explainer.labels).to_json(), explainer.explain_pair(pair).to_json())


def test_callers_outside_are_given_the_same_explanation(live: Live, model: SparseRM) -> None:
    assert model.parts.latent_ids is not None
    explainer, off = SparseRM.load(model.folder or "").explainer, model.parts.latent_ids[:2].tolist()
    edited = GOOD + " Enjoy!"
    full = explain_fully(explainer, (USER, GOOD), edits=[edited], off=off).to_json()
    answer = asked(live, "explain", prompt=QUESTION, response=GOOD, off=off)
    assert answer["kind"] == "response" and answer["change"] is None
    same({name: answer[name] for name in ("explanation", "off", "all_on")}, {name: full[name] for name in ("explanation", "off", "all_on")})
    same(answer["response"]["tokens"], full["response"]["tokens"])
    answer = asked(live, "explain", prompt=QUESTION, response=edited, parent={"prompt": QUESTION, "response": GOOD}, tokens=False)
    same(answer["change"], full["edits"][1]["change"])
    assert answer["response"] == {"tokens": None} and answer["off"] is None
    pair = PreferencePair(pair_id="x", prompt=USER, chosen=GOOD, rejected=BAD)
    expected = explain_fully(explainer, pair).to_json()
    answer = asked(live, "explain", prompt=QUESTION, chosen=GOOD, rejected=BAD)
    same(answer["explanation"], expected["explanation"])
    for side in ("chosen", "rejected"):
        same(answer[side]["tokens"], expected[side]["tokens"])
    assert raw(live, "/explain", json.dumps({"prompt": QUESTION, "response": GOOD, "off": [99_999]}).encode())[0] == 422


def test_spans_are_deleted(live: Live, model: SparseRM) -> None:
    (found,) = live.deletions(QUESTION, GOOD, [(0, 27)])
    whole, rest = model.score([QUESTION] * 2, [GOOD, "Then cool it."])
    assert found["text"] == GOOD[:27]
    assert found["effect"] == pytest.approx(whole - rest, abs=1e-5)
    with pytest.raises(ConfigError, match="no such span"):
        live.deletions(QUESTION, GOOD, [(0, 4000)])


def test_latents_of_a_text_of_ones_own(live: Live, model: SparseRM) -> None:
    text = "An egg, a pan."
    backbone, sae = model.explainer.backbone, model.sae
    rendered = backbone.render([{"role": "user", "content": text}])
    states = backbone.states(torch.from_numpy(rendered.ids.astype(np.int64))[None], None, [model.parts.layer])[model.parts.layer][0]
    f = sae.encode(states).numpy()
    found = live.activations(text, [3, 200], top=5)
    assert "".join(found["texts"]) == backbone.template.text([{"role": "user", "content": text}])
    np.testing.assert_allclose(found["activation"]["200"], f[:, 200], atol=1e-4)
    own = f[rendered.content]
    assert [one["latent_id"] for one in found["top"]] == np.argsort(-own.max(axis=0), kind="stable")[:5].tolist()
    best = found["top"][0]
    assert best["activation"] == pytest.approx(own.max(), abs=1e-4) and f[best["token"], best["latent_id"]] == pytest.approx(own.max(), abs=1e-4)


def test_the_latents_of_an_answer_are_those_of_its_tokens(live: Live, model: SparseRM) -> None:
    assert model.parts.latent_ids is not None
    latent = int(model.parts.latent_ids[0])
    found, tokens = live.activations(GOOD, [latent], prompt=QUESTION), live.tokens(QUESTION, GOOD)
    assert found["texts"] == tokens["texts"]
    np.testing.assert_allclose(found["activation"][str(latent)], tokens["activation"].get(str(latent), np.zeros(len(tokens["texts"]))), atol=1e-4)


@pytest.mark.parametrize(
    ("ask", "error", "said"),
    [
        (lambda live: live.features(QUESTION, ""), DataError, "empty"),
        (lambda live: live.features(QUESTION, "null\0"), DataError, "null character"),
        (lambda live: live.features(QUESTION, "egg " * 20_000), DataError, "tokens, at most"),
        (lambda live: live.activations("egg", [256]), ConfigError, "from 0 to 255"),
        (lambda live: live.activations(" "), DataError, "empty"),
        (lambda live: live.texts.chain("0123456789abcdef"), MissingError, "not kept"),
        (lambda live: live.texts.chain("../../etc/passwd"), MissingError, "not kept"),
        (lambda live: live.score([QUESTION], []), DataError, "equal length"),
    ],
)
def test_what_cannot_be_answered_is_the_engines_error(live: Live, ask: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        ask(live)


# --- edits ------------------------------------------------------------------------------------------------------------


def test_an_edit_is_that_of_the_model(live: Live, model: SparseRM) -> None:
    explainer, edited = SparseRM.load(model.folder or "").explainer, GOOD + " Enjoy!"
    expected = explainer.edit(QUESTION, edited, explainer.edit(QUESTION, GOOD))
    root = explainer.builder.edit(live.features(QUESTION, GOOD), explainer.labels)
    features = live.features(QUESTION, edited, parent=(QUESTION, GOOD))
    assert features.n_computed < features.n_tokens, "what the texts begin with is computed once"
    same(explainer.builder.edit(features, explainer.labels, root).to_json(), expected.to_json())


def test_kept_texts_are_found_by_id_only(live: Live) -> None:
    name = live.texts.keep_pair(QUESTION, "<script>", "\u202e🙂")
    assert live.texts.pair(name) == {"prompt": QUESTION, "chosen": "<script>", "rejected": "\u202e🙂"}
    assert live.texts.keep_pair(QUESTION, "<script>", "\u202e🙂") == name
    (file,) = live.texts.folder.rglob(f"{name}.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for wrong in ("../x", "", "0" * 16, name.upper(), name + "\n"):
        with pytest.raises(MissingError):
            live.texts.pair(wrong)


# --- who may ask ------------------------------------------------------------------------------------------------------


def test_only_who_has_the_secret(live: Live) -> None:
    body = json.dumps({"prompts": [QUESTION], "responses": [GOOD]}).encode()
    assert raw(live, "/score", body)[0] == 200
    for wrong in ("", "Bearer ", "Bearer wrong", f"Bearer {address_of(live).secret}x", "Bearer é"):
        for path in ("/score", "/health", "/stop"):
            status, said = raw(
                live, path, body, method="GET" if path == "/health" else "POST", Authorization=wrong.encode("latin-1").decode("latin-1")
            )
            assert status == 401 and "secret" in said["error"]["problem"]
    assert raw(live, f"/score?key={address_of(live).secret}", body, Authorization="")[0] == 401, "in the address only where trainers need it"


def test_only_by_this_machines_name(live: Live) -> None:
    port = address_of(live).port
    for host, expected in ((f"127.0.0.1:{port}", 200), (f"localhost:{port}", 200), (f"evil.example:{port}", 403), ("127.0.0.1", 403)):
        assert raw(live, "/health", method="GET", Host=host)[0] == expected, host


def test_it_listens_on_this_machine_only(live: Live) -> None:
    listening = Path("/proc/net/tcp")
    if not listening.exists():
        pytest.skip("needs /proc")
    port = f"{address_of(live).port:04X}"
    rows = [line.split()[1] for line in listening.read_text().splitlines()[1:] if line.split()[3] == "0A"]
    assert [row for row in rows if row.endswith(f":{port}")] == [f"0100007F:{port}"]


def test_the_secret_is_its_owners_alone(live: Live) -> None:
    file = live.server_folder.path / "address.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert address_of(live).secret not in live.server_folder.log.read_text()
    command = Path(f"/proc/{address_of(live).pid}/cmdline")
    assert not command.exists() or address_of(live).secret.encode() not in command.read_bytes()


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 422, "can't be read"),
        (b"[1]", 422, "can't be read"),
        (b'{"prompts": "x", "responses": ["y"]}', 422, "prompts can't be read"),
        (b"[" * 100_000, 422, "can't be read"),
        (b" " * (17 << 20), 413, "too large"),
        (json.dumps({"prompts": ["x"] * 5000, "responses": ["y"] * 5000}).encode(), 422, "too many responses"),
    ],
)
def test_requests_that_make_no_sense(live: Live, body: bytes, status: int, said: str) -> None:
    found = raw(live, "/score", body)
    assert found[0] == status and said in found[1]["error"]["problem"]
    assert live.state().ready


def test_one_bad_prompt_does_not_end_a_batch(live: Live, model: SparseRM) -> None:
    bad = ["\\ud800", None, [{"role": "user", "content": [{"type": "image"}]}], ""]
    body = json.dumps({"prompts": [QUESTION, *bad, QUESTION], "responses": [GOOD, "x", "x", "x", "x", BAD]}).replace("\\\\ud800", "\\ud800")
    status, found = raw(live, "/score", body.encode())
    assert status == 200 and found["rewards"][1:5] == [None] * 4
    np.testing.assert_allclose([found["rewards"][0], found["rewards"][5]], model.score([QUESTION] * 2, [GOOD, BAD]), atol=1e-4)
    reasons = [found["refused"][str(number)] for number in (1, 2, 3, 4)]
    for reason, begins in zip(reasons, ("not valid Unicode", "missing", "holds an image", "empty"), strict=True):
        assert reason.startswith(f"prompt: {begins}")
    pairs = [
        {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD},
        {"prompt": "", "chosen": "a", "rejected": "b"},
        {"prompt": QUESTION, "chosen": GOOD},
    ]
    status, found = raw(live, "/score_pairs", json.dumps({"pairs": pairs}).encode())
    assert status == 200 and found["margin"][1:] == [None, None] and found["margin"][0] is not None
    assert found["refused"] == {"1.chosen": "prompt: empty", "1.rejected": "prompt: empty", "2.rejected": "response: missing"}


def test_unknown_paths(live: Live) -> None:
    address = address_of(live)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", address.port, timeout=60)) as connection:
        connection.request("GET", "/docs")
        assert connection.getresponse().status == 404


# --- trainers ---------------------------------------------------------------------------------------------------------


def ask_openrlhf(live: Live, value: dict[str, Any]) -> tuple[int, Any]:
    """As OpenRLHF asks: no header but the content's type, the key in the address."""
    address = address_of(live)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", address.port, timeout=60)) as connection:
        connection.request("POST", f"/get_reward?key={address.secret}", json.dumps(value), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_openrlhf_gets_rewards(live: Live, model: SparseRM) -> None:
    template = model.explainer.backbone.template
    prompt = template.text([*USER, {"role": "assistant", "content": "\x00"}]).partition("\x00")[0]
    texts = [GOOD, BAD, ""]
    queries = [*(f"{prompt}{text}<|im_end|>\n" for text in texts), None]
    status, found = ask_openrlhf(live, {"query": queries, "prompts": [prompt] * 4, "labels": [""] * 4})
    assert status == 200
    expected = model.score([QUESTION] * 2, [GOOD, BAD])
    lowest = float(model.parts.reward_quantiles[0])
    np.testing.assert_allclose(found["rewards"], [*expected, lowest, lowest], **CLOSE)
    ranks = [np.interp(reward, model.parts.reward_quantiles, np.linspace(0, 1, 101)) for reward in expected]
    np.testing.assert_allclose(found["scores"], [*ranks, 0.0, 0.0], atol=1e-4)
    assert found["extra_logs"] == {"unreadable": [0.0, 0.0, 1.0, 1.0]}


def test_trl_trains_with_the_example_client(live: Live, model: SparseRM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    from remote_reward import RemoteReward

    source = preset("tiny").backbone.model
    policy, tokenizer = AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    read: list[Any] = []
    remote = RemoteReward(address_of(live).url, address_of(live).secret)

    def reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        rewards = remote(prompts, completions, **columns)
        read.extend(zip(prompts, completions, rewards, strict=True))
        return rewards

    options: dict[str, Any] = {"use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "seed": 3}
    config = GRPOConfig(
        str(tmp_path), max_steps=1, per_device_train_batch_size=4, num_generations=2, max_completion_length=5, logging_steps=1, **options
    )
    prompts = [list(USER), [{"role": "user", "content": "Is it hard to keep bees?"}]]
    data = Dataset.from_dict({"prompt": prompts})
    GRPOTrainer(model=policy, reward_funcs=reward, args=config, train_dataset=data, processing_class=tokenizer).train()
    assert len(read) == 4
    expected, refused = model.try_score([p for p, _, _ in read], [c for _, c, _ in read])
    assert {number for number, (_, _, reward) in enumerate(read) if reward is None} == set(refused)
    np.testing.assert_allclose([np.nan if r is None else r for _, _, r in read], expected, **CLOSE)


# --- the process ------------------------------------------------------------------------------------------------------


def test_many_at_once_share_forward_passes(live: Live, model: SparseRM) -> None:
    texts = [f"Eggs, {i}." for i in range(24)]
    before = health(address_of(live))
    found: dict[int, float] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: live.score([QUESTION], [texts[i]])["rewards"][0]})) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = health(address_of(live))
    assert before and after and after["served"] - before["served"] == 24
    assert after["batches"] - before["batches"] <= 24
    np.testing.assert_allclose([found[i] for i in range(24)], model.score([QUESTION] * 24, texts), **CLOSE)


def test_all_who_ask_find_one_process(live: Live, folder: Path) -> None:
    pids = {Live(folder).wait(60).pid for _ in range(2)}
    done = [
        subprocess.run([sys.executable, "-m", "core.cli.main", "serve", str(folder), "--json"], cwd=ROOT, capture_output=True, text=True, timeout=60)
        for _ in range(2)
    ]
    assert pids | {json.loads(one.stdout)["pid"] for one in done} == {live.state().pid}


def test_a_killed_one_is_started_again(live: Live, model: SparseRM) -> None:
    before, features = live.state().pid, live.features(QUESTION, "One.")
    assert before is not None
    os.kill(before, signal.SIGKILL)
    again = live.features(QUESTION, "One.", parent=(QUESTION, "Gone with the process."))
    assert live.state().pid != before
    np.testing.assert_allclose(again.v, features.v, atol=1e-4)
    np.testing.assert_allclose(live.score([QUESTION], [GOOD])["rewards"], model.score([QUESTION], [GOOD]), **CLOSE)


def test_eight_starters_start_one_server_that_ends_when_idle(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.frame.model_client.start", partial(start, idle=2.0))
    lives, seen = [Live(folder, tmp_path) for _ in range(8)], []
    live = lives[0]
    assert live.state().name == "off"
    began = time.monotonic()
    threads = [threading.Thread(target=one.ensure) for one in lives]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = live.ensure()
    assert state.name == "starting"
    while not state.ready and time.monotonic() - began < WAIT:
        seen.append((state.fraction, state.text))
        time.sleep(0.1)
        state = live.ensure()
    assert state.ready and state.fraction == 1.0 and state.rss, live.server_folder.log_tail()
    assert [fraction for fraction, _ in seen] == sorted(fraction for fraction, _ in seen)
    assert "Loading libraries" in {text for _, text in seen}
    assert set(live.server_folder.seconds()) >= {"Loading libraries", "Loading the language model"}
    assert len({one.state().pid for one in lives}) == 1
    assert len(json.loads((live.server_folder.path / "starts.json").read_text())["starts"]) == 1
    end = time.monotonic() + 60
    while live.state().name != "off" and time.monotonic() < end:  # to be looked at does not keep it
        time.sleep(0.1)
    assert not live.server_folder.live() and live.server_folder.address() is None and not live.server_folder.unstable()


def test_a_failed_model_states_why_and_its_successor_is_served(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "rm"
    shutil.copytree(folder, own)
    tensors = own / "model.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:100])
    live = Live(own, tmp_path, patience=WAIT)
    state = live.wait()
    assert state.failed and state.error and "model.safetensors" in state.error["problem"]
    with pytest.raises(StoreError, match=r"model\.safetensors"):
        live.score([QUESTION], [GOOD])
    assert live.ensure().failed, "it is not tried again by itself"
    tensors.write_bytes(whole)
    assert live.wait().ready, "but when its files are others"
    first, parts = live.state().pid, SparseRM.load(own).parts
    shutil.rmtree(own)
    SparseRM.from_parts(replace(parts, head=next(head for head in parts.heads if head.weight_1[0, 0] != parts.head.weight_1[0, 0]))).save(own)
    np.testing.assert_allclose(live.score([QUESTION], [GOOD])["rewards"], SparseRM.load(own).score([QUESTION], [GOOD]), **CLOSE)
    assert live.state().pid != first
    live.stop()


def test_what_is_no_reward_model(tmp_path: Path) -> None:
    state = Live(tmp_path / "nothing", tmp_path).ensure()
    assert state.failed and state.error and "there is no reward model at" in state.error["problem"]


def test_one_that_keeps_dying_is_left_alone(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.serving.launch.WORKER", [sys.executable, "-c", "import sys; sys.exit('out of luck')"])
    live, end = Live(folder, tmp_path), time.monotonic() + 30
    while not (state := live.ensure()).failed and time.monotonic() < end:
        time.sleep(0.05)
    assert state.error and "keeps dying" in state.error["problem"] and state.error["found"] == "out of luck"
    with pytest.raises(BackboneError, match="keeps dying"):
        live.score([QUESTION], [GOOD])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux caps what matters")
def test_memory_is_capped() -> None:
    code = (
        "import torch\nfrom core.serving.engine import readable_error, cap_memory\ncap_memory(200 << 20)\ntorch.zeros(20 << 20)\n"
        "try:\n    torch.zeros(400 << 20)\nexcept RuntimeError as error:\n    print(readable_error(error))\nprint(torch.zeros(10).sum())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("this does not fit into the memory that the model's process may use") and done.stdout.strip().endswith("tensor(0.)")


def test_the_command_serves_until_it_is_told_to_stop(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "core.cli.main", "serve", str(folder)]
    environment = {**os.environ, "SPARSERM_CACHE": str(tmp_path)}
    serving = subprocess.Popen([*command, "--json"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert serving.stdout is not None
    with serving.stdout:
        said = json.loads(serving.stdout.readline())
    address = server_folder_of(folder, tmp_path).address()
    assert address and said["url"] == address.url and said["secret"] == address.secret and said["pid"] == serving.pid
    assert said["openrlhf"] == f"{address.url}/get_reward?key={address.secret}"
    assert Live(folder, tmp_path).score([QUESTION], [GOOD])["rewards"][0] is not None, "the workbench finds it"
    stopped = subprocess.run([*command, "--stop", "--json"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert json.loads(stopped.stdout) == {"stopped": True}
    assert serving.wait(30) == 0
    assert not server_folder_of(folder, tmp_path).unstable() and server_folder_of(folder, tmp_path).address() is None
    again = subprocess.run([*command, "--stop"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert again.stdout.strip() == "nobody serves this model"


def test_the_client_loads_no_engine() -> None:
    heavy = "{'torch', 'transformers', 'sae_lens', 'trl', 'peft', 'sklearn', 'streamlit'}"
    code = f"import sys, workbench.frame.model_client, core.explain.from_folder\nprint(sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
