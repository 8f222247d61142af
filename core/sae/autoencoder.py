"""A sparse autoencoder: latent activations f(z), and the directions of decoder rows (METHOD.md sections 1 and 2).

With x = z - b_dec where the SAE was trained so, else x = z, and pre = x W_enc + b_enc:

    standard   f = relu(pre)
    jumprelu   f = relu(pre) * [pre > threshold], not relu(pre)
    topk       f = relu(pre) * [pre >= the k-th largest pre over all latents]
    gated      f = relu(x W_enc * exp(r_mag) + b_mag) * [x W_enc + b_gate > 0]

and z^ = f W_dec + b_dec. A BatchTopK SAE saved for inference is a JumpReLU one. The class computes with float32 tensors
of its own instead of sae-lens' modules, which cast z to the dtype of the file (float16 ends at 65,504), can't encode a
chunk of latents, and take seconds to import. Tests compare it with sae-lens and with plain loops.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from core.config import SAEConfig
from core.errors import MismatchError
from core.sae.formats import StoredSAE, read_sae
from core.sae.hooks import layer_of_hook
from core.types import Progress, no_progress

# Pre-activations are always computed for whole blocks of this many latents, so a latent's value has the same bits in
# every chunk.
BLOCK = 1024
ACTIVATIONS = 2**25  # activations that `fvu` and `measured_l0` hold at a time: 128 MiB
FAMILIES = r"gemma|llama|mistral|mixtral|qwen|phi|gpt|pythia|smollm|olmo|falcon"


class SparseAutoencoder:
    """A loaded SAE.

    `identity` (JSON) names it in manifests: source, release and id or the path's last part, sha256 of the weights,
    shapes, layer, hook, the model it was trained on, the `norm_factor` that was folded in (else None), and
    `expected_l0` (else None) and `trained_positions` (else empty) as given by the release or the folder's `metadata`.
    """

    def __init__(self, stored: StoredSAE, *, device: str = "cpu") -> None:
        self.architecture = str(stored.config.get("architecture", "standard"))
        self.d_sae, self.d_model = stored.tensors["W_dec"].shape
        self.layer = layer_of_hook(stored.metadata.get("hook_name"), str(stored.source["name"]))
        self.device = torch.device(device)
        self.k = int(stored.config["k"]) if self.architecture == "topk" else None
        self.centred = bool(stored.config.get("apply_b_dec_to_input", True))
        self.identity = _identity(stored, self)
        self.tensors = {name: tensor.to(self.device) for name, tensor in stored.tensors.items()}
        if self.architecture == "topk" and stored.config.get("rescale_acts_by_decoder_norm"):
            self._fold_decoder_norms()

    def __repr__(self) -> str:
        return f"SparseAutoencoder({self.identity['name']}: {self.architecture}, d_model {self.d_model}, d_sae {self.d_sae}, layer {self.layer})"

    def encode(self, z: Float[Tensor, "n d_model"]) -> Float[Tensor, "n d_sae"]:
        """f(z) of all latents, float32; for wide SAEs use `encode_chunk`. Raises MismatchError for another d_model."""
        return self.encode_chunk(z, slice(0, self.d_sae))

    def encode_chunk(self, z: Float[Tensor, "n d_model"], latents: slice, kth: Float[Tensor, " n"] | None = None) -> Float[Tensor, "n c"]:
        """f(z) for latents start to stop: the columns of `encode(z)`, bit for bit.

        It computes whole blocks of `BLOCK` latents, so it is slow for single ones. A TopK SAE needs the k-th value over
        all latents: pass `kth_value(z)` to compute it once for many chunks. All values equal to the k-th stay active
        (sae-lens chooses k of them arbitrarily), so that no latent's activity depends on its place in the dictionary.
        """
        start, stop, step = latents.indices(self.d_sae)
        if step != 1:
            raise ValueError(f"latents must be a slice of step 1, not {step}")
        x = self._input(z)
        blocks = [self._products(x, slice(at, at + BLOCK))[:, max(start - at, 0) : stop - at] for at in range(start - start % BLOCK, stop, BLOCK)]
        products = torch.cat(blocks, dim=1) if blocks else x.new_zeros(len(x), 0)
        if kth is None and self.k is not None:
            kth = self._cut(products) if stop - start == self.d_sae else self.kth_value(z)
        return self._activate(products, slice(start, stop), kth)

    def active(self, z: Float[Tensor, "n d_model"]) -> tuple[Int[Tensor, " e"], Int[Tensor, " e"], Float[Tensor, " e"]]:
        """Row, latent and activation of everything above 0: the entries of `encode(z)`, bit for bit, in no order.

        A JumpReLU or standard SAE never fills the matrix: where 1 % of the latents is active, that is most of the time.
        """
        if self.architecture not in ("jumprelu", "standard"):
            f = self.encode(z)
            row, latent = f.nonzero(as_tuple=True)
            return row, latent, f[row, latent]
        x, parts = self._input(z), []
        for at in range(0, self.d_sae, BLOCK):
            latents = slice(at, at + BLOCK)
            pre = self._products(x, latents)
            above = pre > (self.tensors["threshold"][latents].clamp(min=0) if self.architecture == "jumprelu" else 0)
            row, latent = above.nonzero(as_tuple=True)
            parts.append((row, latent + at, pre[row, latent]))
        rows, columns, values = (torch.cat(part) for part in zip(*parts, strict=True))
        return rows, columns, values

    def encode_latents(
        self, z: Float[Tensor, "n d_model"], latent_ids: Sequence[int] | Int[np.ndarray, " k"], kth: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n k"]:
        """f(z) for these latents alone, in this order: columns of `encode(z)` up to rounding, at their cost alone."""
        index = torch.as_tensor(np.asarray(latent_ids, dtype=np.int64), device=self.device)
        return self._activate(self._products(self._input(z), index), index, self.kth_value(z) if kth is None else kth)

    def kth_value(self, z: Float[Tensor, "n d_model"]) -> Float[Tensor, " n"] | None:
        """The cut of a TopK SAE in each row, between its k-th and next pre-activation; None for other architectures.

        The cut lies halfway, because the same pre-activation can differ in its last bit when it is computed again in
        another batch of rows.
        """
        if self.k is None:
            return None
        x, best = self._input(z), z.new_zeros(len(z), 0).to(self.device, torch.float32)
        for at in range(0, self.d_sae, BLOCK):
            best = torch.cat([best, self._products(x, slice(at, at + BLOCK))], dim=1)
            best = best.topk(min(self.k + 1, best.shape[1]), dim=1).values
        return self._cut(best)

    def decode(self, f: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n d_model"]:
        """The reconstruction z^ = f W_dec + b_dec, float32."""
        return f.to(self.device, torch.float32) @ self.tensors["W_dec"] + self.tensors["b_dec"]

    def directions(self, latent_ids: Sequence[int] | Int[np.ndarray, " k"]) -> Float[np.ndarray, "k d_model"]:
        """Decoder rows d_j of these latents, float32; unit vectors only where the SAE's are."""
        rows = torch.as_tensor(np.asarray(latent_ids, dtype=np.int64), device=self.device)
        return self.tensors["W_dec"][rows].cpu().numpy()

    def _input(self, z: Tensor) -> Tensor:
        if z.shape[-1] != self.d_model:
            raise MismatchError(
                "these hidden states are not this SAE's", expected=f"d_model {self.d_model} ({self.identity['name']})", found=f"d_model {z.shape[-1]}"
            )
        x = z.to(self.device, torch.float32)
        return x - self.tensors["b_dec"] if self.centred else x

    def _products(self, x: Tensor, latents: slice | Tensor) -> Tensor:
        products = x @ self.tensors["W_enc"][:, latents]
        return products if self.architecture == "gated" else products + self.tensors["b_enc"][latents]

    def _activate(self, pre: Tensor, latents: slice | Tensor, kth: Tensor | None) -> Tensor:
        if self.architecture == "gated":
            gate, magnitude = pre + self.tensors["b_gate"][latents], pre * self.tensors["r_mag"][latents].exp() + self.tensors["b_mag"][latents]
            return magnitude.relu() * (gate > 0)
        if self.architecture == "jumprelu":
            return pre.relu() * (pre > self.tensors["threshold"][latents])
        return pre.relu() if kth is None else pre.relu() * (pre >= kth[:, None])

    def _cut(self, pre: Tensor) -> Tensor:
        if self.k is None or self.k == self.d_sae:
            return pre.new_full((len(pre),), -torch.inf)
        best = pre.topk(self.k + 1, dim=1).values
        return best[:, -1] + (best[:, -2] - best[:, -1]) / 2

    def _fold_decoder_norms(self) -> None:
        """Rescales a TopK SAE trained in units of decoder norms to unit rows, so that decoding is plain."""
        norms = self.tensors["W_dec"].norm(dim=1).clamp(min=1e-8)
        self.tensors["W_enc"] = self.tensors["W_enc"] * norms
        self.tensors["b_enc"] = self.tensors["b_enc"] * norms
        self.tensors["W_dec"] = self.tensors["W_dec"] / norms[:, None]


