"""The card's figures against plain loops over the whole model's hidden states, with an SAE and losses in numpy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sae_training_helpers import LAYER, dialogue, pairs_file, slow_states, whole_backbone
from safetensors.numpy import save_file

from core.backbone.model import load_backbone
from core.config import SAEConfig
from core.errors import DataError
from core.sae.autoencoder import SparseAutoencoder, load_sae
from core.sae.card import RESAMPLES, Sums, bootstrap_draws, loss_recovered, sae_card
from core.sae.corpus import Dialogue, load_corpus
from core.sae.documents import Document, documents

CONTEXT = 72


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    """Plus and minus 64 orthonormal directions, with a threshold and a tilted decoder: a good, imperfect
    reconstruction."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(64, 64)))
    encoder = np.concatenate([basis, -basis], axis=1)
    bias = np.concatenate([[-9.0], np.zeros(127)])  # the first latent is dead
    tensors = {"W_enc": encoder, "W_dec": encoder.T + 0.02 * rng.normal(size=(128, 64)), "b_enc": bias, "b_dec": 0.1 * rng.normal(size=64)}
    return {name: value.astype(np.float32) for name, value in {**tensors, "threshold": np.full(128, 0.25)}.items()}


@pytest.fixture(scope="module")
def sae(weights: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> SparseAutoencoder:
    folder = tmp_path_factory.mktemp("sae")
    save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, folder / "sae_weights.safetensors")
    metadata = {"sae_lens_version": "6.54.0", "hook_name": f"blocks.{LAYER}.hook_resid_post", "model_name": "model"}
    config = {"architecture": "jumprelu", "d_in": 64, "d_sae": 128, "dtype": "float32", "apply_b_dec_to_input": True, "normalize_activations": "none"}
    (folder / "cfg.json").write_text(json.dumps({**config, "metadata": metadata}))
    return load_sae(SAEConfig(path=str(folder)))


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> list[Dialogue]:
    some = load_corpus(pairs_file(), root=tmp_path_factory.mktemp("corpus")).dialogues[:14]
    long = dialogue("What next?", *[w for i in range(4) for w in (f"Step {i} is to wait, friend", f"And step {i}?")], group="long")
    return [*some, long]


