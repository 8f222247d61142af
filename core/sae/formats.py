"""Reads sparse autoencoders of five sources into one form (METHOD.md section 2, "SAE traps").

Each reader returns a `StoredSAE`: float32 tensors and a configuration, both under sae-lens' names. `checked` then
refuses, by name, everything that core.sae.autoencoder does not compute, so that no SAE is silently encoded wrongly.

1. A sae-lens release and id: sae-lens' own `SAE.from_pretrained`, which folds Llama Scope's norm factor.
2. A sae-lens folder of any version (cfg.json, sae_weights.safetensors): core.sae.configuration lists the treatment of
   each field.
3. A Gemma Scope params.npz: JumpReLU, inputs neither normalised nor centred by b_dec.
4. A Llama Scope folder (hyperparams.json, checkpoints/final.safetensors): the norm factor is folded here as sae-lens
   does it on load from the Hub.
5. A folder of EleutherAI's sparsify (cfg.json, sae.safetensors): core.sae.sparsify.

Folders of other trainers and damaged files are refused with what they are (core.sae.folders, core.sae.files).
sae-lens takes seconds and half a gigabyte to import; only source 1 needs it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.config import SAEConfig
from core.data.hub import one_question
from core.errors import MissingError, SAEError
from core.sae.configuration import plain_config, refuse_architecture, scaling_promised, training_checkpoint
from core.sae.files import read_json, read_npz, read_safetensors
from core.sae.folders import CONFIG, SPARSIFY_WEIGHTS, WEIGHTS, check_companions, not_an_sae, other_weights, sae_folder
from core.sae.hooks import layer_of_hook
from core.sae.sparsify import read_sparsify
from core.sae.tensors import check_tensors

# Readers of sae-lens that use safetensors or numpy. Its others open pickled files or read SAEs of other hook points.
# Its reader of sparsify's folders transposes W_dec and leaves b_dec out of the input, so sparsify's SAEs are read by
# core.sae.sparsify, from a folder.
RELEASE_READERS = ("sae_lens", "gemma_2", "gemma_3", "llama_scope", "llama_scope_r1_distill")


@dataclass(frozen=True, kw_only=True)
class StoredSAE:
    """An SAE as it was read, before `checked`.

    `config`: architecture, d_in, d_sae, metadata and more under sae-lens' names. `tensors`: float32. `source`: the part
    of the identity that names the origin (messages call the SAE by its `name`). `file`: the weights' file for messages
    (empty for a release).
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    source: Mapping[str, Any]
    file: str = ""

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.config.get("metadata") or {}


def read_sae(config: SAEConfig) -> StoredSAE:
    """Reads and checks the SAE that `config` names. Raises MissingError if none is named, SAEError if unusable."""
    if config.release:
        return checked(_from_release(config.release, config.sae_id))
    if not config.path:
        raise MissingError(
            "no SAE is given", expected="a sae-lens release and id, or a path", remedy="train one with `sparserm sae train`, or name one: --sae PATH"
        )
    path = sae_folder(Path(config.path).expanduser())
    name = detect_format(path) if config.format == "auto" else config.format
    readers = {"sae-lens": _from_sae_lens_folder, "gemma-scope": _from_gemma_scope, "llama-scope": _from_llama_scope, "sparsify": _from_sparsify}
    return checked(readers[name](path))


def detect_format(path: Path) -> str:
    """The format (one of four) of the files at `path`. Raises SAEError that names what is there instead."""
    if path.suffix == ".npz" and path.is_file():
        return "gemma-scope"
    for name, file in (("gemma-scope", "params.npz"), ("llama-scope", "hyperparams.json")):
        if (path / file).is_file():
            return name
    if (path / CONFIG).is_file() and (path / SPARSIFY_WEIGHTS).is_file() and not (path / WEIGHTS).is_file():
        return "sparsify"
    if (path / CONFIG).is_file() and ((path / WEIGHTS).is_file() or not other_weights(path)):
        return "sae-lens"
    raise not_an_sae(path)