def load_sae(config: SAEConfig, *, device: str = "cpu", progress: Progress = no_progress) -> SparseAutoencoder:
    """The SAE that `config` names, on `device`, in float32. Raises MissingError if none is named, SAEError if it can't
    be had or is not supported."""
    progress("load SAE", 0, 1)
    sae = SparseAutoencoder(read_sae(config), device=device)
    progress("load SAE", 1, 1, latents=sae.d_sae)
    return sae


def check_sae_fits(sae: SparseAutoencoder, backbone_identity: Mapping[str, Any], layer: int) -> None:
    """Raises MismatchError, naming both, where an SAE's d_model, layer or model family differ from the hidden states'.

    An SAE of the base model may read its tuned version (the paper uses Gemma Scope's *pt* SAEs on the *it* model).
    Another version of the family with equal d_model gives a warning, and so does an SAE that does not name its layer.
    """
    sae_name, model_name = str(sae.identity["name"]), str(backbone_identity.get("name", "?"))
    d_model = backbone_identity.get("d_model")
    if d_model is not None and d_model != sae.d_model:
        raise MismatchError(
            "SAE and backbone differ in d_model", expected=f"{sae.d_model} (SAE {sae_name})", found=f"{d_model} (backbone {model_name})"
        )
    if sae.layer is not None and sae.layer != layer:
        raise MismatchError(
            "SAE and backbone differ in layer",
            expected=f"layer {sae.layer} (SAE {sae_name}, {sae.identity['hook_name']})",
            found=f"layer {layer} (backbone {model_name})",
            remedy=f"read layer {sae.layer}, or take the SAE of layer {layer}",
        )
    if sae.layer is None:
        warnings.warn(f"SAE {sae_name} does not name its layer; it is assumed to be of layer {layer} of {model_name}", stacklevel=2)
    _check_model(sae_name, str(sae.identity["model_name"] or ""), model_name)