def by_hand(weights: dict[str, np.ndarray], z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f and z^ of one state, latent by latent."""
    f = np.zeros(128)
    for j in range(128):
        pre = float((z - weights["b_dec"]) @ weights["W_enc"][:, j] + weights["b_enc"][j])
        f[j] = pre if pre > weights["threshold"][j] and pre > 0 else 0.0
    return f, f @ weights["W_dec"].astype(float) + weights["b_dec"]


def collected(dialogues: list[Dialogue], weights: dict[str, np.ndarray], wanted: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z, z^ and f of all content tokens, or of the response-final ones, over all documents."""
    rows = []
    for parts in documents(dialogues, whole_backbone(), CONTEXT):
        for part in parts:
            states = slow_states(whole_backbone(), part)
            places = [i for i in range(1, len(part.ids)) if part.content[i]]
            if wanted != "content":
                places = [i for i in part.ends if wanted == "ends" or (part is parts[-1] and i == part.ends[-1])]
            rows += [(states[i], *by_hand(weights, states[i])[::-1]) for i in places]
    z, reconstruction, f = (np.array(values) for values in zip(*rows, strict=True))
    return z, reconstruction, f


def fvu(z: np.ndarray, reconstruction: np.ndarray) -> float:
    mean, missed, total = z.mean(0), 0.0, 0.0
    for a, b in zip(z, reconstruction, strict=True):
        missed, total = missed + float(((a - b) ** 2).sum()), total + float(((a - mean) ** 2).sum())
    return missed / total


@pytest.fixture(scope="module")
def card(sae: SparseAutoencoder, dialogues: list[Dialogue]) -> dict[str, dict[str, float]]:
    return sae_card(sae, whole_backbone(), dialogues, layer=LAYER, context=CONTEXT)


@pytest.mark.parametrize("positions", ["content", "ends"])
def test_fvu_and_l0_equal_plain_loops(
    card: dict[str, dict[str, float]], weights: dict[str, np.ndarray], dialogues: list[Dialogue], positions: str
) -> None:
    z, reconstruction, f = collected(dialogues, weights, positions)
    suffix = "" if positions == "content" else "_response_end"
    assert 0.005 < fvu(z, reconstruction) < 0.9
    assert card[f"fvu{suffix}"]["value"] == pytest.approx(fvu(z, reconstruction), rel=1e-5)
    assert card[f"l0{suffix}"]["value"] == pytest.approx((f > 0).sum(1).mean(), rel=1e-4)
    dimensions = [fvu(z[:, i : i + 1], reconstruction[:, i : i + 1]) for i in range(64)]
    assert card[f"fvu_median_dimension{suffix}"]["value"] == pytest.approx(np.median(dimensions), rel=1e-5)
    groups = {d.group for d in dialogues}
    for name in ("fvu", "fvu_median_dimension", "l0"):
        figure = card[f"{name}{suffix}"]
        assert figure["n_tokens"] == len(z) and figure["n_documents"] == len(groups) < len(dialogues)
        assert figure["low"] < figure["value"] < figure["high"]


def test_dead_latents_are_those_no_content_token_activates(
    card: dict[str, dict[str, float]], weights: dict[str, np.ndarray], dialogues: list[Dialogue]
) -> None:
    _, _, f = collected(dialogues, weights, "content")
    dead = (f > 0).sum(0) == 0
    assert dead[0] and card["dead_share"] == {"value": dead.mean(), "n_tokens": len(f)}


def test_last_response_only(sae: SparseAutoencoder, weights: dict[str, np.ndarray], dialogues: list[Dialogue]) -> None:
    truncated = load_backbone(whole_backbone().config, depth=LAYER + 1)
    card = sae_card(sae, truncated, dialogues, layer=LAYER, context=CONTEXT, last_response_only=True)
    z, reconstruction, _ = collected(dialogues, weights, "last")
    assert len(z) == len(dialogues) == card["fvu_response_end"]["n_tokens"]
    assert card["fvu_response_end"]["value"] == pytest.approx(fvu(z, reconstruction), rel=1e-5)
    assert "loss_recovered" not in card  # no LM head was loaded


def cross_entropy(part: Document, states: dict[int, np.ndarray]) -> list[float]:
    """The cross-entropy of each token after a content position, with the layer's output replaced at given positions.

    One document, without padding or masks.
    """
    backbone = whole_backbone()

    def hook(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        for place, state in states.items():
            output[0, place] = torch.from_numpy(state).float()
        return output

    handle = backbone.layer_module(LAYER).register_forward_hook(hook)
    with torch.no_grad():
        logits = backbone.model(input_ids=torch.from_numpy(part.ids)[None]).logits[0].double().numpy()
    handle.remove()
    places = [i for i in range(1, len(part.ids) - 1) if part.content[i]]
    return [float(np.log(np.exp(logits[i] - logits[i].max()).sum()) + logits[i].max() - logits[i, part.ids[i + 1]]) for i in places]


def test_spliced_losses_equal_a_forward_written_by_hand(
    card: dict[str, dict[str, float]], weights: dict[str, np.ndarray], dialogues: list[Dialogue]
) -> None:
    z, _, _ = collected(dialogues, weights, "content")
    losses: dict[str, list[float]] = {"clean": [], "spliced": [], "mean": []}
    for part in (part for parts in documents(dialogues, whole_backbone(), CONTEXT) for part in parts):
        states = slow_states(whole_backbone(), part)
        places = [i for i in range(1, len(part.ids)) if part.content[i]]
        losses["clean"] += cross_entropy(part, {})
        losses["spliced"] += cross_entropy(part, {i: by_hand(weights, states[i])[1] for i in places})
        losses["mean"] += cross_entropy(part, {i: z.mean(0) for i in places})
    for name, values in losses.items():
        assert card["loss_recovered"][f"ce_{name}"] == pytest.approx(np.mean(values), abs=2e-5)
    assert card["loss_recovered"]["n_tokens"] == len(losses["clean"])
    assert abs(np.mean(losses["mean"]) - np.mean(losses["clean"])) > 1e-3  # so the three losses differ


def test_loss_recovered_is_1_for_a_perfect_splice_0_for_ablation() -> None:
    counts, clean, mean = np.array([10.0, 30.0]), np.array([20.0, 75.0]), np.array([60.0, 150.0])
    for share in (0.0, 0.75, 1.0):
        figures = loss_recovered({"clean": clean, "spliced": mean - share * (mean - clean), "mean": mean}, counts, seed=0)
        assert figures["value"] == pytest.approx(share) == figures["low"] == figures["high"]
        assert figures["ce_mean"] == pytest.approx(210 / 40) and figures["n_documents"] == 2
    assert loss_recovered({"clean": clean, "spliced": clean, "mean": clean}, counts, seed=0)["value"] is None  # nothing to recover


def test_intervals_resample_documents(sae: SparseAutoencoder) -> None:
    rng = np.random.default_rng(1)
    z, guess = rng.normal(size=(30, 3)), rng.normal(size=(30, 3))
    units = rng.permutation(np.repeat(np.arange(5), 6))
    sums = Sums.empty(5, 3)
    sums.add(units, torch.from_numpy(z), torch.from_numpy(guess), torch.ones(30))
    draws = bootstrap_draws(5, seed=0)
    assert draws.shape == (RESAMPLES, 5) and (draws.sum(1) == 5).all()
    resampled = []
    for draw in draws[:20].astype(int):
        rows = np.concatenate([np.flatnonzero(units == u) for u in range(5) for _ in range(draw[u])])
        resampled.append(fvu(z[rows], guess[rows]))
    assert sums.fvu_of_draws(draws[:20]) == pytest.approx(resampled)
    figure = sums.figures("", draws)["fvu"]
    assert figure["low"] == pytest.approx(np.quantile(sums.fvu_of_draws(draws), 0.025))


def test_dialogues_without_text_are_refused(sae: SparseAutoencoder) -> None:
    with pytest.raises(DataError, match="no text to measure"):
        sae_card(sae, whole_backbone(), [dialogue("q", "a")], layer=LAYER, context=4)
