"""Small SAE files in every format, and encodings by plain loops, independent of core."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

D_MODEL, D_SAE, N, K = 12, 40, 9, 5
LLAMA_FACTOR = 5.91907514450867  # of l15r_8x in sae-lens' list
Arrays = dict[str, np.ndarray]


def arrays(architecture: str, *, seed: int = 0, d_model: int = D_MODEL, d_sae: int = D_SAE) -> Arrays:
    """Random weights; decoder rows of different norms."""
    rng = np.random.default_rng(seed)
    shapes = {"W_enc": (d_model, d_sae), "W_dec": (d_sae, d_model), "b_dec": (d_model,)}
    for name in {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}.get(architecture, ("b_enc",)):
        shapes[name] = (d_sae,)
    weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    weights["W_dec"] *= rng.uniform(0.2, 3, size=(d_sae, 1))
    if "threshold" in weights:
        weights["threshold"] = rng.uniform(0.5, 3, size=d_sae)
    return {name: value.astype(np.float32) for name, value in weights.items()}


def states(*, seed: int = 1, n: int = N, d_model: int = D_MODEL) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d_model)).astype(np.float32)


def loop_encode(z: np.ndarray, w: Arrays, architecture: str, *, centred: bool, k: int = K, rescale: bool = False) -> np.ndarray:
    """One number at a time, in Python floats."""
    w64 = {name: value.astype(np.float64) for name, value in w.items()}
    d_model, d_sae = w64["W_enc"].shape
    out = np.zeros((len(z), d_sae))
    for row in range(len(z)):
        x = [float(z[row, i]) - (float(w64["b_dec"][i]) if centred else 0.0) for i in range(d_model)]
        dots = [sum(x[i] * w64["W_enc"][i, j] for i in range(d_model)) for j in range(d_sae)]
        if architecture == "gated":
            for j in range(d_sae):
                magnitude = dots[j] * np.exp(w64["r_mag"][j]) + w64["b_mag"][j]
                out[row, j] = max(magnitude, 0.0) if dots[j] + w64["b_gate"][j] > 0 else 0.0
            continue
        pre = [dots[j] + w64["b_enc"][j] for j in range(d_sae)]
        if rescale:
            pre = [pre[j] * np.sqrt(sum(value**2 for value in w64["W_dec"][j])) for j in range(d_sae)]
        allowed = range(d_sae)
        if architecture == "jumprelu":
            allowed = [j for j in range(d_sae) if pre[j] > w64["threshold"][j]]
        if architecture == "topk":
            allowed = sorted(range(d_sae), key=lambda j: -pre[j])[:k]
        for j in allowed:
            out[row, j] = max(pre[j], 0.0)
    return out


def write_folder(
    path: Path, w: Arrays, architecture: str, *, dtype: torch.dtype = torch.float32, metadata: dict[str, Any] | None = None, **config: Any
) -> Path:
    """A sae-lens folder."""
    path.mkdir(parents=True)
    save_file({name: torch.from_numpy(value).to(dtype) for name, value in w.items()}, path / "sae_weights.safetensors")
    about = {"sae_lens_version": "6.54.0", "model_name": "toy", "hook_name": "blocks.3.hook_resid_post", **(metadata or {})}
    d_model, d_sae = w["W_enc"].shape
    base = {"architecture": architecture, "d_in": d_model, "d_sae": d_sae, "dtype": str(dtype).removeprefix("torch."), "apply_b_dec_to_input": True}
    if architecture == "topk":
        base["k"] = K
    (path / "cfg.json").write_text(json.dumps({**base, "normalize_activations": "none", "metadata": about, **config}))
    return path


def write_gemma_scope(path: Path, w: Arrays, **changes: np.ndarray) -> Path:
    """A params.npz as Gemma Scope publishes it."""
    path.parent.mkdir(parents=True)
    np.savez(path, **{**w, **changes})
    return path


def write_llama_scope(path: Path, w: Arrays, *, threshold: float = 0.125, **changes: Any) -> Path:
    """A folder as Llama Scope publishes it: transposed bfloat16 weights, one threshold, an average norm."""
    (path / "checkpoints").mkdir(parents=True)
    tensors = {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T, "decoder.bias": w["b_dec"]}
    rounded = {name: torch.from_numpy(value.copy()).to(torch.bfloat16) for name, value in tensors.items()}
    save_file(rounded, path / "checkpoints" / "final.safetensors")
    d_model, d_sae = w["W_enc"].shape
    norm = d_model**0.5 / LLAMA_FACTOR
    hook = "blocks.15.hook_resid_post"
    hyper = {
        "hook_point_in": hook, "hook_point_out": hook, "d_model": d_model, "d_sae": d_sae, "act_fn": "jumprelu", "jump_relu_threshold": threshold,
        "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": norm, "out": norm}, "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False, "use_glu_encoder": False, "top_k": 50, "dtype": "torch.bfloat16",
    }  # fmt: skip
    (path / "hyperparams.json").write_text(json.dumps({**hyper, **changes}))
    return path


def bfloat16(w: Arrays) -> Arrays:
    """The same weights after rounding to bfloat16."""
    return {name: torch.from_numpy(value).to(torch.bfloat16).float().numpy() for name, value in w.items()}


def llama_folded(w: Arrays, *, threshold: float = 0.125, factor: float = LLAMA_FACTOR) -> Arrays:
    """By hand: the encoder reads factor * z, reconstructions are scaled back, and the threshold moves as sae-lens moves
    it.
    """
    rounded = bfloat16(w)
    limit = np.full(w["b_enc"].shape, threshold * factor)
    return {**rounded, "W_enc": rounded["W_enc"] * factor, "W_dec": rounded["W_dec"] / factor, "b_dec": rounded["b_dec"] / factor, "threshold": limit}
