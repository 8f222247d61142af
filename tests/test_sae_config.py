"""Every field of an SAE's configuration is computed or refused by name, for sae-lens 0 to 6 and tools of its format."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_helpers import D_MODEL, D_SAE, arrays, loop_encode, states, write_folder

from core.config import SAEConfig
from core.errors import SAEError
from core.sae.autoencoder import SparseAutoencoder, load_sae
from core.sae.configuration import HARMLESS, READ

OLD = {
    "d_in": D_MODEL, "d_sae": D_SAE, "dtype": "torch.float32", "device": "cpu", "model_name": "toy", "hook_point": "blocks.3.hook_resid_post",
    "hook_point_layer": 3, "hook_point_head_index": None, "activation_fn_str": "relu", "normalize_activations": False, "prepend_bos": True,
    "apply_b_dec_to_input": True, "finetuning_scaling_factor": False, "dataset_path": "text", "context_size": 128,
}  # fmt: skip


def old_folder(path: Path, w: dict[str, np.ndarray], **changes: Any) -> Path:
    """A folder as sae-lens wrote it before version 6: every field on one level."""
    folder = write_folder(path, w, "standard")
    (folder / "cfg.json").write_text(json.dumps({**OLD, **changes}))
    return folder


def changed(folder: Path, **changes: Any) -> Path:
    cfg = folder / "cfg.json"
    cfg.write_text(json.dumps({**json.loads(cfg.read_text()), **changes}))
    return folder


def loaded(folder: Path) -> SparseAutoencoder:
    return load_sae(SAEConfig(path=str(folder)))


def encoded(folder: Path, z: np.ndarray) -> np.ndarray:
    return loaded(folder).encode(torch.from_numpy(z)).numpy()


# fields of old configurations


@pytest.mark.parametrize("field", ["activation_fn", "activation_fn_str"])
@pytest.mark.parametrize("activation", ["tanh-relu", "gelu", "silu", "TopK", "relu6", "jumprelu"])
def test_other_activations_are_refused_by_name(field: str, activation: str, tmp_path: Path) -> None:
    """sae-lens reads all of these as ReLU."""
    folder = changed(old_folder(tmp_path / "sae", arrays("standard")), **{"activation_fn_str": "relu", field: activation})
    with pytest.raises(SAEError, match=rf"(?s)SAE sae has the activation function '{activation}'.*expected: {field}: relu, or topk.*'{activation}'"):
        loaded(folder)


def test_other_activations_are_refused_in_version_6_too(tmp_path: Path) -> None:
    folder = changed(write_folder(tmp_path / "sae", arrays("standard"), "standard"), activation_fn="tanh-relu")
    with pytest.raises(SAEError, match="'tanh-relu'"):
        loaded(folder)


@pytest.mark.parametrize("options", [None, {}, {"k": None}])
def test_topk_without_k_is_refused(options: Any, tmp_path: Path) -> None:
    folder = old_folder(tmp_path / "sae", arrays("topk"), activation_fn_str="topk", activation_fn_kwargs=options)
    with pytest.raises(SAEError, match=r"(?s)does not give its k.*expected: k, or activation_fn_kwargs with a k.*no k"):
        loaded(folder)
    with pytest.raises(SAEError, match=r"does not give its k"):
        loaded(changed(write_folder(tmp_path / "new", arrays("topk"), "topk"), k=None))


@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_old_topk_with_k_equals_a_loop_and_sae_lens(architecture: str, tmp_path: Path) -> None:
    from sae_lens import SAE

    w, z = arrays("topk"), states()
    folder = old_folder(tmp_path / "sae", w, architecture=architecture, activation_fn_str="topk", activation_fn_kwargs={"k": 7, "signed": False})
    f = encoded(folder, z)
    np.testing.assert_allclose(f, loop_encode(z, w, "topk", centred=True, k=7), atol=1e-5)
    with torch.no_grad():
        reference = SAE.load_from_disk(old_folder(tmp_path / "same", w, architecture="topk", activation_fn_str="topk", activation_fn_kwargs={"k": 7}))
        np.testing.assert_allclose(f, reference.encode(torch.from_numpy(z)).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_fn_kwargs": {"k": 5}}, r"(?s)has k and architecture standard, which has none.*found: k: 5"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5, "signed": True}}, r"(?s)signed.*not supported.*kwargs.signed: true"),
        ({"activation_fn_kwargs": {"alpha": 0.1}}, r"(?s)alpha.*not supported"),
        ({"activation_fn_kwargs": "k=5"}, "options of its activation that can't be read"),
        ({"architecture": "gated", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}, "has activation topk and architecture gated"),
        ({"activation_fn": "topk", "activation_fn_kwargs": {"k": 5}}, "names two activation functions"),
        ({"normalize_activations": "layer_norm"}, r"(?s)normalises each input.*layer_norm"),
        ({"normalize_activations": "unit_norm"}, r"(?s)normalises each input.*unit_norm"),
        ({"normalize_activations": True}, "scaled to an average norm, and the factor is not in its files"),
        ({"finetuning_scaling_factor": True}, r"(?s)fine-tuned scaling factor.*no such tensor"),
        ({"uses_scaling_factor": True}, r"(?s)fine-tuned scaling factor.*no such tensor"),
        ({"finetuning_scaling_factor": 1.5}, r"(?s)scales its activations.*finetuning_scaling_factor: 1.5"),
        ({"d_out": 24}, r"(?s)transcoder.*d_out: 24"),
        ({"out_hook_point": "blocks.3.hook_mlp_out"}, r"(?s)transcoder: it writes another point.*blocks.3.hook_mlp_out"),
        ({"is_transcoder": True}, r"(?s)unknown field 'is_transcoder'.*move it into metadata"),
        ({"hook_point_head_index": 0}, r"(?s)attention heads.*hook_point_head_index: 0"),
        ({"hook_point_layer": 8}, r"(?s)names two layers.*hook_point blocks.3.hook_resid_post, hook_point_layer 8"),
        ({"hook_point": "blocks.3.attn.hook_z"}, r"(?s)a layer's attention.*hook blocks.3.attn.hook_z"),
        ({"dtype": "int8"}, r"(?s)weights of a type.*float32 \| float16.*'int8'"),
        ({"dtype": "float8_e4m3fn"}, "weights of a type"),
        ({"apply_b_dec_to_input": "no"}, r"(?s)neither true nor false.*apply_b_dec_to_input: 'no'"),
        ({"activation_scale": 2.0}, r"(?s)unknown field 'activation_scale'.*found: activation_scale: 2.0"),
        ({"encoder_gain": [1, 2]}, "unknown field 'encoder_gain'"),
        ({"d_in": None, "d_sae": None}, "does not give its architecture"),
        ({"metadata": {"k": 3}}, "does not give its architecture"),
        ({"model_from_pretrained_kwargs": {"center_writing_weights": True}}, r"(?s)centred by TransformerLens.*center_writing_weights: true"),
    ],
)  # fmt: skip
def test_fields_that_would_change_f_are_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SAEError, match=message):
        loaded(old_folder(tmp_path / "sae", arrays("standard"), **changes))


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("jumprelu", {"rescale_acts_by_decoder_norm": True}, r"(?s)units of decoder norms.*not for jumprelu"),
        ("standard", {"architecture": None}, r"(?s)does not give its architecture.*expected: architecture: standard \| topk"),
        ("standard", {"k": 5}, "has k and architecture standard"),
        ("topk", {"k": 5, "activation_fn_kwargs": {"k": 6}}, "has two different k"),
        ("topk", {"k": True}, "impossible k"),
        ("topk", {"k": 4.5}, "impossible k"),
        ("standard", {"metadata": {"sae_lens_version": "6.1.0", "hook_name": "blocks.3.hook_resid_post", "hook_head_index": 2}}, "attention heads"),
        (
            "standard",
            {"metadata": {"sae_lens_version": "6.1.0", "hook_name": "blocks.3.hook_resid_post", "hook_name_out": "blocks.3.hook_mlp_out"}},
            "is a transcoder",
        ),
        (
            "standard",
            {"metadata": {"sae_lens_version": "6.1.0", "hook_name": "blocks.3.hook_resid_post", "hf_hook_name": "model.layers.4"}},
            "names two layers",
        ),
        ("standard", {"hook_name": "blocks.5.hook_resid_post"}, "names two layers"),
    ],
)
def test_fields_of_version_6_are_refused_by_name(architecture: str, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(SAEError, match=message):
        loaded(changed(write_folder(tmp_path / "sae", arrays(architecture), architecture), **changes))


def test_what_only_documents_is_read(tmp_path: Path) -> None:
    w, z = arrays("standard"), states()
    training = {
        "l1_coefficient": 5,
        "lr": 3e-4,
        "expansion_factor": 4,
        "normalize_sae_decoder": True,
        "use_ghost_grads": True,
        "seed": 42,
        "notes": "x",
    }
    neutral = {"something_new": None, "another": False, "third": "none", "fourth": []}
    folder = old_folder(tmp_path / "sae", w, **training, **neutral, model_from_pretrained_kwargs={"center_writing_weights": False})
    np.testing.assert_allclose(encoded(folder, z), loop_encode(z, w, "standard", centred=True), atol=1e-5)


def test_scaling_factors_of_one_and_the_hook_of_first_versions(tmp_path: Path) -> None:
    w, z = {**arrays("standard"), "scaling_factor": np.ones(D_SAE, np.float32)}, states()
    folder = old_folder(tmp_path / "sae", w, finetuning_scaling_factor=True, hook_point="blocks.{layer}.hook_resid_pre")
    sae = loaded(folder)
    np.testing.assert_allclose(sae.encode(torch.from_numpy(z)).numpy(), loop_encode(z, w, "standard", centred=True), atol=1e-5)
    assert (sae.layer, sae.identity["hook_name"]) == (2, "blocks.3.hook_resid_pre")


@pytest.mark.parametrize("version", [None, "2.1.3", "3.18.2", "4.0.0", "5.10.7"])
@pytest.mark.parametrize("centred", [True, False])
def test_old_folders_equal_sae_lens(version: str | None, centred: bool, tmp_path: Path) -> None:
    from sae_lens import SAE

    z = torch.from_numpy(states())
    for architecture in ("standard", "gated", "jumprelu"):
        w = arrays(architecture)
        more = {"sae_lens_version": version} if version else {}
        folder = old_folder(tmp_path / architecture, w, architecture=architecture, apply_b_dec_to_input=centred, **more)
        with torch.no_grad():
            torch.testing.assert_close(loaded(folder).encode(z), SAE.load_from_disk(folder).encode(z), atol=1e-5, rtol=1e-6)


def test_every_field_that_sae_lens_knows_has_its_place() -> None:
    """The fields of the installed sae-lens' configurations, those of inference and of training, and of its runner."""
    from sae_lens.config import LanguageModelSAERunnerConfig
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    supported = ("standard", "topk", "jumprelu", "gated")
    classes = [registry[name][1] for registry in (SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY) for name in supported]
    names = {field.name for kind in (*classes, LanguageModelSAERunnerConfig) for field in dataclasses.fields(kind)} - {"sae"}
    assert names <= READ | HARMLESS and not READ & HARMLESS


