"""The sources of an SAE: each is read as its publisher writes it, and what is not computed is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.utils import EntryNotFoundError
from sae_helpers import (
    D_MODEL,
    D_SAE,
    LLAMA_FACTOR,
    arrays,
    bfloat16,
    llama_folded,
    loop_encode,
    states,
    write_folder,
    write_gemma_scope,
    write_llama_scope,
)

from core.config import SAEConfig
from core.errors import MissingError, SAEError
from core.sae.autoencoder import SparseAutoencoder, load_sae
from core.sae.formats import detect_format
from core.types import canonical_json

GEMMA = ("gemma-scope-2b-pt-res-canonical", "layer_13/width_16k/canonical")
GEMMA_FOLDER = Path("google/gemma-scope-2b-pt-res/layer_13/width_16k/average_l0_84")
LLAMA = ("llama_scope_lxr_8x", "l15r_8x")
LLAMA_FOLDER = Path("fnlp/Llama3_1-8B-Base-LXR-8x/Llama3_1-8B-Base-L15R-8x")


def loaded(path: Path, **config: str) -> SparseAutoencoder:
    return load_sae(SAEConfig(path=str(path), **config))


def by_release(release: str, sae_id: str) -> SparseAutoencoder:
    return load_sae(SAEConfig(release=release, sae_id=sae_id))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the Hub: org/repo/file. sae-lens' own code runs; only its download is replaced."""
    from sae_lens.loading import pretrained_sae_loaders
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    def download(repo_id: str, filename: str, subfolder: str = "", force_download: bool = False) -> str:
        path = tmp_path / "hub" / repo_id / subfolder / filename
        if not path.is_file():
            raise EntryNotFoundError(f"no {filename} in {repo_id}")
        return str(path)

    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", download)
    # sae-lens has Gemma Scope's shapes by name; our files are small.
    monkeypatch.setattr(get_pretrained_saes_directory()[GEMMA[0]], "config_overrides", {"d_in": D_MODEL, "d_sae": D_SAE})
    return tmp_path / "hub"


def same(sae: SparseAutoencoder, want: np.ndarray, z: np.ndarray) -> None:
    f = sae.encode(torch.from_numpy(z)).numpy()
    assert 0 < (want > 0).mean() < 1 and np.array_equal(f > 0, want > 0)
    np.testing.assert_allclose(f, want, atol=1e-5, rtol=1e-6)


# 1. releases


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_release_in_sae_lens_format(architecture: str, hub: Path) -> None:
    w, z = arrays(architecture), states()
    write_folder(hub / "someone/saes/layer_3", w, architecture, dtype=torch.float32)
    sae = by_release("someone/saes", "layer_3")
    same(sae, loop_encode(z, w, architecture, centred=True), z)
    assert (sae.identity["source"], sae.identity["name"], sae.layer) == ("release", "someone/saes layer_3", 3)


def test_gemma_scope_release(hub: Path) -> None:
    w, z = arrays("jumprelu"), states()
    write_gemma_scope(hub / GEMMA_FOLDER / "params.npz", w)
    sae = by_release(*GEMMA)
    same(sae, loop_encode(z, w, "jumprelu", centred=False), z)
    assert (sae.layer, sae.identity["hook_name"], sae.identity["model_name"]) == (13, "blocks.13.hook_resid_post", "gemma-2-2b")
    assert (sae.identity["expected_l0"], sae.identity["norm_factor"], sae.identity["apply_b_dec_to_input"]) == (84.0, None, False)


def test_llama_scope_release(hub: Path) -> None:
    w, z = arrays("standard"), states() / LLAMA_FACTOR
    write_llama_scope(hub / LLAMA_FOLDER, w)
    sae = by_release(*LLAMA)
    same(sae, loop_encode(z, llama_folded(w), "jumprelu", centred=False), z)
    assert (sae.layer, sae.identity["expected_l0"], sae.identity["norm_factor"]) == (15, 50.0, LLAMA_FACTOR)
    assert sae.identity["model_name"] == "meta-llama/Llama-3.1-8B"


