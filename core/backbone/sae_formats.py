"""Where a sparse autoencoder's numbers come from: four sources, one form (METHOD.md section 2, "SAE traps").

Each reader returns a `StoredSAE`: float32 tensors named as sae-lens names them, and a configuration in sae-lens' words. `checked` then refuses
by name what our arithmetic does not cover, so that nothing is encoded wrongly in silence.

1. A sae-lens release and id: sae-lens' own `SAE.from_pretrained`, which folds Llama Scope's norm factor.
2. A sae-lens folder (cfg.json, sae_weights.safetensors).
3. A Gemma Scope params.npz: JumpReLU, inputs neither normalised nor centred by b_dec.
4. A Llama Scope folder (hyperparams.json, checkpoints/final.safetensors): the norm factor is folded here as sae-lens does it on load from the Hub.

sae-lens takes seconds and half a gigabyte to import: only source 1 and configurations older than its version 6 need it.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from core.config import SAEConfig
from core.errors import MissingError, SAEError

COMMON = {"W_enc", "W_dec", "b_dec"}
TENSORS: Mapping[str, set[str]] = {
    "standard": COMMON | {"b_enc"},
    "topk": COMMON | {"b_enc"},
    "jumprelu": COMMON | {"b_enc", "threshold"},
    "gated": COMMON | {"b_gate", "b_mag", "r_mag"},
}
TRAINING_ONLY = ("batchtopk", "matryoshka_batchtopk")
# sae-lens reads these with safetensors or numpy. Its other readers open pickled files or SAEs of other hook points.
RELEASE_READERS = ("sae_lens", "gemma_2", "gemma_3", "llama_scope", "llama_scope_r1_distill", "sparsify")


@dataclass(frozen=True, kw_only=True)
class StoredSAE:
    """What was read: `config` in sae-lens' words (architecture, d_in, d_sae, metadata, ...), float32 `tensors`, and `source`, the part of the
    identity that says where it came from (`name` is how messages call it)."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    source: Mapping[str, Any]

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.config.get("metadata") or {}


def read_sae(config: SAEConfig) -> StoredSAE:
    """Reads and checks the SAE that `config` names. Raises MissingError if it names none, SAEError if it can't be read or used."""
    if config.release:
        return checked(_from_release(config.release, config.sae_id))
    if not config.path:
        raise MissingError(
            "no SAE is given", expected="a sae-lens release and id, or a path", remedy="train one with `sparserm sae train`, or name one: --sae PATH"
        )
    path = Path(config.path).expanduser()
    name = detect_format(path) if config.format == "auto" else config.format
    return checked({"sae-lens": _from_sae_lens_folder, "gemma-scope": _from_gemma_scope, "llama-scope": _from_llama_scope}[name](path))


def detect_format(path: Path) -> str:
    """Which of the three formats on disk lies at `path`. Raises SAEError."""
    for name, file in (("gemma-scope", "params.npz"), ("llama-scope", "hyperparams.json"), ("sae-lens", "cfg.json")):
        if (path / file).is_file() or (name == "gemma-scope" and path.suffix == ".npz" and path.is_file()):
            return name
    found = ", ".join(sorted(f.name for f in path.iterdir())[:8]) or "an empty folder" if path.is_dir() else "a file" if path.exists() else "nothing"
    expected = "a folder with cfg.json (sae-lens) or hyperparams.json (Llama Scope), or a Gemma Scope params.npz"
    raise SAEError(f"there is no SAE at {path}", expected=expected, found=found)


