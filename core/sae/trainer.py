"""sae-lens' trainer as we set it up, and its result as we save it. The choices are listed in training.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.config import SAETrainConfig
from core.errors import SAEError
from core.files import write_json
from core.sae.activations import Round, Stream

if TYPE_CHECKING:
    from core.sae.autoencoder import SparseAutoencoder

WEIGHTS, SETTINGS = "sae_weights.safetensors", "cfg.json"
MATRICES = ("W_enc", "W_dec")  # float16 on disk; vectors hold large numbers and cost little
THRESHOLD_TOKENS, CHUNK = 16_384, 1024  # content tokens that the threshold is measured on; encoded at a time


def make_trainer(config: SAETrainConfig, d_model: int, device: str, *, mixed: bool) -> Any:
    """sae-lens' trainer around a new SAE whose weights are a function of the seed alone; the caller's random state is left as it was.

    `mixed`: matrix products in bfloat16 (weights, gradients and moments stay float32).
    """
    import torch
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

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
        # Steps without firing after which a latent counts as dead: a tenth of the training, so that reviving has time to work.
        dead_feature_window=max(10, min(1000, steps // 10)),
    )
    return SAETrainer(cfg=settings, sae=sae, data_provider=iter(()))


def set_up_inputs(trainer: Any, first: Round) -> None:
    """Scales inputs to a centred norm of sqrt(d_model) on average, and starts the decoder bias at their mean, both measured on the first round."""
    import torch

    states = first.content.float()
    mean = states.mean(0)
    spread = float((states - mean).norm(dim=1).mean())
    factor = len(mean) ** 0.5 / spread if spread > 0 else 1.0
    trainer.activation_scaler.scaling_factor = factor
    with torch.no_grad():
        trainer.sae.b_dec.copy_(mean * factor)


def start_from(trainer: Any, init: SparseAutoencoder) -> None:
    """Gives the trainer's SAE the weights of `init`, in the units of the scaled inputs; call it after `set_up_inputs`.

    Decoder rows become unit vectors and take their norms into the encoder. With inputs s x, activations are s times as large: the matrices stay,
    both biases are multiplied by s. Raises SAEError for an SAE of another form or width.
    """
    import torch

    sae, tensors = trainer.sae, init.tensors
    expected, found = tuple(sae.W_dec.shape), tuple(tensors["W_dec"].shape)
    if init.architecture not in ("jumprelu", "topk") or not init.centred or found != expected:
        raise SAEError(
            "this SAE can't be gone on from",
            expected=f"jumprelu or topk, inputs centred by b_dec, decoder {expected}",
            found=f"{init.identity['name']}: {init.architecture}, centred {init.centred}, decoder {found}",
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
    """BatchTopK's threshold: the one above which `k` latents a token are active on average, over content tokens of the last round.

    Over content alone, as L0 is counted (METHOD.md, SAE traps): response-final states have fewer active latents, so a batch's smallest kept
    activation is that of a mixture, and with three eighths of such states L0 on running text came out at 67 for a k of 56.
    """
    import torch

    if not hasattr(trainer.sae, "topk_threshold"):
        return
    n, k = min(THRESHOLD_TOKENS, len(current.order)), int(trainer.sae.cfg.k)
    highest = []
    with torch.no_grad():
        for rows in torch.as_tensor(current.order[:n].copy()).split(CHUNK):
            batch = trainer.activation_scaler(current.content[rows].float().to(trainer.sae.device))
            # A token with more than 8 k active latents would be cut here: what it keeps is far above the threshold anyway.
            before = trainer.sae.encode_with_hidden_pre(batch)[1]
            highest.append(before.topk(min(8 * k, before.shape[1]), dim=1).values.flatten())
        kept = torch.cat(highest)
        trainer.sae.topk_threshold.fill_(float(kept.topk(n * k).values[-1].clamp(min=0)))


def save_inference(trainer: Any, folder: Path, metadata: Mapping[str, Any]) -> None:
    """Folds the input scale into the weights and saves the inference form in sae-lens' format. Raises SAEError on weights float16 can't hold."""
    import torch
    from safetensors.torch import load_file, save_file

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