def _from_release(release: str, sae_id: str) -> StoredSAE:
    from sae_lens import SAE
    from sae_lens.loading import pretrained_sae_loaders, pretrained_saes_directory

    name, entry = f"{release} {sae_id}", pretrained_saes_directory.get_pretrained_saes_directory().get(release)
    reader = pretrained_sae_loaders.get_conversion_loader_name(release)
    if reader not in RELEASE_READERS:
        raise SAEError(
            f"SAEs of release {release} are refused: sae-lens reads them by {reader!r}",
            expected=" | ".join(RELEASE_READERS),
            found=reader,
            remedy="fetch the SAE's folder and give --sae FOLDER" if reader == "sparsify" else "take an SAE of another release",
        )
    unreachable = ""
    try:
        with one_question() as unreachable:
            # sae-lens ignores unknown fields of a configuration, so the file itself is checked, for releases that have
            # such a file.
            if reader == "sae_lens" and (sae_id in entry.saes_map if entry else "/" in release):
                repository, folder = pretrained_saes_directory.get_repo_id_and_folder_name(release, sae_id)
                overrides = pretrained_saes_directory.get_config_overrides(release, sae_id)
                plain_config(pretrained_sae_loaders.get_sae_lens_config_from_hf(repository, folder, cfg_overrides=overrides), name)
            sae = SAE.from_pretrained(release, sae_id, device="cpu", dtype="float32")
    except SAEError:
        raise
    except Exception as error:  # sae-lens' readers and the Hub's client raise errors of many kinds
        remedy = "check release and id; gated: accept the licence and `hf auth login`; no network: fetch the folder elsewhere and give --sae PATH"
        message = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        cause = unreachable if unreachable and isinstance(error, OSError) else message
        raise SAEError(f"sae-lens could not load {name}", found=cause[:300], remedy=remedy) from error
    folder, l0 = (entry.saes_map[sae_id], entry.expected_l0.get(sae_id)) if entry else (sae_id, None)
    factor = entry.norm_scaling_factor.get(sae_id) if entry else None
    source = {"source": "release", "name": name, "release": release, "sae_id": sae_id, "norm_factor": factor, "expected_l0": l0 or _l0_in(folder)}
    tensors = {key: value.detach() for key, value in sae.state_dict().items()}
    return StoredSAE(config=plain_config(sae.cfg.to_dict(), name), tensors=tensors, source=source)


def _from_sae_lens_folder(path: Path) -> StoredSAE:
    raw, name, file = read_json(path / CONFIG), path.absolute().name, path / WEIGHTS
    config = plain_config(raw, name)
    tensors = read_safetensors(file)
    if "topk_threshold" in tensors:
        raise training_checkpoint(name)
    _take_scaling(tensors, raw, name, str(file))
    check_companions(path, config, tensors, name)
    source = {"source": "sae-lens", "name": name, "norm_factor": None, "expected_l0": config["metadata"].get("expected_l0")}
    return StoredSAE(config=config, tensors=tensors, source=source, file=str(file))


def _take_scaling(tensors: dict[str, Tensor], raw: Mapping[str, Any], name: str, file: str) -> None:
    """Removes factors of one from the tensors. Raises SAEError for others, and where promised ones are missing."""
    factors = [tensors.pop(key) for key in ("scaling_factor", "finetuning_scaling_factor") if key in tensors]
    if any(not bool(torch.all(factor == 1)) for factor in factors) or (scaling_promised(raw) and not factors):
        raise SAEError(
            f"SAE {name} has a fine-tuned scaling factor",
            expected="no tensor scaling_factor, or all ones",
            found=f"scaling_factor in {file}, not all ones"
            if factors
            else f"finetuning_scaling_factor in its {CONFIG}, and no such tensor in {file}",
            remedy="take the SAE from before that fine-tuning",
        )


def _from_sparsify(path: Path) -> StoredSAE:
    name = path.absolute().name
    config, tensors = read_sparsify(path, name)
    source = {"source": "sparsify", "name": name, "norm_factor": None, "expected_l0": None}
    return StoredSAE(config=config, tensors=tensors, source=source, file=str(path / SPARSIFY_WEIGHTS))


def _from_gemma_scope(path: Path) -> StoredSAE:
    file = path / "params.npz" if path.is_dir() else path
    tensors = read_npz(file)
    where = str(file.absolute())
    # Only the folders' names give model and layer:
    # .../gemma-scope-2b-pt-res/.../layer_13/width_16k/average_l0_84/params.npz
    repo = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)", where)
    layer = re.search(r"layer_(\d+)", where)
    kind = repo[3] if repo else "res"
    hook = {"res": "hook_resid_post", "mlp": "hook_mlp_out", "att": "attn.hook_z"}.get(kind, "ln2.hook_normalized")
    embedding = repo is not None and layer is None and re.search(r"[/\\]embedding[/\\]", where)
    metadata = {
        "model_name": f"gemma-2-{repo[1]}{'-it' if repo[2] == 'it' else ''}" if repo else None,
        "hook_name": f"blocks.{layer[1]}.{hook}" if layer else "hook_embed" if embedding else None,
    }
    config = {"architecture": "transcoder" if kind == "transcoders" else "jumprelu", "apply_b_dec_to_input": False, "metadata": metadata}
    name = "/".join(file.parts[-4:-1]) if layer else file.name
    source = {"source": "gemma-scope", "name": name, "norm_factor": None, "expected_l0": _l0_in(where)}
    return StoredSAE(config=config, tensors=tensors, source=source, file=str(file))