def _from_release(release: str, sae_id: str) -> StoredSAE:
    from sae_lens import SAE
    from sae_lens.loading.pretrained_sae_loaders import get_conversion_loader_name
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    name, entry = f"{release} {sae_id}", get_pretrained_saes_directory().get(release)
    reader = get_conversion_loader_name(release)
    if reader not in RELEASE_READERS:
        raise SAEError(
            f"SAEs of release {release} are refused: sae-lens reads them by {reader!r}", expected=" | ".join(RELEASE_READERS), found=reader
        )
    try:
        sae = SAE.from_pretrained(release, sae_id, device="cpu", dtype="float32")
    except Exception as error:  # whatever sae-lens' readers and the Hub's client raise
        remedy = "check release and id; gated: accept the licence and `hf auth login`; no network: fetch the folder elsewhere and give --sae PATH"
        found = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        raise SAEError(f"sae-lens could not load {name}", found=found[:300], remedy=remedy) from error
    folder, said = (entry.saes_map[sae_id], entry.expected_l0.get(sae_id)) if entry else (sae_id, None)
    factor = entry.norm_scaling_factor.get(sae_id) if entry else None
    source = {"source": "release", "name": name, "release": release, "sae_id": sae_id, "norm_factor": factor, "expected_l0": said or _l0_in(folder)}
    tensors = {key: value.detach() for key, value in sae.state_dict().items()}
    return StoredSAE(config=sae.cfg.to_dict(), tensors=tensors, source=source)


def _from_sae_lens_folder(path: Path) -> StoredSAE:
    config = _read_json(path / "cfg.json")
    metadata = config.setdefault("metadata", {})
    if not isinstance(metadata, dict):
        raise SAEError(f"cfg.json of SAE {path.name} is damaged", expected="metadata: an object", found=repr(metadata)[:80])
    # Names first: sae-lens' conversion of old configurations knows only inference architectures.
    _refuse_architecture(str(config.get("architecture", "standard")), path.name)
    version = str(metadata.get("sae_lens_version") or config.get("sae_lens_version") or "").partition(".")[0]
    if not version.isdecimal() or int(version) < 6:
        from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

        config = handle_config_defaulting(config)
    tensors = _read_safetensors(path / "sae_weights.safetensors")
    scale = tensors.pop("scaling_factor", None)
    if scale is not None and not torch.all(scale == 1):
        raise SAEError(f"SAE {path.name} has a fine-tuned scaling factor", expected="none, or all ones")
    source = {"source": "sae-lens", "name": path.name, "norm_factor": None, "expected_l0": metadata.get("expected_l0")}
    return StoredSAE(config=config, tensors=tensors, source=source)


def _from_gemma_scope(path: Path) -> StoredSAE:
    file = path / "params.npz" if path.is_dir() else path
    try:
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
            tensors = {name: torch.from_numpy(np.asarray(arrays[name], dtype=np.float32)) for name in arrays}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:  # TypeError: a single array, no archive
        raise SAEError(f"{file} can't be read as a numpy archive", expected=", ".join(sorted(TENSORS["jumprelu"])), found=str(error)[:200]) from error
    where = str(file.absolute())
    # Only the folders say what the file is for: .../gemma-scope-2b-pt-res/.../layer_13/width_16k/average_l0_84/params.npz
    repo = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)", where)
    layer = re.search(r"layer_(\d+)", where)
    kind = repo[3] if repo else "res"
    hook = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}.get(kind, "ln2.hook_normalized")
    metadata = {
        "model_name": f"gemma-2-{repo[1]}{'-it' if repo[2] == 'it' else ''}" if repo else None,
        "hook_name": f"blocks.{layer[1]}.{hook}" if layer else None,
    }
    config = {"architecture": "transcoder" if kind == "transcoders" else "jumprelu", "apply_b_dec_to_input": False, "metadata": metadata}
    name = "/".join(file.parts[-4:-1]) if layer else file.name
    return StoredSAE(
        config=config, tensors=tensors, source={"source": "gemma-scope", "name": name, "norm_factor": None, "expected_l0": _l0_in(where)}
    )


