"""Encode, decode, directions, L0 and FVU: equal to plain loops and to sae-lens for every architecture, in any
chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_helpers import D_MODEL, D_SAE, K, arrays, loop_encode, states, write_folder

from core.config import SAEConfig
from core.errors import MismatchError, SAEError
from core.sae import autoencoder as sae_module
from core.sae.autoencoder import SparseAutoencoder, check_sae_fits, fvu, load_sae, measured_l0

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("standard", {}),
    ("standard", {"apply_b_dec_to_input": False}),
    ("jumprelu", {}),
    ("jumprelu", {"apply_b_dec_to_input": False}),
    ("gated", {}),
    ("topk", {}),
    ("topk", {"rescale_acts_by_decoder_norm": True}),
]


def loaded(path: Path) -> SparseAutoencoder:
    return load_sae(SAEConfig(path=str(path)))


def expected(w: dict[str, np.ndarray], z: np.ndarray, architecture: str, config: dict[str, Any]) -> np.ndarray:
    rescale = config.get("rescale_acts_by_decoder_norm", False)
    return loop_encode(z, w, architecture, centred=config.get("apply_b_dec_to_input", True), rescale=rescale)


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join([kind[0], *kind[1]]))
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    monkeypatch.setattr(sae_module, "BLOCK", 16)  # several blocks, the last one short
    return request.param


def test_encode_equals_a_plain_loop(kind: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    architecture, config = kind
    w, z = arrays(architecture), states()
    f = loaded(write_folder(tmp_path / "sae", w, architecture, **config)).encode(torch.from_numpy(z))
    want = expected(w, z, architecture, config)
    assert f.dtype == torch.float32 and 0 < (want > 0).mean() < 1
    assert np.array_equal(f.numpy() > 0, want > 0)
    np.testing.assert_allclose(f.numpy(), want, atol=1e-5)


def test_encode_and_decode_equal_sae_lens(kind: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    from sae_lens import SAE

    architecture, config = kind
    folder = write_folder(tmp_path / "sae", arrays(architecture), architecture, **config)
    sae, reference, z = loaded(folder), SAE.load_from_disk(folder), torch.from_numpy(states())
    with torch.no_grad():
        f = reference.encode(z)
        assert torch.equal(sae.encode(z) > 0, f > 0)
        torch.testing.assert_close(sae.encode(z), f, atol=1e-5, rtol=1e-6)
        torch.testing.assert_close(sae.decode(sae.encode(z)), reference.decode(f), atol=1e-4, rtol=1e-5)


def test_active_entries_are_those_of_encode_bit_for_bit(kind: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    architecture, config = kind
    sae, z = loaded(write_folder(tmp_path / "sae", arrays(architecture), architecture, **config)), torch.from_numpy(states())
    row, latent, value = sae.active(z)
    dense = torch.zeros(len(z), sae.d_sae)
    dense[row, latent] = value
    assert (value > 0).all() and len(value) == int((sae.encode(z) > 0).sum()) > 0
    assert torch.equal(dense, sae.encode(z))


def test_chunks_are_the_columns_of_encode_bit_for_bit(kind: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    architecture, config = kind
    sae, z = loaded(write_folder(tmp_path / "sae", arrays(architecture), architecture, **config)), torch.from_numpy(states())
    whole, kth = sae.encode(z), sae.kth_value(z)
    assert (kth is None) == (architecture != "topk")
    for start, stop in [(0, 40), (0, 16), (16, 32), (5, 7), (15, 17), (33, 40), (38, 99), (7, 7)]:
        chunk = slice(start, stop)
        assert torch.equal(sae.encode_chunk(z, chunk), whole[:, chunk])
        assert torch.equal(sae.encode_chunk(z, chunk, kth), whole[:, chunk])
    with pytest.raises(ValueError, match="step 1, not 2"):
        sae.encode_chunk(z, slice(0, 8, 2))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2600), st.integers(0, 2600), st.integers(1, 60), st.integers(0, 1000))
def test_topk_chunks_at_real_block_size(a: int, b: int, k: int, seed: int) -> None:
    w = arrays("topk", seed=seed, d_sae=2500)
    stored = stored_topk(w, k)
    sae, z = SparseAutoencoder(stored), torch.from_numpy(states(seed=seed, n=4))
    whole, chunk = sae.encode(z), slice(min(a, b), max(a, b))
    assert torch.equal(sae.encode_chunk(z, chunk, sae.kth_value(z)), whole[:, chunk])
    pre = (z.double() - torch.from_numpy(w["b_dec"])) @ torch.from_numpy(w["W_enc"]).double() + torch.from_numpy(w["b_enc"])
    top = pre.topk(k, dim=1)
    want = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    torch.testing.assert_close(whole.double(), want, atol=1e-4, rtol=0)


def stored_topk(w: dict[str, np.ndarray], k: int) -> Any:
    from core.sae.formats import StoredSAE

    tensors = {name: torch.from_numpy(value) for name, value in w.items()}
    source = {"source": "test", "name": "test", "norm_factor": None, "expected_l0": None}
    return StoredSAE(config={"architecture": "topk", "k": k}, tensors=tensors, source=source)


def test_single_latents_in_any_order(kind: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    architecture, config = kind
    sae, z = loaded(write_folder(tmp_path / "sae", arrays(architecture), architecture, **config)), torch.from_numpy(states())
    whole, ids = sae.encode(z), [31, 2, 17, 2]
    for given_ids, kth in ((ids, None), (np.array(ids), sae.kth_value(z))):
        f = sae.encode_latents(z, given_ids, kth)
        assert torch.equal(f > 0, whole[:, ids] > 0)
        torch.testing.assert_close(f, whole[:, ids], atol=1e-5, rtol=1e-6)
    assert sae.encode_latents(z, []).shape == (len(z), 0)


def test_the_kth_value_lies_between_the_kth_and_the_next(tmp_path: Path) -> None:
    """The cut is valid when rows are encoded again in other batches, where products can differ in their last bit."""
    w, z = arrays("topk", d_sae=2500, d_model=96), states(n=64, d_model=96)
    sae = SparseAutoencoder(stored_topk(w, 20))
    kth = sae.kth_value(torch.from_numpy(z))
    pre = np.sort((z - w["b_dec"]).astype(np.float64) @ w["W_enc"] + w["b_enc"], axis=1)[:, ::-1]
    assert kth is not None
    np.testing.assert_allclose(kth.numpy(), (pre[:, 19] + pre[:, 20]) / 2, rtol=1e-5)
    for row in range(64):  # a batch of one row uses another kernel
        f = sae.encode_chunk(torch.from_numpy(z[row : row + 1]), slice(0, 2500), kth[row : row + 1])
        assert (f > 0).sum() == 20


def test_topk_alone_on_a_chunk_would_be_wrong(tmp_path: Path) -> None:
    """The k largest values of a chunk are not the k largest of all latents."""
    sae, z = loaded(write_folder(tmp_path / "sae", arrays("topk"), "topk")), torch.from_numpy(states())
    assert (sae.encode(z) > 0).sum(1).max() <= K
    per_chunk = sum((sae.encode_chunk(z, slice(at, at + 10), kth=torch.full((len(z),), -9e9)) > 0).sum(1) for at in range(0, D_SAE, 10))
    assert (per_chunk > K).any()


def test_topk_ties_are_all_kept_and_negatives_are_off() -> None:
    w = {"W_enc": np.zeros((2, 6), np.float32), "W_dec": np.eye(6, 2, dtype=np.float32), "b_dec": np.zeros(2, np.float32)}
    w["b_enc"] = np.array([3, 1, 2, 2, 2, -1], np.float32)
    z = torch.zeros(1, 2)
    assert SparseAutoencoder(stored_topk(w, 2)).encode(z).tolist() == [[3, 0, 2, 2, 2, 0]]
    assert SparseAutoencoder(stored_topk(w, 6)).encode(z).tolist() == [[3, 1, 2, 2, 2, 0]]


def test_jumprelu_is_not_relu(tmp_path: Path) -> None:
    w, z = arrays("jumprelu"), states()
    sae = loaded(write_folder(tmp_path / "sae", w, "jumprelu"))
    pre = (z - w["b_dec"]).astype(np.float64) @ w["W_enc"] + w["b_enc"]
    active = sae.encode(torch.from_numpy(z)).numpy() > 0
    between = (pre > 0) & (pre <= w["threshold"])
    assert between.sum() > 20 and not active[between].any() and active[pre > w["threshold"]].all()


def test_a_float16_file_is_computed_in_float32(tmp_path: Path) -> None:
    """Hidden states with a norm near 24,000: in the file's float16, sae-lens' products pass 65,504."""
    from sae_lens import SAE

    w = {name: value.astype(np.float16).astype(np.float32) for name, value in arrays("jumprelu").items()}
    w["W_enc"] = w["W_enc"] * 4
    z = states()
    z[:, 3] = 24_000
    folder = write_folder(tmp_path / "sae", w, "jumprelu", dtype=torch.float16)
    f = loaded(folder).encode(torch.from_numpy(z))
    np.testing.assert_allclose(f.numpy(), loop_encode(z, w, "jumprelu", centred=True), rtol=1e-5, atol=1e-2)
    with torch.no_grad():
        assert not torch.isfinite(SAE.load_from_disk(folder).encode(torch.from_numpy(z))).all()


def test_hidden_states_of_any_dtype_are_read_as_float32(tmp_path: Path) -> None:
    sae, z = loaded(write_folder(tmp_path / "sae", arrays("standard"), "standard")), torch.from_numpy(states()).to(torch.bfloat16)
    assert torch.equal(sae.encode(z), sae.encode(z.float()))


def test_directions_are_decoder_rows(tmp_path: Path) -> None:
    w = arrays("jumprelu")
    sae = loaded(write_folder(tmp_path / "sae", w, "jumprelu"))
    for ids in ([7, 0, 39], np.array([7, 0, 39])):
        rows = sae.directions(ids)
        assert rows.dtype == np.float32 and np.array_equal(rows, w["W_dec"][[7, 0, 39]])
    assert sae.directions([]).shape == (0, D_MODEL)


def test_a_latents_share_of_the_reconstruction_is_its_direction(tmp_path: Path) -> None:
    """decode(f_j e_j) - decode(0) = f_j d_j, also where activations are in units of decoder norms."""
    folder = write_folder(tmp_path / "sae", arrays("topk"), "topk", rescale_acts_by_decoder_norm=True)
    sae = loaded(folder)
    activation = torch.zeros(1, D_SAE)
    activation[0, 4] = 2.5
    difference = sae.decode(activation) - sae.decode(torch.zeros(1, D_SAE))
    np.testing.assert_allclose(difference[0].numpy(), 2.5 * sae.directions([4])[0], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(sae.directions(range(D_SAE)), axis=1), 1, atol=1e-6)


def test_l0_and_fvu_by_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    w, z = arrays("jumprelu"), states(n=23)
    sae = loaded(write_folder(tmp_path / "sae", w, "jumprelu"))
    f = loop_encode(z, w, "jumprelu", centred=True)
    back = f @ w["W_dec"].astype(np.float64) + w["b_dec"]
    want = ((z - back) ** 2).sum() / ((z - z.astype(np.float64).mean(0)) ** 2).sum()
    for at_once, chunks in ((10_000, 1), (5 * D_SAE, 5), (1, 23)):
        monkeypatch.setattr(sae_module, "ACTIVATIONS", at_once)
        assert len(list(sae_module.row_chunks(sae, torch.from_numpy(z)))) == chunks
        assert measured_l0(sae, torch.from_numpy(z)) == pytest.approx((f > 0).sum(1).mean())
        assert fvu(sae, torch.from_numpy(z)) == pytest.approx(want, rel=1e-5)
    assert np.isnan(fvu(sae, torch.from_numpy(z[:1])))


def test_batchtopk_saved_for_inference_keeps_its_l0(tmp_path: Path) -> None:
    """Threshold in units of decoder norms and of the scaled input: sae-lens folds all three, and both agree on raw
    input."""
    from sae_lens.saes import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    torch.manual_seed(0)
    cfg = BatchTopKTrainingSAEConfig(
        d_in=D_MODEL, d_sae=D_SAE, k=4, rescale_acts_by_decoder_norm=True, normalize_activations="expected_average_only_in", apply_b_dec_to_input=True
    )
    cfg.metadata.hook_name = "blocks.3.hook_resid_post"
    training = BatchTopKTrainingSAE(cfg)
    with torch.no_grad():
        training.W_dec.mul_(torch.rand(D_SAE, 1) * 4 + 0.1)
        training.b_enc.normal_()
        training.b_dec.normal_()
        z, scale = 7 * torch.randn(200, D_MODEL), 0.5
        pre = ((z * scale - training.b_dec) @ training.W_enc + training.b_enc) * training.W_dec.norm(dim=1)
        threshold = pre.flatten().topk(4 * 200).values[-1]
        training.topk_threshold = threshold.double()
        want = pre > threshold
        training.save_model(tmp_path / "checkpoint")
        training.fold_activation_norm_scaling_factor(scale)
        training.save_inference_model(tmp_path / "inference")
    sae = loaded(tmp_path / "inference")
    assert sae.architecture == "jumprelu" and sae.layer == 3
    assert (sae.encode(z) > 0).ne(want).float().mean() < 1e-3
    assert measured_l0(sae, z) == pytest.approx(4, rel=0.01)
    with pytest.raises(SAEError, match=r"(?s)training checkpoint.*batchtopk.*save_inference_model"):
        loaded(tmp_path / "checkpoint")


def fits(
    tmp_path: Path, backbone: str = "toy", *, d_model: int = D_MODEL, layer: int = 3, model_name: str = "toy", hook: str = "blocks.3.hook_resid_post"
) -> None:
    folder = write_folder(tmp_path / "my-sae", arrays("standard"), "standard", metadata={"model_name": model_name, "hook_name": hook})
    check_sae_fits(loaded(folder), {"name": backbone, "d_model": d_model, "n_layers": 30}, layer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 576, "backbone": "SmolLM2"}, r"(?s)differ in d_model.*12 \(SAE my-sae\).*576 \(backbone SmolLM2\)"),
        (
            {"layer": 16, "backbone": "SmolLM2"},
            r"(?s)differ in layer.*layer 3 \(SAE my-sae, blocks.3.hook_resid_post\).*layer 16 \(backbone SmolLM2\)",
        ),
        ({"model_name": "gemma-2-2b", "backbone": "meta-llama/Llama-3.1-8B"}, r"(?s)families.*gemma-2-2b \(SAE my-sae\).*Llama-3.1-8B \(backbone\)"),
    ],
)
def test_a_mismatch_names_both(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match=message):
        fits(tmp_path, **change)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("model_name", "backbone"),
    [
        ("gemma-2-2b", "google/gemma-2-2b-it"),  # used in the paper
        ("meta-llama/Llama-3.1-8B", "meta-llama/Meta-Llama-3.1-8B-Instruct"),
        ("smollm2-135m", "SmolLM2-135M-Instruct"),
        ("tiny", "model"),  # a local folder's name contains no family
    ],
)
def test_the_base_models_sae_on_its_tuned_sibling_is_fine(model_name: str, backbone: str, tmp_path: Path) -> None:
    fits(tmp_path, backbone, model_name=model_name)


def test_another_version_of_the_family_warns(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"trained on llama-3-8b, the backbone is meta-llama/Llama-3.1-8B"):
        fits(tmp_path, "meta-llama/Llama-3.1-8B", model_name="llama-3-8b")


def test_an_unknown_layer_warns(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"my-sae does not name its layer.*layer 3 of toy"):
        fits(tmp_path, hook="")


def test_wrong_width_of_hidden_states_names_both(tmp_path: Path) -> None:
    sae = loaded(write_folder(tmp_path / "sae", arrays("standard"), "standard"))
    with pytest.raises(MismatchError, match=r"(?s)d_model 12 \(sae\).*d_model 7"):
        sae.encode(torch.zeros(2, 7))
