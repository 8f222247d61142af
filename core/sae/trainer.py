"""Sets up sae-lens' trainer, measures BatchTopK's threshold, saves the inference form (choices: core.sae.training)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from core.config import SAETrainConfig
from core.errors import SAEError
from core.files import write_json
from core.sae.activations import Round, Stream
from core.sae.autoencoder import SparseAutoencoder

WEIGHTS, SETTINGS = "sae_weights.safetensors", "cfg.json"
MATRICES = ("W_enc", "W_dec")  # float16 on disk; the vectors stay float32, since they are small and may hold large numbers
THRESHOLD_TOKENS = 16_384  # content tokens that the threshold is measured on
CHUNK = 1024  # of them, encoded at a time


def make_trainer(config: SAETrainConfig, d_model: int, device: str, *, mixed: bool) -> Any:
    """sae-lens' trainer around a new SAE, whose weights depend on the seed alone; random states stay unchanged.
    `mixed`: matrix products in bfloat16 (weights, gradients and moments stay float32)."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig

    shared: dict[str, Any] = {"d_in": d_model, "d_sae": config.width, "k": config.k, "normalize_activations": "expected_average_only_in"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        batchtopk = config.architecture == "batchtopk"
        sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**shared)) if batchtopk else TopKTrainingSAE(TopKTrainingSAEConfig(**shared))
    sae.to(device)
    steps = config.tokens // config.batch_size
    settings = SAETrainerConfig(
        total_training_samples=steps * config.batch_size,
        train_batch_size_samples=config.batch_size,
        lr=config.lr,
        lr_end=config.lr,
        lr_warm_up_steps=max(2, min(1000, steps // 20)),
        lr_decay_steps=max(1, steps // 5),
        device=device,
        autocast=mixed,
        # A latent that was not active for a tenth of the training's steps counts as dead, which leaves time to revive
        # it.
        dead_feature_window=max(10, min(1000, steps // 10)),
    )
    return SAETrainer(cfg=settings, sae=sae, data_provider=iter(()))


def set_up_inputs(trainer: Any, first: Round) -> None:
    """Sets the input scale (mean centred norm sqrt(d_model)) and b_dec (the inputs' mean) by the first round."""
    states = first.content.float()
    mean = states.mean(0)
    spread = float((states - mean).norm(dim=1).mean())
    factor = len(mean) ** 0.5 / spread if spread > 0 else 1.0
    trainer.activation_scaler.scaling_factor = factor
    with torch.no_grad():
        trainer.sae.b_dec.copy_(mean * factor)


def start_from(trainer: Any, init: SparseAutoencoder) -> None:
    """Copies the weights of `init` into the trainer's SAE in units of the scaled inputs; call it after `set_up_inputs`.

    Decoder rows become unit vectors and their norms are multiplied into the encoder. With inputs s x, activations are s
    times as large: the matrices stay, both biases are multiplied by s. Raises SAEError for another form or width.
    """
    sae, tensors = trainer.sae, init.tensors
    shape, init_shape = tuple(sae.W_dec.shape), tuple(tensors["W_dec"].shape)
    if init.architecture not in ("jumprelu", "topk") or not init.centred or init_shape != shape:
        raise SAEError(
            "training can't go on from this SAE",
            expected=f"jumprelu or topk, inputs centred by b_dec, decoder {shape}",
            found=f"{init.identity['name']}: {init.architecture}, centred {init.centred}, decoder {init_shape}",
            remedy="give --width as its own, or train a new one without --init",
        )
    scale = float(trainer.activation_scaler.scaling_factor)
    norms = tensors["W_dec"].norm(dim=1, keepdim=True).clamp(min=1e-8)
    with torch.no_grad():
        sae.W_dec.copy_(tensors["W_dec"] / norms)
        sae.W_enc.copy_(tensors["W_enc"] * norms.T)
        sae.b_enc.copy_(tensors["b_enc"] * norms[:, 0] * scale)
        sae.b_dec.copy_(tensors["b_dec"] * scale)


def measure_threshold(trainer: Any, stream: Stream, current: Round) -> None:
    """Sets BatchTopK's threshold so that `k` latents a token are active on average over the last round's content.

    Only content tokens count, as for L0 (METHOD.md, SAE traps). Response-final states have fewer active latents, so a
    threshold that is measured on training batches is one of a mixture: with three eighths of such states L0 on running
    text came out at 67 for a k of 56.
    """
    if not hasattr(trainer.sae, "topk_threshold"):
        return
    n, k = min(THRESHOLD_TOKENS, len(current.order)), int(trainer.sae.cfg.k)
    highest = []
    with torch.no_grad():
        for rows in torch.as_tensor(current.order[:n].copy()).split(CHUNK):
            batch = trainer.activation_scaler(current.content[rows].float().to(trainer.sae.device))
            # At most 8 k values of a token are kept; those are the ones far above the threshold.
            pre_activations = trainer.sae.encode_with_hidden_pre(batch)[1]
            highest.append(pre_activations.topk(min(8 * k, pre_activations.shape[1]), dim=1).values.flatten())
        kept = torch.cat(highest)
        trainer.sae.topk_threshold.fill_(float(kept.topk(n * k).values[-1].clamp(min=0)))


def save_inference(trainer: Any, folder: Path, metadata: Mapping[str, Any]) -> None:
    """Folds the input scale in and saves the inference form. Raises SAEError for weights that float16 can't hold."""
    sae = trainer.sae
    if trainer.activation_scaler.scaling_factor is not None:
        sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
        trainer.activation_scaler.scaling_factor = None
    for name, value in metadata.items():
        sae.cfg.metadata[name] = value
    sae.save_inference_model(folder)
    tensors = {name: t.to(torch.float16 if name in MATRICES else torch.float32, copy=True) for name, t in load_file(folder / WEIGHTS).items()}
    if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
        raise SAEError("the trained SAE has weights that are not finite or too large for float16", remedy="train with a lower --lr or another --seed")
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / WEIGHTS)
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    write_json(folder / SETTINGS, {**settings, "dtype": "float32", "device": "cpu"})