def measured_l0(sae: SparseAutoencoder, z: Float[Tensor, "n d_model"]) -> float:
    """Mean number of active latents over the rows of z. If it is far from `expected_l0`, the SAE is loaded wrongly."""
    return sum(int((sae.encode(rows) > 0).sum()) for rows in row_chunks(sae, z)) / max(len(z), 1)


def fvu(sae: SparseAutoencoder, z: Float[Tensor, "n d_model"]) -> float:
    """Fraction of variance unexplained over the rows of z: sum ||z - z^||^2 / sum ||z - mean z||^2 in float64.

    NaN for a single row. The caller chooses the rows: no first position, no template tokens (METHOD.md section 2).
    """
    mean = z.cpu().double().mean(0)  # on the CPU: Apple's device has no float64
    missed = total = 0.0
    for rows in row_chunks(sae, z):
        exact = rows.cpu().double()
        missed += float((exact - sae.decode(sae.encode(rows)).cpu()).square().sum())
        total += float((exact - mean).square().sum())
    return missed / total if total > 0 else float("nan")


def row_chunks(sae: SparseAutoencoder, z: Tensor) -> Iterator[Tensor]:
    """The rows of z on the SAE's device, so many at a time that their activations are at most `ACTIVATIONS` numbers."""
    for rows in z.split(max(1, ACTIVATIONS // sae.d_sae)):
        yield rows.to(sae.device)


def _check_model(sae_name: str, trained_on: str, model_name: str) -> None:
    families = [re.findall(FAMILIES, name.lower()) for name in (trained_on, model_name)]
    if not all(families):
        return  # a local folder's name need not contain the family
    if families[0][-1] != families[1][-1]:
        raise MismatchError(
            "SAE and backbone are of different model families", expected=f"{trained_on} (SAE {sae_name})", found=f"{model_name} (backbone)"
        )
    if _base(trained_on) != _base(model_name):
        warnings.warn(
            f"SAE {sae_name} was trained on {trained_on}, the backbone is {model_name}: compare measured L0 and FVU with the release's", stacklevel=3
        )


def _base(name: str) -> str:
    """A model's name without organisation and tuning: gemma22b for google/gemma-2-2b-it."""
    short = re.sub(r"[-_](it|pt|base|instruct|chat)$", "", name.lower().rsplit("/", 1)[-1])
    return re.sub(r"[^a-z0-9]", "", short).removeprefix("meta")


def _identity(stored: StoredSAE, sae: SparseAutoencoder) -> dict[str, Any]:
    metadata = stored.metadata
    return {
        **stored.source,
        "sha256": _weights_sha256(stored.tensors),
        "architecture": sae.architecture,
        "k": sae.k,
        "apply_b_dec_to_input": sae.centred,
        "rescale_acts_by_decoder_norm": bool(stored.config.get("rescale_acts_by_decoder_norm")),
        "d_model": int(sae.d_model),
        "d_sae": int(sae.d_sae),
        "layer": sae.layer,
        "hook_name": metadata.get("hook_name"),
        "model_name": metadata.get("model_name"),
        "trained_positions": list(metadata.get("trained_positions") or []),
    }


def _weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, shapes and float32 bytes: equal for one SAE, whether read from npz or through its release."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].contiguous().numpy()
        digest.update(f"{name} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()
