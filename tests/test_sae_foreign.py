"""Folders of other trainers, files of two SAEs in one folder, and damaged files: read correctly, or refused by name."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sae_helpers import D_MODEL, D_SAE, K, arrays, loop_encode, states, write_folder, write_gemma_scope, write_llama_scope
from safetensors.torch import load_file, save_file

from core.config import SAEConfig
from core.errors import SAEError
from core.sae.autoencoder import SparseAutoencoder, load_sae

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"


def loaded(path: Path, **config: str) -> SparseAutoencoder:
    return load_sae(SAEConfig(path=str(path), **config))


def write_sparsify(path: Path, w: dict[str, np.ndarray], *, dtype: torch.dtype = torch.float32, drop: str = "", **changes: Any) -> Path:
    """A folder as sparsify saves it: the encoder a linear layer, the decoder latent by latent."""
    path.mkdir(parents=True)
    tensors = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]}
    save_file({name: torch.from_numpy(value.copy()).to(dtype) for name, value in tensors.items() if name != drop}, path / "sae.safetensors")
    d_model, d_sae = w["W_enc"].shape
    cfg = {
        "activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": d_sae, "k": K, "multi_topk": False,
        "skip_connection": False, "transcode": False, "d_in": d_model,
    }  # fmt: skip
    (path / "cfg.json").write_text(json.dumps({**cfg, **changes}))
    return path


# sparsify


def test_sparsify_by_a_plain_loop(tmp_path: Path) -> None:
    """f = the k largest of relu(encoder(z - b_dec)), z^ = f W_dec + b_dec, one number at a time."""
    w, z = arrays("topk"), states()
    sae = loaded(write_sparsify(tmp_path / "sae/layers.10", w))
    f = np.zeros((len(z), D_SAE))
    for row in range(len(z)):
        pre = [
            sum(float(w["W_enc"][i, j]) * (float(z[row, i]) - float(w["b_dec"][i])) for i in range(D_MODEL)) + float(w["b_enc"][j])
            for j in range(D_SAE)
        ]
        for j in sorted(range(D_SAE), key=lambda j: -pre[j])[:K]:
            f[row, j] = max(pre[j], 0.0)
    back = np.array(
        [[sum(f[row, j] * float(w["W_dec"][j, i]) for j in range(D_SAE)) + float(w["b_dec"][i]) for i in range(D_MODEL)] for row in range(len(z))]
    )
    encoded = sae.encode(torch.from_numpy(z))
    assert np.array_equal(encoded.numpy() > 0, f > 0) and 0 < (f > 0).sum(1).max() <= K
    np.testing.assert_allclose(encoded.numpy(), f, atol=1e-5)
    np.testing.assert_allclose(sae.decode(encoded).numpy(), back, atol=1e-4)
    np.testing.assert_array_equal(sae.directions([3, 7]), w["W_dec"][[3, 7]])
    assert (sae.architecture, sae.k, sae.layer, sae.identity["source"], sae.identity["hook_name"]) == ("topk", K, 10, "sparsify", "layers.10")


def test_sparsify_names_its_model_and_layer(tmp_path: Path) -> None:
    root = tmp_path / "sae-pythia-160m"
    for name in ("layers.2", "layers.11", "h.5"):
        write_sparsify(root / name, arrays("topk"), dtype=torch.bfloat16)
    (root / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m", "dataset": "pile"}))
    assert {loaded(root / name).layer for name in ("layers.2", "layers.11", "h.5")} == {2, 11, 5}
    assert loaded(root / "h.5").identity["model_name"] == "EleutherAI/pythia-160m"
    with pytest.raises(SAEError, match=r"(?s)in folders inside it.*h\.5, layers\.2, layers\.11.*--sae .*h\.5"):
        loaded(root)
    assert loaded(write_sparsify(tmp_path / "renamed", arrays("topk"))).layer is None


def test_sparsify_by_expansion_factor(tmp_path: Path) -> None:
    assert loaded(write_sparsify(tmp_path / "a", arrays("topk", d_sae=36), num_latents=0, expansion_factor=3)).d_sae == 36
    with pytest.raises(SAEError, match=r"wrong shape for its configuration, which gives d_sae 48"):
        loaded(write_sparsify(tmp_path / "b", arrays("topk", d_sae=36), num_latents=0, expansion_factor=4))


@pytest.mark.parametrize(
    ("where", "changes", "message"),
    [
        ("layers.1", {"k": None}, "does not give its k"),
        ("layers.1", {"k": D_SAE + 1}, "impossible k"),
        ("layers.1", {"activation": "groupmax"}, r"(?s)not supported.*activation: topk.*activation: 'groupmax'"),
        ("layers.1", {"signed": True}, r"(?s)signed: false.*signed: true"),
        ("layers.1", {"transcode": True}, "transcode: true"),
        ("layers.1", {"skip_connection": True}, "skip_connection: true"),
        ("layers.1", {"gram_lookup": True}, "gram_lookup: true"),
        ("layers.1", {"embed_skip": True}, "embed_skip: true"),
        ("layers.1", {"post_scale": 2}, "unknown field 'post_scale'"),
        ("layers.1", {"d_in": 13}, "gives d_in 13"),
        ("layers.1", {"drop": "W_dec"}, r"(?s)does not hold the tensors that sparsify saves.*W_dec.*sae.safetensors"),
        ("layers.1.mlp", {}, r"(?s)a layer's MLP.*hook layers.1.mlp"),
        ("layers.1.attention", {}, "attention"),
        ("embed_tokens", {}, "embeddings"),
    ],
)
def test_sparsify_of_other_kinds_is_refused(where: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SAEError, match=message):
        loaded(write_sparsify(tmp_path / where, arrays("topk"), **changes))


def test_a_release_of_sparsify_is_read_from_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """sae-lens transposes W_dec and leaves b_dec out of the input where norms were kept at one."""
    from sae_lens.loading import pretrained_sae_loaders

    monkeypatch.setattr(pretrained_sae_loaders, "get_conversion_loader_name", lambda _: "sparsify")
    with pytest.raises(SAEError, match=r"(?s)reads them by 'sparsify'.*to do: fetch the SAE's folder and give --sae FOLDER"):
        load_sae(SAEConfig(release="eleuther", sae_id="layers.1"))


# other trainers, and folders without an SAE


def touch(*names: str, **texts: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"x")
        for name, text in texts.items():
            (folder / name.replace("_json", ".json")).write_text(text)

    return make


FOREIGN: dict[str, tuple[Callable[[Path], None], str]] = {
    "dictionary_learning": (
        touch("ae.pt", config_json='{"trainer": {}}'),
        r"dictionary_learning.*ae\.pt is a pickle.*to do: convert it once.*cfg\.json",
    ),
    "openai": (touch("5.pt", "6.pt"), r"PyTorch files \(5\.pt, 6\.pt\), as OpenAI's.*W_enc \[d_in, d_sae\]"),
    "pytorch weights and cfg": (touch("sae.bin", cfg_json="{}"), r"PyTorch files \(sae\.bin\)"),
    "adapter": (touch("adapter_model.safetensors", adapter_config_json="{}"), r"an adapter of a language model, not an SAE"),
    "language model": (touch("model.safetensors", config_json='{"model_type": "llama"}'), r"a language model, not an SAE"),
    "gemma scope 2": (touch("params.safetensors", config_json='{"hf_hook_point_in": "x"}'), r"Gemma Scope 2, which is read by release and id"),
    "openmoss": (touch("sae_weights.safetensors", config_json='{"sae_type": "sae"}'), r"Language-Model-SAEs"),
    "weights without cfg": (touch("sae_weights.safetensors"), r"sae_weights\.safetensors without the cfg\.json"),
    "weights of another name": (touch("model.safetensors", cfg_json="{}"), r"cfg\.json with weights of another name \(model\.safetensors\)"),
    "dictionary_learning repository": (touch("layer_3/trainer_0/notes.txt"), r"there is no SAE at .*found: layer_3"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_folders_of_others_are_named(kind: str, tmp_path: Path) -> None:
    make, message = FOREIGN[kind]
    folder = tmp_path / "thing"
    folder.mkdir()
    make(folder)
    with pytest.raises(SAEError, match=rf"(?s){message}"):
        loaded(folder)


@pytest.mark.parametrize("name", ["ae.pt", "5.pt", "sae.pth", "sae.bin", "sae.pkl", "sae.ckpt"])
def test_a_pickle_is_never_opened(name: str, tmp_path: Path) -> None:
    class Boom:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / name).write_bytes(pickle.dumps(Boom()))
    with pytest.raises(SAEError, match=r"(?s)a PyTorch file \(a pickle\), which is not opened.*convert it once"):
        loaded(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_repository_of_several_lists_its_folders(tmp_path: Path) -> None:
    for number in range(9):
        write_folder(tmp_path / f"repo/resid/layer_{number}/width_16k", arrays("standard"), "standard")
    (tmp_path / "repo/README.md").touch()
    with pytest.raises(
        SAEError, match=r"(?s)in folders inside it.*resid/layer_0/width_16k, .*resid/layer_5/width_16k and 3 more.*--sae .*resid/layer_0/width_16k"
    ):
        loaded(tmp_path / "repo")


def test_a_file_of_the_folder_stands_for_it(tmp_path: Path) -> None:
    folder, sparse = write_folder(tmp_path / "a", arrays("standard"), "standard"), write_sparsify(tmp_path / "layers.1", arrays("topk"))
    assert loaded(folder / "cfg.json").identity == loaded(folder / "sae_weights.safetensors").identity == loaded(folder).identity
    assert loaded(sparse / "sae.safetensors").identity == loaded(sparse).identity
    llama = write_llama_scope(tmp_path / "l", arrays("standard"))
    assert loaded(llama / "checkpoints/final.safetensors").identity == loaded(llama).identity


# files of two SAEs in one folder


def test_a_cfg_of_another_sae_is_seen_if_files_disagree(tmp_path: Path) -> None:
    here = write_folder(tmp_path / "here", arrays("standard"), "standard")
    for name, other, message in (
        (
            "width",
            write_folder(tmp_path / "w", arrays("standard", d_sae=44), "standard"),
            r"(?s)W_dec.*wrong shape.*gives d_sae 44.*same SAE side by side",
        ),
        ("d_model", write_folder(tmp_path / "d", arrays("standard", d_model=13), "standard"), r"gives d_in 13"),
        (
            "kind",
            write_folder(tmp_path / "j", arrays("jumprelu"), "jumprelu"),
            r"(?s)tensors of its architecture \(jumprelu\).*missing: threshold.*standard",
        ),
    ):
        mixed = tmp_path / f"mixed-{name}"
        shutil.copytree(here, mixed)
        shutil.copy(other / "cfg.json", mixed)
        with pytest.raises(SAEError, match=message) as caught:
            loaded(mixed)
        assert str(mixed / "sae_weights.safetensors") in str(caught.value)


def test_a_folder_that_is_called_another_hook(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "blocks.8.hook_resid_pre", arrays("standard"), "standard", metadata={"hook_name": "blocks.3.hook_resid_post"})
    with pytest.raises(SAEError, match=r"(?s)not of one SAE.*another layer than the folder.*blocks\.8\.hook_resid_pre.*blocks\.3\.hook_resid_post"):
        loaded(folder)
    fine = write_folder(tmp_path / "blocks.4.hook_resid_pre", arrays("standard"), "standard", metadata={"hook_name": "blocks.4.hook_resid_pre"})
    assert loaded(fine).layer == 3


def test_sparsity_of_another_width(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "sae", arrays("standard"), "standard")
    save_file({"sparsity": torch.zeros(D_SAE)}, folder / "sparsity.safetensors")
    loaded(folder)
    save_file({"sparsity": torch.zeros(D_SAE + 1)}, folder / "sparsity.safetensors")
    with pytest.raises(SAEError, match=r"(?s)sparsity.safetensors has another width.*40 latents.*41 latents"):
        loaded(folder)


def test_a_trained_sae_is_held_to_its_card(tmp_path: Path) -> None:
    """The card of the embedded SAE holds the hash of its weights: any flipped byte is an error, even if numbers stay
    finite."""
    from core.fit.defaults import DEMO_SAE

    folder = tmp_path / "sae"
    shutil.copytree(DEMO_SAE, folder)
    loaded(folder)
    weights = folder / "sae_weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 1
    weights.write_bytes(content)
    with pytest.raises(SAEError, match=r"(?s)not of one SAE.*damaged or another SAE's.*sha256.*card.json"):
        loaded(folder)
    shutil.copy(DEMO_SAE / "sae_weights.safetensors", weights)
    cfg = json.loads((folder / "cfg.json").read_text())
    cfg["metadata"]["hook_name"] = "blocks.20.hook_resid_post"
    (folder / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(SAEError, match=r"(?s)not the one it was saved with.*blocks\.19\.hook_resid_post.*blocks\.20"):
        loaded(folder)


# tensors


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
def test_missing_unknown_and_misshapen_tensors_are_named(architecture: str, tmp_path: Path) -> None:
    w = arrays(architecture)
    for number, key in enumerate(w):
        for kind, tensors, message in (
            ("missing", {name: value for name, value in w.items() if name != key}, rf"(?s)architecture \({architecture}\).*missing: {key}"),
            ("unknown", {**w, "W_skip": w["W_enc"].copy()}, r"(?s)not of this architecture: W_skip"),
            ("nan", {**w, key: np.where(np.arange(w[key].size).reshape(w[key].shape) == 3, np.nan, w[key])}, rf"(?s)tensor {key} .*1 of \d+ numbers"),
            ("short", {**w, key: w[key][..., :-1]}, r"wrong shape|contradicts"),
        ):
            folder = write_folder(tmp_path / f"{kind}-{number}", w, architecture)
            save_file(
                {name: torch.from_numpy(np.ascontiguousarray(value, np.float32)) for name, value in tensors.items()},
                folder / "sae_weights.safetensors",
            )
            with pytest.raises(SAEError, match=message) as caught:
                loaded(folder)
            assert "to do:" in str(caught.value) and str(folder / "sae_weights.safetensors") in str(caught.value)


@pytest.mark.parametrize("key", ["W_enc", "W_dec"])
def test_zeros_that_a_cut_download_left_are_named(key: str, tmp_path: Path) -> None:
    w = arrays("jumprelu")
    folder = write_folder(tmp_path / "sae", {**w, key: np.zeros_like(w[key])}, "jumprelu")
    with pytest.raises(SAEError, match=rf"(?s)tensor {key} of SAE .* holds zeros only.*to do: fetch the file again"):
        loaded(folder)


@pytest.mark.parametrize("key", ["W_enc", "W_dec"])
def test_a_transposed_matrix_is_named(key: str, tmp_path: Path) -> None:
    w = arrays("jumprelu")
    for folder in (write_folder(tmp_path / "a", w, "jumprelu"), write_gemma_scope(tmp_path / "b/params.npz", {**w, key: w[key].T}).parent):
        if (folder / "sae_weights.safetensors").is_file():
            tensors = {name: torch.from_numpy(np.ascontiguousarray(value.T if name == key else value)) for name, value in w.items()}
            save_file(tensors, folder / "sae_weights.safetensors")
        with pytest.raises(SAEError, match=rf"(?s)tensor {key} .*wrong shape: it is transposed.*to do: save {key} transposed"):
            loaded(folder)


def square(seed: int = 0, width: int = 32, noise: float = 1.0) -> dict[str, np.ndarray]:
    """An SAE with the structure of a trained one: unit decoder rows, and encoder columns roughly along them."""
    rng = np.random.default_rng(seed)
    decoder = rng.normal(size=(width, width))
    decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
    encoder = decoder.T + noise * rng.normal(size=(width, width)) / np.sqrt(width)
    w = {"W_enc": encoder, "W_dec": decoder, "b_enc": rng.normal(size=width), "b_dec": rng.normal(size=width)}
    return {name: value.astype(np.float32) for name, value in w.items()}


@pytest.mark.parametrize("seed", range(4))
def test_a_square_sae_is_read_only_the_right_way_round(seed: int, tmp_path: Path) -> None:
    w, z = square(seed), states(d_model=32)
    sae = loaded(write_folder(tmp_path / "right", w, "standard"))
    np.testing.assert_allclose(sae.encode(torch.from_numpy(z)).numpy(), loop_encode(z, w, "standard", centred=True), atol=1e-4)
    for number, turned in enumerate((("W_enc",), ("W_dec",), ("W_enc", "W_dec"))):
        wrong = {name: np.ascontiguousarray(value.T if name in turned else value) for name, value in w.items()}
        with pytest.raises(SAEError, match=r"(?s)one of them may be transposed.*mean cosine.*to do: save W_enc as \[d_model, d_sae\]"):
            loaded(write_folder(tmp_path / f"wrong-{number}", wrong, "standard"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.float8_e4m3fn, torch.bool])
def test_tensors_that_are_no_floats_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "sae", arrays("standard"), "standard")
    tensors = load_file(folder / "sae_weights.safetensors")
    save_file({**tensors, "W_enc": tensors["W_enc"].to(dtype)}, folder / "sae_weights.safetensors")
    with pytest.raises(SAEError, match=r"(?s)tensor W_enc of .*sae_weights.safetensors can't be read as weights.*float32.*to do: save it as float32"):
        loaded(folder)


def test_overflow_of_float16_and_of_float32_is_refused(tmp_path: Path) -> None:
    w = arrays("standard")
    w["W_enc"][2, 3] = 70_000
    with pytest.raises(SAEError, match=r"(?s)tensor W_enc .*infinite.*float16 ends at 65,504"):
        loaded(write_folder(tmp_path / "a", w, "standard", dtype=torch.float16))
    huge = {name: value.astype(np.float64) for name, value in arrays("jumprelu").items()}
    huge["b_enc"][1] = 1e300
    with pytest.raises(SAEError, match=r"tensor b_enc .*infinite"):
        loaded(write_gemma_scope(tmp_path / "b/params.npz", huge))


# damaged files


def broken(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder


def test_damaged_files_say_what_they_are(tmp_path: Path) -> None:
    def fresh(name: str) -> Path:
        return write_folder(tmp_path / name, arrays("standard"), "standard")

    weights = "sae_weights.safetensors"
    whole = (fresh("whole") / weights).read_bytes()
    cases = [
        (broken(fresh("lfs"), weights, LFS), r"Git LFS pointer.*git lfs pull"),
        (broken(fresh("lfs cfg"), "cfg.json", LFS), r"cfg\.json can't be read.*Git LFS pointer"),
        (broken(fresh("cut"), weights, whole[:-100]), rf"breaks off: {len(whole) - 100:,} of {len(whole):,} bytes"),
        (broken(fresh("cut header"), weights, whole[:50]), r"breaks off in its header after 50 bytes"),
        (broken(fresh("empty"), weights, b""), r"an empty file"),
        (broken(fresh("page"), weights, b"<!DOCTYPE html><html>404</html>"), r"a web page"),
        (broken(fresh("pickle"), weights, pickle.dumps([1, 2])), r"a pickle, which is not opened.*convert it"),
        (broken(fresh("deep"), "cfg.json", b"[" * 100_000), r"cfg\.json can't be read"),
    ]
    zipped = fresh("torch")
    with zipfile.ZipFile(zipped / weights, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    cases.append((zipped, r"a PyTorch file \(a pickle\)"))
    (missing := fresh("missing")).joinpath(weights).unlink()
    cases.append((missing, r"sae_weights\.safetensors can't be read: there is no such file.*cfg\.json"))
    for name, content, message in (
        ("npz lfs", LFS, r"params\.npz can't be read.*Git LFS pointer"),
        ("npz empty", b"", r"an empty file"),
        ("npz pickle", pickle.dumps({}), r"a pickle, which is not opened"),
    ):
        cases.append((broken(write_gemma_scope(tmp_path / name / "params.npz", arrays("jumprelu")).parent, "params.npz", content), message))
    objects = write_gemma_scope(tmp_path / "objects/params.npz", arrays("jumprelu"), b_dec=np.array([{}], dtype=object)).parent
    cases.append((objects, r"tensor b_dec of .*pickled Python objects, which are not opened"))
    words = write_gemma_scope(tmp_path / "words/params.npz", arrays("jumprelu"), b_dec=np.array(["x"])).parent
    cases.append((words, r"tensor b_dec of .*can't be read as weights"))
    for folder, message in cases:
        with pytest.raises(SAEError, match=rf"(?s){message}") as caught:
            loaded(folder)
        assert "to do:" in str(caught.value), message


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_named_or_harmless(data: st.DataObject, tmp_path: Path) -> None:
    """Cut, flipped, emptied or replaced bytes in any file of any format: an SAE of finite numbers, or an SAEError."""
    root = tmp_path / "originals"
    if not root.exists():
        write_folder(root / "sae-lens", arrays("jumprelu"), "jumprelu")
        write_gemma_scope(root / "gemma/params.npz", arrays("jumprelu"))
        np.savez_compressed(root / "gemma/packed.npz", **arrays("jumprelu"))
        write_llama_scope(root / "llama", arrays("standard"))
        write_sparsify(root / "layers.3", arrays("topk"))
    file = data.draw(st.sampled_from(sorted(path for path in root.rglob("*") if path.is_file())))
    shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
    shutil.copytree(root, tmp_path / "damaged")
    target = tmp_path / "damaged" / file.relative_to(root)
    content = bytearray(file.read_bytes())
    kind = data.draw(st.sampled_from(["cut", "flip", "insert", "replace"]))
    at = data.draw(st.integers(0, len(content) - 1))
    if kind == "cut":
        content = content[:at]
    elif kind == "flip":
        content[at] ^= data.draw(st.integers(1, 255))
    elif kind == "insert":
        content[at:at] = data.draw(st.binary(min_size=1, max_size=20))
    else:
        content = bytearray(data.draw(st.binary(max_size=200)))
    target.write_bytes(content)
    folder = target if target.suffix == ".npz" else tmp_path / "damaged" / file.relative_to(root).parts[0]
    try:
        sae = loaded(folder)
    except SAEError as error:
        assert "this is a bug" not in str(error)
    else:
        assert all(bool(torch.isfinite(tensor).all()) for tensor in sae.tensors.values())


def test_a_reward_model_knows_its_sae_by_the_configuration_too(tmp_path: Path) -> None:
    """The same weights under another cfg.json are another SAE: another k, or an input that is no longer centred."""
    from core.errors import MismatchError
    from core.reward.model import check_same_sae

    made_for = loaded(write_folder(tmp_path / "a", arrays("topk"), "topk")).identity
    check_same_sae(made_for, loaded(write_folder(tmp_path / "b/a", arrays("topk"), "topk")).identity)
    for number, changes in enumerate(({"k": K + 1}, {"apply_b_dec_to_input": False}, {"rescale_acts_by_decoder_norm": True})):
        here = loaded(write_folder(tmp_path / f"c{number}/a", arrays("topk"), "topk", **changes)).identity
        assert here["sha256"] == made_for["sha256"]
        with pytest.raises(MismatchError, match=rf"(?s)made for another SAE.*found:.*{next(iter(changes))} {next(iter(changes.values()))}"):
            check_same_sae(made_for, here)
    older = {key: value for key, value in made_for.items() if key not in ("k", "layer")}
    check_same_sae(older, loaded(write_folder(tmp_path / "d/a", arrays("topk"), "topk", k=K + 1)).identity)