def test_the_table_of_fields_is_complete() -> None:
    from core.sae import configuration as sae_config

    table = sae_config.__doc__ or ""
    assert {field for field in READ - {"sae_lens_version"} if not re.search(rf"\b{field}\b", table)} == set()
    assert {kind for kind in ("standard", "topk", "jumprelu", "gated") if kind not in table} == set()


# releases


def test_a_release_is_held_to_the_same_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sae-lens silently loads this one as ReLU."""
    from sae_lens.loading import pretrained_sae_loaders

    old_folder(tmp_path / "someone/saes/layer_3", arrays("standard"), activation_fn_str="tanh-relu")
    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", lambda repo_id, filename, **_: str(tmp_path / repo_id / filename))
    with pytest.raises(SAEError, match="SAE someone/saes layer_3 has the activation function 'tanh-relu'"):
        load_sae(SAEConfig(release="someone/saes", sae_id="layer_3"))


def test_a_release_of_a_centred_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPT-2's first SAEs read TransformerLens' centred residual stream, which sae-lens' list gives and their files do
    not."""
    from sae_lens.loading import pretrained_sae_loaders

    old_folder(tmp_path / "jbloom/GPT2-Small-SAEs-Reformatted/blocks.8.hook_resid_pre", arrays("standard"))
    monkeypatch.setattr(pretrained_sae_loaders, "hf_hub_download", lambda repo_id, filename, **_: str(tmp_path / repo_id / filename))
    with pytest.raises(SAEError, match=r"(?s)centred by TransformerLens.*center_writing_weights"):
        load_sae(SAEConfig(release="gpt2-small-res-jb", sae_id="blocks.8.hook_resid_pre"))


def test_a_folder_without_a_kind_is_not_taken_for_a_standard_sae(tmp_path: Path) -> None:
    """Versions before 6 gave both widths and no kind. Without widths, or with the kind elsewhere, the kind is
    unknown."""
    folder = old_folder(tmp_path / "widths", arrays("standard"))
    loaded(folder)
    for number, change in enumerate(
        (lambda raw: [raw.pop(key) for key in ("d_in", "d_sae")], lambda raw: raw.update(metadata={"architecture": "topk"}))
    ):
        folder = old_folder(tmp_path / str(number), arrays("standard"))
        raw = json.loads((folder / "cfg.json").read_text())
        change(raw)
        (folder / "cfg.json").write_text(json.dumps(raw))
        with pytest.raises(SAEError, match="does not give its architecture"):
            loaded(folder)