@pytest.mark.parametrize(
    ("release", "sae_id", "message"),
    [
        (*GEMMA, r"(?s)could not load gemma-scope-2b-pt-res-canonical layer_13.*to do:.*no network.*--sae PATH"),
        (GEMMA[0], "layer_99/width_16k/canonical", r"(?s)could not load.*layer_99/width_16k/canonical not found in release"),
        ("gemma-scope-unheard-of", "x", r"(?s)could not load.*not found in pretrained SAEs directory"),
        ("goodfire-llama-3.1-8b-instruct", "layer_19", r"(?s)refused.*reads them by 'goodfire'.*sae_lens \| gemma_2"),
    ],
)
def test_releases_that_cant_be_had(release: str, sae_id: str, message: str) -> None:
    """The session is offline, and this test does not use the hub fixture."""
    with pytest.raises(SAEError, match=message):
        by_release(release, sae_id)


def test_readers_of_pickled_files_are_not_used() -> None:
    """Every reader of sae-lens in RELEASE_READERS has source code that opens no pickle."""
    import inspect

    from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS

    from core.sae.formats import RELEASE_READERS

    for name in RELEASE_READERS:
        source = inspect.getsource(NAMED_PRETRAINED_SAE_LOADERS[name])
        assert "torch.load" not in source and "allow_pickle" not in source and "import pickle" not in source


# 2. sae-lens folders (the architectures are in test_sae_encode.py)


def test_folder_identity_is_json_and_complete(tmp_path: Path) -> None:
    metadata = {"trained_positions": ["text", "response_end"], "expected_l0": 31.5, "model_name": "smollm2-135m"}
    sae = loaded(write_folder(tmp_path / "mine", arrays("topk"), "topk", metadata=metadata))
    canonical_json(sae.identity)
    digest = sae.identity.pop("sha256")
    assert len(digest) == 64
    assert sae.identity == {
        "source": "sae-lens", "name": "mine", "norm_factor": None, "expected_l0": 31.5, "architecture": "topk", "k": 5, "apply_b_dec_to_input": True,
        "rescale_acts_by_decoder_norm": False, "d_model": D_MODEL, "d_sae": D_SAE, "layer": 3, "hook_name": "blocks.3.hook_resid_post",
        "model_name": "smollm2-135m", "trained_positions": ["text", "response_end"],
    }  # fmt: skip


def test_sha256_follows_the_weights_and_not_the_format(tmp_path: Path, hub: Path) -> None:
    w = arrays("jumprelu")
    write_gemma_scope(hub / GEMMA_FOLDER / "params.npz", w)
    folder = write_folder(tmp_path / "a", w, "jumprelu", apply_b_dec_to_input=False)
    digests = [sae.identity["sha256"] for sae in (by_release(*GEMMA), loaded(hub / GEMMA_FOLDER), loaded(folder))]
    assert len(set(digests)) == 1
    w["W_dec"][3, 4] += 1e-4
    assert loaded(write_folder(tmp_path / "b", w, "jumprelu")).identity["sha256"] not in digests