def _from_llama_scope(path: Path) -> StoredSAE:
    raw, folder = read_json(path / "hyperparams.json"), path.absolute().name
    _refuse_llama_scope(raw, folder)
    norm, threshold, d_model = (raw.get("dataset_average_activation_norm") or {}).get("in"), raw.get("jump_relu_threshold"), raw.get("d_model")
    if not all(isinstance(value, (int, float)) for value in (norm, threshold, d_model)) or not norm > 0:  # type: ignore[operator]
        expected = "d_model, jump_relu_threshold and dataset_average_activation_norm.in (above 0), as numbers"
        raise SAEError(f"hyperparams.json of {folder} lacks what encoding needs", expected=expected, found=f"{d_model}, {threshold}, {norm}")
    file = path / "checkpoints" / "final.safetensors"
    stored = read_safetensors(file)
    names = {"encoder.weight": "W_enc", "decoder.weight": "W_dec", "encoder.bias": "b_enc", "decoder.bias": "b_dec"}
    tensors = {names.get(key, key): value.T.contiguous() if key.endswith("weight") else value for key, value in stored.items()}
    factor = fold_norm(tensors, float(norm), float(threshold), int(d_model))  # type: ignore[arg-type]
    metadata = {"model_name": "meta-llama/Llama-3.1-8B" if "Llama3_1-8B" in folder else None, "hook_name": raw.get("hook_point_in")}
    config = {
        "architecture": "jumprelu",
        "apply_b_dec_to_input": bool(raw.get("apply_decoder_bias_to_pre_encoder")),
        "metadata": metadata,
        "d_in": d_model,
        "d_sae": raw.get("d_sae"),
    }
    source = {"source": "llama-scope", "name": folder, "norm_factor": factor, "expected_l0": raw.get("top_k")}
    return StoredSAE(config=config, tensors=tensors, source=source, file=str(file))


def fold_norm(tensors: dict[str, Tensor], norm: float, threshold: float, d_model: int) -> float:
    """Folds an SAE's input scale into its tensors, in place. Returns the scale s = sqrt(d_model) / norm.

    W_enc is multiplied by s, W_dec and b_dec are divided by it; the threshold is the published one times s, as sae-lens
    loads it from the Hub. Decoder rows are no unit vectors afterwards.
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
    """The same SAE in float32. Raises SAEError for an architecture, normalisation or hook that is not computed here,
    and for tensors that are missing, mis-shaped or not finite."""
    config, name = stored.config, str(stored.source["name"])
    architecture = str(config.get("architecture", "standard"))
    refuse_architecture(architecture, name)
    if "topk_threshold" in stored.tensors:
        raise training_checkpoint(name)
    normalise = config.get("normalize_activations") or "none"
    if normalise == "expected_average_only_in":
        remedy = "load it by release and id, where the factor is known, or fold it (`fold_activation_norm_scaling_factor`) before saving"
        raise SAEError(
            f"SAE {name} was trained on inputs scaled to an average norm, and the factor is not in its files",
            expected="normalize_activations none",
            found=f"normalize_activations {normalise}",
            remedy=remedy,
        )
    if normalise != "none":
        raise SAEError(
            f"SAE {name} normalises each input, which a fixed direction can't follow",
            expected="normalize_activations none",
            found=f"normalize_activations {normalise}",
            remedy="take an SAE that reads its inputs as they are, or train one: sparserm sae train",
        )
    layer_of_hook(stored.metadata.get("hook_name"), name)
    tensors = {key: value.to("cpu", torch.float32) for key, value in stored.tensors.items()}
    check_tensors(tensors, architecture, config, name, stored.file or f"release {name}")
    k = config.get("k")
    if architecture == "topk" and (isinstance(k, bool) or k not in range(1, len(tensors["W_dec"]) + 1)):
        remedy = "correct k in its configuration; it may belong to another SAE"
        raise SAEError(f"SAE {name} has an impossible k", expected=f"k: 1 to {len(tensors['W_dec'])}", found=f"k: {k!r}", remedy=remedy)
    return replace(stored, tensors=tensors)


def _refuse_llama_scope(raw: Mapping[str, Any], name: str) -> None:
    wanted = {"act_fn": "jumprelu", "norm_activation": "dataset-wise", "use_glu_encoder": False, "hook_point_out": raw.get("hook_point_in")}
    wanted |= {"use_decoder_bias": True, "sae_type": "sae"}
    wrong = {key: raw[key] for key, value in wanted.items() if key in raw and raw[key] != value}
    if wrong:
        expected = ", ".join(f"{key}={wanted[key]}" for key in wrong)
        given = ", ".join(f"{key}={value}" for key, value in wrong.items())
        remedy = "take an SAE of the residual stream with JumpReLU, or train one: sparserm sae train"
        raise SAEError(f"Llama Scope SAE {name} is of a kind that is not supported", expected=expected, found=given, remedy=remedy)
    norms = raw.get("dataset_average_activation_norm")
    if isinstance(norms, dict) and norms.get("out", norms.get("in")) != norms.get("in"):
        raise SAEError(
            f"Llama Scope SAE {name} writes at another scale than it reads, which is not supported",
            expected="dataset_average_activation_norm: out equal to in",
            found=f"in {norms.get('in')}, out {norms.get('out')}",
            remedy="take an SAE whose hook_point_out is its hook_point_in",
        )
    if raw.get("sparsity_include_decoder_norm"):
        warnings.warn(
            f"SAE {name} was trained with decoder norms in its threshold (sparsity_include_decoder_norm). It is read as sae-lens reads it, "
            "without them: compare its measured L0 with the published one",
            stacklevel=2,
        )


def _l0_in(text: str) -> float | None:
    match = re.search(r"average_l0_(\d+)", text)
    return float(match[1]) if match else None