def _from_llama_scope(path: Path) -> StoredSAE:
    raw = _read_json(path / "hyperparams.json")
    _refuse_llama_scope(raw, path.name)
    norm, threshold, d_model = (raw.get("dataset_average_activation_norm") or {}).get("in"), raw.get("jump_relu_threshold"), raw.get("d_model")
    if not all(isinstance(value, (int, float)) for value in (norm, threshold, d_model)) or not norm > 0:  # type: ignore[operator]
        expected = "d_model, jump_relu_threshold and dataset_average_activation_norm.in (above 0), as numbers"
        raise SAEError(f"hyperparams.json of {path.name} lacks what encoding needs", expected=expected, found=f"{d_model}, {threshold}, {norm}")
    stored = _read_safetensors(path / "checkpoints" / "final.safetensors")
    names = {"encoder.weight": "W_enc", "decoder.weight": "W_dec", "encoder.bias": "b_enc", "decoder.bias": "b_dec"}
    tensors = {names.get(key, key): value.T.contiguous() if key.endswith("weight") else value for key, value in stored.items()}
    factor = fold_norm(tensors, float(norm), float(threshold), int(d_model))  # type: ignore[arg-type]
    metadata = {"model_name": "meta-llama/Llama-3.1-8B" if "Llama3_1-8B" in path.name else None, "hook_name": raw.get("hook_point_in")}
    config = {
        "architecture": "jumprelu",
        "apply_b_dec_to_input": bool(raw.get("apply_decoder_bias_to_pre_encoder")),
        "metadata": metadata,
        "d_in": d_model,
    }
    return StoredSAE(
        config=config, tensors=tensors, source={"source": "llama-scope", "name": path.name, "norm_factor": factor, "expected_l0": raw.get("top_k")}
    )


def fold_norm(tensors: dict[str, Tensor], norm: float, threshold: float, d_model: int) -> float:
    """Makes an SAE that was trained on inputs scaled to an average norm of sqrt(d_model) read raw ones, in place. Returns s = sqrt(d_model) / norm.

    s goes into W_enc and out of W_dec and b_dec; the threshold is the published one times s, as sae-lens loads it from the Hub. Decoder rows are
    not unit norm afterwards.
    """
    factor = float(d_model**0.5 / norm)
    if "W_enc" in tensors:
        tensors["W_enc"] = tensors["W_enc"] * factor
    for name in {"W_dec", "b_dec"} & set(tensors):
        tensors[name] = tensors[name] / factor
    if "b_enc" in tensors:
        tensors["threshold"] = torch.full_like(tensors["b_enc"], threshold * factor)
    return factor


def checked(stored: StoredSAE) -> StoredSAE:
    """The same SAE in float32. Raises SAEError on an architecture, normalisation or hook that we don't compute, and on tensors that are missing,
    mis-shaped or not finite."""
    config, name = stored.config, str(stored.source["name"])
    architecture = str(config.get("architecture", "standard"))
    _refuse_architecture(architecture, name)
    if "topk_threshold" in stored.tensors:
        raise _training_checkpoint(name)
    normalise = config.get("normalize_activations") or "none"
    if normalise == "expected_average_only_in":
        remedy = "load it by release and id, where the factor is known, or fold it (`fold_activation_norm_scaling_factor`) before saving"
        raise SAEError(
            f"SAE {name} was trained on inputs scaled to an average norm, and the factor is not in its files", found=normalise, remedy=remedy
        )
    if normalise != "none":
        raise SAEError(
            f"SAE {name} normalises each input, which a fixed direction can't follow", expected="normalize_activations none", found=str(normalise)
        )
    layer_of_hook(stored.metadata.get("hook_name"), name)
    if config.get("reshape_activations", "none") != "none" or stored.metadata.get("hook_head_index") is not None:
        raise SAEError(
            f"SAE {name} reads attention heads", expected="the residual stream after a decoder layer", found=str(config.get("reshape_activations"))
        )
    tensors = {key: value.to("cpu", torch.float32) for key, value in stored.tensors.items()}
    _check_tensors(tensors, TENSORS[architecture], config, name)
    k = config.get("k", 100)
    if architecture == "topk" and k not in range(1, len(tensors["W_dec"]) + 1):
        raise SAEError(f"SAE {name} has an impossible k", expected=f"1 to {len(tensors['W_dec'])}", found=repr(k))
    return replace(stored, tensors=tensors)