def test_a_folder_from_before_version_6_goes_through_sae_lens(tmp_path: Path) -> None:
    w, z = arrays("topk"), states()
    folder = write_folder(tmp_path / "old", w, "standard")
    old = {
        "d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32", "model_name": "gpt2-small", "hook_point": "blocks.8.hook_resid_pre",
        "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}, "normalize_activations": False,
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(old))
    sae = loaded(folder)
    same(sae, loop_encode(z, w, "topk", centred=True), z)
    assert (sae.architecture, sae.layer, sae.identity["model_name"]) == ("topk", 7, "gpt2-small")
    (folder / "cfg.json").write_text(json.dumps({**old, "normalize_activations": True}))
    with pytest.raises(SAEError, match="scaled to an average norm, and the factor is not in its files"):
        loaded(folder)


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        ("standard", {"architecture": "batchtopk", "k": 4}, r"(?s)training checkpoint.*sparserm sae train"),
        ("standard", {"architecture": "matryoshka_batchtopk"}, r"training checkpoint"),
        ("standard", {"architecture": "transcoder"}, r"'transcoder', which is not supported"),
        ("standard", {"architecture": "jumprelu_skip_transcoder"}, r"'jumprelu_skip_transcoder', which is not supported"),
        ("standard", {"architecture": "temporal"}, r"'temporal', which"),
        ("standard", {"architecture": "matching_pursuit"}, r"'matching_pursuit', which"),
        ("standard", {"architecture": "abstopk"}, r"(?s)'abstopk', which.*standard \| topk \| jumprelu \| gated"),
        ("standard", {"architecture": "crosscoder"}, r"'crosscoder', which"),
        ("standard", {"normalize_activations": "expected_average_only_in"}, r"(?s)factor is not in its files.*to do: load it by release"),
        ("standard", {"normalize_activations": "layer_norm"}, r"(?s)normalises each input.*layer_norm"),
        ("standard", {"normalize_activations": "constant_norm_rescale"}, r"(?s)normalises each input.*constant_norm_rescale"),
        ("standard", {"normalize_activations": "covariance_whitening"}, r"(?s)normalises each input.*covariance_whitening"),
        ("standard", {"reshape_activations": "hook_z"}, r"(?s)attention heads.*hook_z"),
        ("standard", {"d_in": 13}, r"(?s)W_dec.*wrong shape.*\(40, 13\).*\(40, 12\)"),
        ("standard", {"d_sae": 41}, r"(?s)W_dec.*wrong shape.*\(41, 12\).*\(40, 12\)"),
        ("jumprelu", {"architecture": "standard"}, r"(?s)tensors of its architecture.*expected: W_dec, W_enc, b_dec, b_enc\n.*threshold"),
        ("standard", {"architecture": "jumprelu"}, r"(?s)tensors of its architecture.*threshold"),
        ("topk", {"k": 0}, r"(?s)impossible k.*1 to 40.*0"),
        ("topk", {"k": 41}, r"(?s)impossible k.*1 to 40.*41"),
        ("topk", {"k": "many"}, r"(?s)impossible k.*'many'"),
        ("standard", {"metadata": 3}, r"metadata: an object"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(architecture: str, config: dict[str, Any], message: str, tmp_path: Path) -> None:
    cfg = write_folder(tmp_path / "sae", arrays(architecture), architecture) / "cfg.json"
    cfg.write_text(json.dumps({**json.loads(cfg.read_text()), **config}))
    with pytest.raises(SAEError, match=message):
        loaded(cfg.parent)


@pytest.mark.parametrize(
    "hook", ["blocks.3.hook_mlp_out", "blocks.3.attn.hook_z", "blocks.0.hook_resid_pre", "hook_embed", "blocks.3.ln2.hook_normalized"]
)
def test_other_hooks_are_refused_naming_both(hook: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "sae", arrays("standard"), "standard", metadata={"hook_name": hook})
    with pytest.raises(SAEError, match=rf"(?s)expected: hook blocks\.L\.hook_resid_post.*found: hook {hook}"):
        loaded(folder)


def test_resid_pre_of_the_next_layer_is_the_same_point(tmp_path: Path) -> None:
    assert loaded(write_folder(tmp_path / "sae", arrays("standard"), "standard", metadata={"hook_name": "blocks.4.hook_resid_pre"})).layer == 3


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_fine_tuned_scaling_factors(scale: float, tmp_path: Path) -> None:
    w, z = arrays("standard"), states()
    folder = write_folder(tmp_path / "sae", {**w, "scaling_factor": np.full(D_SAE, scale, np.float32)}, "standard")
    if scale == 1:
        same(loaded(folder), loop_encode(z, w, "standard", centred=True), z)
    else:
        with pytest.raises(SAEError, match="fine-tuned scaling factor"):
            loaded(folder)


# 3. Gemma Scope files


def test_gemma_scope_file(tmp_path: Path) -> None:
    w, z = arrays("jumprelu"), states()
    file = write_gemma_scope(tmp_path / "gemma-scope-9b-it-res/layer_31/width_16k/average_l0_76/params.npz", w)
    for sae in (loaded(file), loaded(file.parent), loaded(file, format="gemma-scope")):
        same(sae, loop_encode(z, w, "jumprelu", centred=False), z)
        assert (sae.layer, sae.identity["model_name"], sae.identity["expected_l0"]) == (31, "gemma-2-9b-it", 76.0)
        assert sae.identity["name"] == "layer_31/width_16k/average_l0_76"


def test_gemma_scope_does_not_centre_its_input(tmp_path: Path) -> None:
    """Subtracting b_dec would change which latents are active."""
    w, z = arrays("jumprelu"), states()
    sae = loaded(write_gemma_scope(tmp_path / "x/params.npz", w))
    assert sae.layer is None
    wrong = loop_encode(z, w, "jumprelu", centred=True)
    assert ((sae.encode(torch.from_numpy(z)).numpy() > 0) != (wrong > 0)).sum() > 20


def test_gemma_scope_in_float16_is_computed_in_float32(tmp_path: Path) -> None:
    w, z = {name: value.astype(np.float16) for name, value in arrays("jumprelu").items()}, states() * 7000
    sae = loaded(write_gemma_scope(tmp_path / "x/params.npz", w))
    want = loop_encode(z, {name: value.astype(np.float32) for name, value in w.items()}, "jumprelu", centred=False)
    np.testing.assert_allclose(sae.encode(torch.from_numpy(z)).numpy(), want, rtol=1e-5, atol=1e-2)
    assert np.linalg.norm(z, axis=1).max() > 24_000


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("gemma-scope-2b-pt-mlp/layer_1", r"hook blocks\.1\.hook_mlp_out"),
        ("gemma-scope-2b-pt-att/layer_1", "hook_z"),
        ("gemma-scope-2b-pt-transcoders/layer_1", "transcoder"),
        ("gemma-scope-2b-pt-res/embedding/width_4k/average_l0_6", "token embeddings"),
    ],
)
def test_gemma_scope_of_other_places_is_refused(where: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SAEError, match=message):
        loaded(write_gemma_scope(tmp_path / where / "params.npz", arrays("jumprelu")))


