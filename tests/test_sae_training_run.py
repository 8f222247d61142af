"""`sparserm sae train` on the toy model: the saved file, its card, resuming to the same bytes, and refusals."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_training_helpers import LAYER, StopAt, pairs_file, slow_states, train_config, whole_backbone, write_rows
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from core.config import DataConfig, SAEConfig, SAETrainConfig
from core.data.pairs import load_pairs
from core.data.splits import split_pairs
from core.errors import Cancelled, ConfigError, SAEError
from core.files import file_sha256
from core.jobs.sae_train import SAE_TRAIN
from core.runs.store import Store
from core.sae import training as sae_training
from core.sae.autoencoder import load_sae
from core.sae.corpus import load_corpus, pair_dialogues, split_corpus
from core.sae.documents import documents
from core.sae.trainer import make_trainer, save_inference, start_from
from core.sae.training import command_line, train_sae

CONFIG = train_config()


@pytest.fixture(scope="module")
def reports() -> StopAt:
    return StopAt()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, reports: StopAt) -> Path:
    """The folder of a training that was not interrupted."""
    return train_sae(CONFIG, root=tmp_path_factory.mktemp("undisturbed"), progress=reports)


def card_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "card.json").read_text())


def timeless(folder: Path) -> dict[str, Any]:
    """The hash of every file, and the card without its times."""
    card = {name: value for name, value in card_of(folder).items() if not name.startswith("time_")}
    return {"card": card, **{f.name: file_sha256(f) for f in folder.iterdir() if f.name != "card.json"}}


def test_sae_lens_loads_what_was_saved_and_computes_in_float32(trained: Path) -> None:
    from sae_lens import SAE

    saved = SAE.load_from_disk(trained)
    assert saved.cfg.architecture() == "jumprelu" and saved.W_dec.dtype == torch.float32 and saved.cfg.normalize_activations == "none"
    assert saved.cfg.metadata.hook_name == f"blocks.{LAYER}.hook_resid_post" and saved.cfg.metadata.trained_positions == [
        "content",
        "response_end",
    ]
    assert saved.W_dec.norm(dim=1).sub(1).abs().max() < 1e-3
    z = torch.randn(50, 64)
    sae = load_sae(SAEConfig(path=str(trained)))
    assert sae.layer == LAYER and torch.allclose(sae.decode(sae.encode(z)), saved(z), atol=1e-5)
    with safe_open(trained / "sae_weights.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert {n for n, dtype in stored.items() if dtype == torch.float16} == {"W_enc", "W_dec"}
    assert sorted(f.name for f in trained.iterdir()) == ["card.json", "cfg.json", "sae_weights.safetensors"]


def test_l0_and_fvu_of_the_reloaded_file_on_unseen_dialogues(trained: Path) -> None:
    """Measured from the file's tensors alone, with numpy."""
    with safe_open(trained / "sae_weights.safetensors", "np") as file:
        w = {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}  # noqa: SIM118
    corpus = load_corpus(pairs_file(), root=trained, ratios=CONFIG.ratios)
    _, held_out = split_corpus(corpus.dialogues, CONFIG.held_out, CONFIG.seed)
    parts = [part for several in documents(held_out, whole_backbone(), CONFIG.context) for part in several]
    z = np.concatenate([slow_states(whole_backbone(), part)[part.content] for part in parts])
    pre = (z - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
    f = np.where(pre > w["threshold"], np.maximum(pre, 0), 0)
    fvu = ((z - f @ w["W_dec"] - w["b_dec"]) ** 2).sum() / ((z - z.mean(0)) ** 2).sum()
    measured = card_of(trained)["measured"]
    assert (f > 0).sum(1).mean() == pytest.approx(measured["l0"]["value"], rel=1e-3) == pytest.approx(CONFIG.k, rel=0.1)
    assert fvu == pytest.approx(measured["fvu"]["value"], rel=1e-3) and fvu < 0.6


def test_folding_the_input_scale_moves_threshold_and_norms(tmp_path: Path) -> None:
    """The same latents are active and z^ is the same before and after folding, saving in float16 and loading."""
    trainer = make_trainer(CONFIG, 64, "cpu", mixed=False)
    torch.manual_seed(0)
    z = 40 * torch.randn(400, 64) + 100
    trainer.activation_scaler.scaling_factor = 0.02
    with torch.no_grad():
        trainer.sae.b_dec.copy_(z.mean(0) * 0.02)
        trainer.sae.W_dec.mul_(torch.rand(64, 1) * 5 + 0.5)  # rows of different norms, as after training
        acts, pre = trainer.sae.encode_with_hidden_pre(z * 0.02)
        trainer.sae.topk_threshold.fill_(float(acts[acts > 0].min()))
        expected = trainer.sae.decode(acts) / 0.02
    save_inference(trainer, tmp_path, {"hook_name": "blocks.0.hook_resid_post"})
    loaded = load_sae(SAEConfig(path=str(tmp_path)))
    f = loaded.encode(z)
    assert (acts > 0).float().sum(1).mean() == pytest.approx(6, rel=0.01)
    assert ((f > 0) != (acts > 0)).float().sum(1).mean() < 0.06  # only latents that rounding to float16 moves across the threshold
    assert (loaded.decode(f) - expected).norm() < 0.02 * expected.norm()
    assert float(pre.max()) > 0


def test_going_on_from_an_sae_begins_as_that_sae(trained: Path) -> None:
    """Loaded into a trainer with another input scale, folded and saved again, it encodes and decodes as before."""
    init = load_sae(SAEConfig(path=str(trained)))
    trainer = make_trainer(CONFIG, 64, "cpu", mixed=False)
    trainer.activation_scaler.scaling_factor = 0.3
    start_from(trainer, init)
    z = 5 * torch.randn(100, 64) + init.tensors["b_dec"]
    _, pre = trainer.sae.encode_with_hidden_pre(z * 0.3)
    expected = (z - init.tensors["b_dec"]) @ init.tensors["W_enc"] + init.tensors["b_enc"]
    assert torch.allclose(pre / 0.3, expected, atol=1e-3)
    decoded = trainer.sae.decode(init.encode(z) * 0.3) / 0.3
    assert torch.allclose(decoded, init.decode(init.encode(z)), atol=1e-3)


def test_going_on_keeps_latents_and_what_is_held_out(trained: Path, tmp_path: Path) -> None:
    more = replace(CONFIG, init=str(trained), lr=1e-5, seed=7, out=str(tmp_path / "more"))
    card = card_of(train_sae(more, root=tmp_path))
    assert card["held_out"] == card_of(trained)["held_out"] and f"--init {trained}" in card["command"]
    assert card["training"]["init"] == file_sha256(trained / "sae_weights.safetensors") != card["sae"]["sha256"]
    before, after = (load_sae(SAEConfig(path=str(f))).tensors["W_dec"] for f in (trained, tmp_path / "more"))
    assert (before * after).sum(1).min() > 0.99  # another seed draws other weights, so these come from the first SAE
    assert card["measured"]["fvu"]["value"] < 1.1 * card_of(trained)["measured"]["fvu"]["value"]


def test_a_run_in_the_background_finds_the_sae_to_go_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's working folder differs from that of the command that launched it."""
    monkeypatch.chdir(tmp_path)
    config = SAE_TRAIN.complete(replace(CONFIG, init="first"), Store(tmp_path), lambda *_: None)
    assert config.init == str((tmp_path / "first").resolve())


def test_an_sae_of_another_width_is_not_gone_on_from(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(SAEError, match="training can't go on from this SAE"):
        train_sae(replace(CONFIG, init=str(trained), width=CONFIG.width * 2), root=tmp_path)
    with pytest.raises(ConfigError, match="no SAE to go on from"):
        train_sae(replace(CONFIG, init=str(tmp_path / "nowhere")), root=tmp_path)


def test_the_card_says_how_it_was_made(trained: Path, reports: StopAt) -> None:
    card = card_of(trained)
    assert card["sae"]["sha256"] == file_sha256(trained / "sae_weights.safetensors")
    assert card["backbone"] == json.loads(json.dumps(whole_backbone().identity))
    training = card["training"]
    assert training["tokens"] == 3840 and training["steps"] == 60 and training["response_ends_drawn"] == 60 * 8
    assert training["content_tokens_distinct"] < training["content_tokens_read"] and training["epochs"] > 1
    assert training["response_ends_times_used"] == pytest.approx(480 / training["response_ends_distinct"], abs=0.01)
    assert card["corpus"]["sources"] == {"pairs.jsonl": {"read": 200, "kept": 78, "excluded": 122}}
    for name in ("fvu", "fvu_response_end", "fvu_median_dimension", "l0", "l0_response_end"):
        assert card["measured"][name]["low"] <= card["measured"][name]["value"] <= card["measured"][name]["high"]
    assert {"dead_share", "loss_recovered"} < set(card["measured"])
    done, total, figures = reports.seen[-1]
    assert (done, total) == (3840, 3840) and {"loss", "fvu", "l0", "dead", "tokens_per_s"} == set(figures)
    assert figures["fvu"] < 0.5 * reports.seen[0][2]["fvu"] and figures["l0"] == pytest.approx(6)


def test_only_training_pairs_are_read_and_others_measured(trained: Path) -> None:
    """The card's FVU on the held-out prompts of the pairs equals one from whole hidden states and the file's
    tensors."""
    pairs, _ = load_pairs(DataConfig(pairs=pairs_file()))
    split = split_pairs(pairs, DataConfig(pairs=pairs_file())).split
    corpus = load_corpus(pairs_file(), root=trained, ratios=CONFIG.ratios)
    read = {d.messages[-1]["content"] for d in corpus.dialogues}
    assert read == {text for p, s in zip(pairs, split, strict=True) if s == "train" for text in (p.chosen, p.rejected)}
    others = [p for p, s in zip(pairs, split, strict=True) if s != "train"]
    parts = [part for several in documents(list(pair_dialogues(others)), whole_backbone(), 2048) for part in several]
    z = np.stack([slow_states(whole_backbone(), part)[part.ends[-1]] for part in parts])
    sae = load_sae(SAEConfig(path=str(trained)))
    error = z - sae.decode(sae.encode(torch.from_numpy(z).float())).double().numpy()
    figure = card_of(trained)["measured_on"]["pairs.jsonl"]["fvu_response_end"]
    assert figure["value"] == pytest.approx((error**2).sum() / ((z - z.mean(0)) ** 2).sum(), rel=1e-3) and figure["n_tokens"] == 2 * len(others)


def test_the_card_s_command_is_understood_and_says_the_same(trained: Path) -> None:
    cli = pytest.importorskip("core.cli.main")
    words = shlex.split(card_of(trained)["command"])
    assert words[0] == "sparserm"
    from core.cli.options import override

    read = override(SAETrainConfig(), vars(cli.build_parser().parse_args(words[1:])))
    assert read.result_fields() == CONFIG.result_fields()
    assert "--context" not in command_line(SAETrainConfig()) and "--layer 19" in command_line(SAETrainConfig())


def test_a_second_call_finds_it(trained: Path) -> None:
    before = timeless(trained)
    reports = StopAt()
    assert train_sae(CONFIG, root=trained.parents[1], progress=reports) == trained
    assert not reports.seen and timeless(trained) == before
    assert not list((trained.parents[1] / "scratch").iterdir())


@pytest.mark.parametrize("stops", [(64, 1500), (1024, 2048, 3840)])
def test_stopped_and_resumed_gives_the_same_bytes(trained: Path, tmp_path: Path, stops: tuple[int, ...]) -> None:
    """The training is stopped before the first checkpoint, between two, on one, and after the last step."""
    begins = []
    for tokens in (*stops, float("inf")):
        reports = StopAt(tokens)
        try:
            folder = train_sae(CONFIG, root=tmp_path, progress=reports)
        except Cancelled:
            assert not list(tmp_path.glob("saes/*"))
        if reports.seen:
            begins.append(reports.seen[0][0])
    assert timeless(folder) == timeless(trained)
    assert begins == {(64, 1500): [64, 64, 1088], (1024, 2048, 3840): [64, 64, 1088, 3136]}[stops]


def test_killed_and_resumed_gives_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    program = (
        "import json, sys; from pathlib import Path\n"
        "from core.config import SAETrainConfig, from_dict; from core.sae.training import train_sae\n"
        "train_sae(from_dict(SAETrainConfig, json.loads(sys.argv[1])), root=Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, json.dumps(CONFIG.to_dict()), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("scratch/*/step-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the training ended before it could be killed"
    reports = StopAt()
    folder = train_sae(CONFIG, root=tmp_path, progress=reports)
    assert reports.seen[0][0] > 64 and timeless(folder) == timeless(trained)
    assert [f.name for f in folder.parent.iterdir()] == [folder.name]


def test_checkpoints_are_tensors_and_json_and_damage_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        train_sae(CONFIG, root=tmp_path, progress=StopAt(1200))
    (scratch,) = (tmp_path / "scratch").iterdir()
    (step,) = scratch.iterdir()
    assert step.name == "step-000000016" and sorted(f.name for f in step.iterdir()) == ["state.json", "state.safetensors"]
    state = json.loads((step / "state.json").read_text())
    assert state["n_training_samples"] == 1024 and state["scaling_factor"] > 0 and state["cursor"]["batch"] == 16
    files = {name: (step / name).read_bytes() for name in ("state.json", "state.safetensors")}
    flipped = bytearray(files["state.safetensors"])
    flipped[-100] ^= 1
    without_adam = {name: tensor for name, tensor in load_file(step / "state.safetensors").items() if not name.startswith("adam.1.")}
    unhashed = {name: value for name, value in state.items() if name != "tensors_sha256"}
    for name, content, message in (
        ("state.safetensors", b"cut", "not the file that was written"),
        ("state.safetensors", bytes(flipped), "not the file that was written"),
        ("state.json", b"[" * 50_000, "recursion"),
        ("state.json", json.dumps({**state, "cursor": None}).encode(), "mapping"),
        ("state.json", json.dumps({**unhashed, "adam_groups": [{"params": 3}]}).encode(), "no len"),
    ):
        for file, whole in files.items():
            (step / file).write_bytes(content if file == name else whole)
        with pytest.raises(SAEError, match=rf"(?s)step-000000016 can't be read.*{message}.*delete that folder"):
            train_sae(CONFIG, root=tmp_path)
    (step / "state.json").write_text(json.dumps(unhashed))
    save_file(without_adam, step / "state.safetensors")
    with pytest.raises(SAEError, match=r"Adam's moments of 3 of 4 parameters"):
        train_sae(CONFIG, root=tmp_path)


def test_topk_is_trained_too_and_prompts_can_be_kept_out(tmp_path: Path) -> None:
    measured = write_rows(tmp_path / "beside.jsonl", [pair.to_row() for pair in load_pairs(DataConfig(pairs=pairs_file()))[0].pairs[:10]])
    config = train_config(
        architecture="topk", tokens=1280, out=str(tmp_path / "mine"), response_end_share=0.0, ratios=(1, 0, 0), measure=str(measured)
    )
    folder = train_sae(config, root=tmp_path)
    assert folder == tmp_path / "mine"
    card, sae = card_of(folder), load_sae(SAEConfig(path=str(folder)))
    assert sae.architecture == "topk" and sae.k == 6 and card["measured"]["l0"]["value"] == pytest.approx(6, rel=0.1)
    assert card["sae"]["trained_positions"] == ["content"] and card["training"]["response_ends_drawn"] == 0
    assert card["corpus"]["sources"]["pairs.jsonl"]["excluded"] >= 20 and card["measured_on"]["beside.jsonl"]["l0_response_end"]["n_tokens"] == 20
    with pytest.raises(ConfigError, match="holds something else"):
        train_sae(replace(config, measure=""), root=tmp_path)  # trained on those ten as well, it differs


def test_a_backbone_in_bfloat16_trains_in_mixed_arithmetic(trained: Path, tmp_path: Path) -> None:
    config = train_config(backbone=replace(CONFIG.backbone, dtype="bfloat16"))
    measured = card_of(train_sae(config, root=tmp_path))["measured"]
    exact = card_of(trained)["measured"]
    assert measured["l0"]["value"] == pytest.approx(6, rel=0.1)
    assert measured["fvu"]["value"] == pytest.approx(exact["fvu"]["value"], rel=0.1)
    assert measured["fvu"]["value"] != exact["fvu"]["value"]


def test_an_sae_of_the_wrong_sparsity_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(trainer: Any, _stream: object, _round: object) -> None:
        trainer.sae.topk_threshold.mul_(0.1)

    monkeypatch.setattr(sae_training, "measure_threshold", forgetful)
    with pytest.raises(SAEError, match="not as sparse as it was trained to be") as caught:
        train_sae(train_config(tokens=1280), root=tmp_path)
    assert "L0 within 10% of k = 6" in str(caught.value) and not list((tmp_path / "saes").iterdir())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"k": 64}, "SAETrainConfig.k is too large"),
        ({"response_end_share": 1.0}, "response_end_share is impossible"),
        ({"held_out": 0.0}, "held_out is impossible"),
        ({"batch_size": 512}, "too few tokens to train on"),
        ({"architecture": "standard"}, "unknown value"),
    ],
)
def test_impossible_settings_are_refused_before_loading(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        train_sae(train_config(**changes), root=Path("/nowhere"))


def test_batch_size_and_folders_stay_out_of_the_fingerprint(trained: Path) -> None:
    other = replace(CONFIG, checkpoint_every=2048, backbone=replace(CONFIG.backbone, tokens_per_batch=1024))
    assert train_sae(other, root=trained.parents[1]) == trained