def layer_of_hook(hook: str | None, name: str) -> int | None:
    """Decoder layer L whose output a hook names: blocks.L.hook_resid_post, or blocks.(L+1).hook_resid_pre, the same point. None if nothing is said.

    Raises SAEError naming both for any other hook.
    """
    if not hook:
        return None
    match = re.fullmatch(r"blocks\.(\d+)\.hook_resid_(post|pre)", str(hook))
    layer = int(match[1]) - (match[2] == "pre") if match else -1
    if layer < 0:
        raise SAEError(f"SAE {name} was not trained on a decoder layer's output", expected="hook blocks.L.hook_resid_post", found=f"hook {hook}")
    return layer


def _refuse_architecture(architecture: str, name: str) -> None:
    if architecture in TRAINING_ONLY:
        raise _training_checkpoint(name)
    if architecture not in TENSORS:
        raise SAEError(f"SAE {name} has architecture {architecture!r}, which is not supported", expected=" | ".join(TENSORS), found=architecture)


def _training_checkpoint(name: str) -> SAEError:
    return SAEError(
        f"SAE {name} is a BatchTopK training checkpoint, not an SAE for inference",
        expected="a JumpReLU folder, as sae-lens saves a BatchTopK SAE for inference",
        found="architecture batchtopk with a topk_threshold",
        remedy="save it with sae-lens' BatchTopKTrainingSAE.save_inference_model, or train one with `sparserm sae train`",
    )


def _refuse_llama_scope(raw: Mapping[str, Any], name: str) -> None:
    wanted = {"act_fn": "jumprelu", "norm_activation": "dataset-wise", "use_glu_encoder": False, "hook_point_out": raw.get("hook_point_in")}
    wrong = {key: raw[key] for key, value in wanted.items() if key in raw and raw[key] != value}
    if wrong:
        expected = ", ".join(f"{key}={wanted[key]}" for key in wrong)
        raise SAEError(
            f"Llama Scope SAE {name} is of a kind that is not supported", expected=expected, found=", ".join(f"{k}={v}" for k, v in wrong.items())
        )


def _check_tensors(tensors: Mapping[str, Tensor], wanted: set[str], config: Mapping[str, Any], name: str) -> None:
    if set(tensors) != wanted:
        raise SAEError(
            f"SAE {name} does not hold the tensors of its architecture", expected=", ".join(sorted(wanted)), found=", ".join(sorted(tensors))
        )
    d_sae, d_model = tensors["W_dec"].shape if tensors["W_dec"].ndim == 2 else (-1, -1)
    shapes = {"W_enc": (d_model, d_sae), "W_dec": (config.get("d_sae", d_sae), config.get("d_in", d_model)), "b_dec": (d_model,)}
    for key, value in tensors.items():
        expected = shapes.get(key, (d_sae,))
        if tuple(value.shape) != expected:
            raise SAEError(f"tensor {key} of SAE {name} has the wrong shape", expected=str(expected), found=str(tuple(value.shape)))
        if not bool(torch.isfinite(value).all()):
            raise SAEError(f"tensor {key} of SAE {name} holds infinite or missing numbers", expected="finite numbers")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SAEError(f"{path} can't be read", found=str(error)[:200]) from error
    if not isinstance(value, dict):
        raise SAEError(f"{path} holds no configuration", expected="a JSON object", found=type(value).__name__)
    return value


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return {name: tensor.float() for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise SAEError(f"{path} can't be read", expected="a safetensors file", found=str(error)[:200]) from error


def _l0_in(text: str) -> float | None:
    match = re.search(r"average_l0_(\d+)", text)
    return float(match[1]) if match else None