# 4. Llama Scope folders


def test_llama_scope_folder_equals_the_hub_load(tmp_path: Path, hub: Path) -> None:
    w, z = arrays("standard"), torch.from_numpy(states() / LLAMA_FACTOR)
    write_llama_scope(hub / LLAMA_FOLDER, w)
    from_folder, from_hub = loaded(hub / LLAMA_FOLDER), by_release(*LLAMA)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"):
        torch.testing.assert_close(from_folder.tensors[name], from_hub.tensors[name], rtol=1e-6, atol=0)
    assert torch.equal(from_folder.encode(z) > 0, from_hub.encode(z) > 0)
    torch.testing.assert_close(from_folder.decode(from_folder.encode(z)), from_hub.decode(from_hub.encode(z)))
    assert from_folder.identity["norm_factor"] == pytest.approx(LLAMA_FACTOR)
    assert {k: from_folder.identity[k] for k in ("layer", "model_name", "expected_l0")} == {
        k: from_hub.identity[k] for k in ("layer", "model_name", "expected_l0")
    }


def test_llama_scope_folder_by_a_plain_loop(tmp_path: Path) -> None:
    w, z = arrays("standard"), states() / LLAMA_FACTOR
    sae = loaded(write_llama_scope(tmp_path / "sae", w))
    same(sae, loop_encode(z, llama_folded(w), "jumprelu", centred=False), z)
    # The same for the SAE as it was trained: it reads factor * z, and its output is scaled back.
    trained = bfloat16(w)
    pre = (LLAMA_FACTOR * z.astype(np.float64)) @ trained["W_enc"] + trained["b_enc"]
    f = pre * (pre > 0.125 * LLAMA_FACTOR)
    np.testing.assert_allclose(sae.encode(torch.from_numpy(z)).numpy(), f, atol=1e-5)
    back = (f @ trained["W_dec"] + trained["b_dec"]) / LLAMA_FACTOR
    np.testing.assert_allclose(sae.decode(torch.from_numpy(f)).numpy(), back, atol=1e-5)


def test_without_its_norm_factor_llama_scope_is_another_sae(tmp_path: Path) -> None:
    w, z = arrays("standard"), states() / LLAMA_FACTOR
    sae = loaded(write_llama_scope(tmp_path / "sae", w))
    unfolded = loop_encode(z, {**bfloat16(w), "threshold": np.full(D_SAE, 0.125)}, "jumprelu", centred=False)
    assert ((unfolded > 0) != (sae.encode(torch.from_numpy(z)).numpy() > 0)).mean() > 0.1
    lengths = np.linalg.norm(sae.directions(range(D_SAE)), axis=1) / np.linalg.norm(bfloat16(w)["W_dec"], axis=1)
    np.testing.assert_allclose(lengths, 1 / LLAMA_FACTOR, rtol=1e-5)


def test_decoder_norms_in_llama_scopes_threshold_are_said(tmp_path: Path) -> None:
    """Its trainer gates by decoder norms; sae-lens, from which METHOD.md has its numbers, does not."""
    folder = write_llama_scope(tmp_path / "sae", arrays("standard"), sparsity_include_decoder_norm=True)
    with pytest.warns(UserWarning, match=r"decoder norms in its threshold .* compare its measured L0"):
        loaded(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"act_fn": "topk"}, r"(?s)not supported.*act_fn=jumprelu.*act_fn=topk"),
        ({"norm_activation": "token-wise"}, r"(?s)norm_activation=dataset-wise.*norm_activation=token-wise"),
        ({"use_glu_encoder": True}, "use_glu_encoder=True"),
        ({"use_decoder_bias": False}, "use_decoder_bias=False"),
        ({"sae_type": "crosscoder"}, "sae_type=crosscoder"),
        ({"dataset_average_activation_norm": {"in": 2.0, "out": 3.0}}, r"(?s)another scale than it reads.*in 2.0, out 3.0"),
        ({"hook_point_out": "blocks.15.hook_mlp_out"}, r"hook_point_out=blocks\.15\.hook_resid_post.*\n.*hook_point_out=blocks\.15\.hook_mlp_out"),
        ({"hook_point_in": "blocks.15.hook_mlp_out", "hook_point_out": "blocks.15.hook_mlp_out"}, "found: hook blocks.15.hook_mlp_out"),
        ({"dataset_average_activation_norm": {"in": 0}}, "dataset_average_activation_norm.in"),
        ({"dataset_average_activation_norm": None}, "dataset_average_activation_norm.in"),
        ({"jump_relu_threshold": None}, "jump_relu_threshold"),
        ({"d_model": 13}, r"(?s)wrong shape.*\(40, 13\)"),
        ({"d_sae": 41}, r"(?s)wrong shape.*\(41, 12\)"),
    ],
)
def test_llama_scope_of_other_kinds_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SAEError, match=message):
        loaded(write_llama_scope(tmp_path / "sae", arrays("standard"), **change))


# what is not there, or damaged


def test_no_sae_named_says_which_command_supplies_one() -> None:
    with pytest.raises(MissingError, match=r"(?s)no SAE is given.*sparserm sae train"):
        load_sae(SAEConfig())


def test_what_lies_at_the_path(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/model.bin").touch()
    for name, content in (("nowhere", "nothing"), ("empty", "an empty folder"), ("note.txt", "a file"), ("other", "model.bin")):
        with pytest.raises(SAEError, match=rf"(?s)no SAE at .*{name}.*found: {content}"):
            loaded(tmp_path / name)


def gemma(folder: Path, content: bytes | None = None, **changes: np.ndarray) -> None:
    file = write_gemma_scope(folder / "params.npz", arrays("jumprelu"), **changes)
    if content is not None:
        file.write_bytes(content or file.read_bytes()[:500])


def plain(folder: Path, name: str = "", content: bytes | None = None, **changes: np.ndarray) -> None:
    write_folder(folder, {**arrays("standard"), **changes}, "standard")
    if name:
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)


NPY = b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }".ljust(127) + b"\n" + bytes(8)
DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut npz": lambda folder: gemma(folder, b""),
    "not an npz": lambda folder: gemma(folder, b"hello"),
    "pickled npz": lambda folder: gemma(folder, b_dec=np.array([{}], dtype=object)),
    "npy as npz": lambda folder: gemma(folder, NPY),
    "text in npz": lambda folder: gemma(folder, b_dec=np.array(["x"])),
    "cut weights": lambda folder: plain(folder, "sae_weights.safetensors", b"\x10"),
    "no weights": lambda folder: plain(folder, "sae_weights.safetensors"),
    "cfg is no json": lambda folder: plain(folder, "cfg.json", b"{"),
    "cfg is not text": lambda folder: plain(folder, "cfg.json", b"\xff\xfe\x00"),
    "cfg is a list": lambda folder: plain(folder, "cfg.json", b"[]"),
    "nan": lambda folder: plain(folder, b_dec=np.full(D_MODEL, np.nan, np.float32)),
    "infinite": lambda folder: plain(folder, b_enc=np.full(D_SAE, np.inf, np.float32)),
    "flat decoder": lambda folder: plain(folder, W_dec=arrays("standard")["W_dec"].ravel()),
    "no llama weights": lambda folder: (write_llama_scope(folder, arrays("standard")) / "checkpoints/final.safetensors").unlink(),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_files_are_errors_with_a_name(kind: str, tmp_path: Path) -> None:
    DAMAGES[kind](tmp_path / "sae")
    with pytest.raises(SAEError, match=r"can't be read|holds|infinite or missing|wrong shape"):
        loaded(tmp_path / "sae")


def test_formats_are_told_apart(tmp_path: Path) -> None:
    assert detect_format(write_folder(tmp_path / "a", arrays("standard"), "standard")) == "sae-lens"
    assert detect_format(write_llama_scope(tmp_path / "b", arrays("standard"))) == "llama-scope"
    assert detect_format(write_gemma_scope(tmp_path / "c/params.npz", arrays("jumprelu"))) == "gemma-scope"
    assert detect_format(write_gemma_scope(tmp_path / "d/renamed.npz", arrays("jumprelu"))) == "gemma-scope"


def test_progress_is_told(tmp_path: Path) -> None:
    calls: list[tuple[str, float, float]] = []
    folder = write_folder(tmp_path / "sae", arrays("standard"), "standard")
    load_sae(SAEConfig(path=str(folder)), progress=lambda step, done, total, **figures: calls.append((step, done, total)))
    assert calls == [("load SAE", 0, 1), ("load SAE", 1, 1)]


def test_loading_a_folder_does_not_import_sae_lens(tmp_path: Path) -> None:
    """sae-lens takes seconds and half a gigabyte to import."""
    import subprocess
    import sys

    folder = write_folder(tmp_path / "sae", arrays("jumprelu"), "jumprelu")
    code = f"""
import sys
from core.sae.autoencoder import load_sae
from core.config import SAEConfig
load_sae(SAEConfig(path={str(folder)!r}))
assert 'sae_lens' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
