"""Reads a sparse autoencoder of EleutherAI's sparsify: a folder `layers.L` with cfg.json and sae.safetensors.

    x = z - b_dec,  f = the k largest of relu(encoder.weight x + encoder.bias), all others 0,  z^ = f W_dec + b_dec

with encoder.weight [d_sae, d_model], encoder.bias [d_sae], W_dec [d_sae, d_model] and b_dec [d_model]: sae-lens'
`topk`, its encoder transposed. The decoder's norms (`normalize_decoder`) are in the weights already. The folder's name
is the hook: `layers.10` is the output of layer 10.

    field of cfg.json                          treatment
    ----------------------------------------   -------------------------------------------------------------------------
    d_in, num_latents, expansion_factor        compared with the tensors (num_latents 0: expansion_factor * d_in)
    k                                          computed; missing: refused
    activation                                 topk (or missing, as in the first versions); groupmax, others: refused
    signed, transcode, skip_connection,        false; true (another activation, or an output that is not the input):
    embed_skip, gram_lookup                    refused
    normalize_decoder, multi_topk, others of   of training: change neither f nor z^
    HARMLESS
    any other field                            refused by name, unless it is empty, false or null
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from core.errors import SAEError
from core.sae.configuration import is_switched_off, refusal
from core.sae.files import read_json, read_safetensors
from core.sae.folders import CONFIG, SPARSIFY_WEIGHTS
from core.sae.hooks import layer_of_hook

SUPPORTED = {"activation": ("topk", None), **dict.fromkeys(("signed", "transcode", "skip_connection", "embed_skip", "gram_lookup"), (False, None))}
HARMLESS = {"normalize_decoder", "multi_topk", "lookup_max_order", "gram_table_hash"}
KNOWN = {*SUPPORTED, *HARMLESS, "d_in", "num_latents", "expansion_factor", "k"}
NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}


def read_sparsify(path: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors under sae-lens' names. Raises SAEError that names the file and the field or tensor."""
    raw = read_json(path / CONFIG)
    _refuse_other_kinds(raw, name)
    stored = read_safetensors(path / SPARSIFY_WEIGHTS)
    if set(stored) != set(NAMES):
        raise SAEError(
            f"SAE {name} does not hold the tensors that sparsify saves",
            expected=", ".join(NAMES),
            found=f"{', '.join(sorted(stored)) or 'no tensor'} in {path / SPARSIFY_WEIGHTS}",
            remedy="fetch the file again; an SAE without a decoder can't be used",
        )
    tensors = {NAMES[key]: value.T.contiguous() if key == "encoder.weight" else value for key, value in stored.items()}
    width = raw.get("num_latents") or (raw["expansion_factor"] * raw["d_in"] if _whole(raw, "expansion_factor") and _whole(raw, "d_in") else None)
    config = {
        "architecture": "topk",
        "k": raw["k"],
        "apply_b_dec_to_input": True,
        "metadata": {"hook_name": _hook(path, name), "model_name": _model(path)},
        **({"d_in": raw["d_in"]} if raw.get("d_in") is not None else {}),
        **({"d_sae": width} if width is not None else {}),
    }
    return config, tensors


def _refuse_other_kinds(raw: dict[str, Any], name: str) -> None:
    name = f"{name} of sparsify"
    if raw.get("k") is None:
        raise refusal(name, "k", None, "does not give its k", "how many latents are active", f"write k into its {CONFIG}")
    for field, value in raw.items():
        if field in SUPPORTED and value not in SUPPORTED[field]:
            remedy = "take an SAE of the residual stream with plain TopK, or train one: sparserm sae train"
            raise refusal(name, field, value, "is of a kind that is not supported", str(SUPPORTED[field][0]).lower(), remedy)
        if field not in KNOWN and not is_switched_off(value):
            fault = f"has an unknown field {field!r} that could change what it computes"
            remedy = "if it only documents the training, remove it from cfg.json; if it changes what the SAE computes, this SAE is not supported"
            raise refusal(name, field, value, fault, f"fields of sparsify's {CONFIG} that core/sae/sparsify.py lists", remedy)


def _hook(path: Path, name: str) -> str | None:
    """The folder's name where it is that of a hook, else None. Raises SAEError for the MLP, attention, embeddings."""
    folder = path.absolute().name
    if not re.search(r"(?:^|[._])(?:layers|h|blocks)[._]\d+|embed|wte|mlp|attn", folder):
        return None
    layer_of_hook(folder, name)
    return folder


def _model(path: Path) -> str | None:
    """The language model as the configuration of the whole training, in the folder above, names it."""
    file = path.absolute().parent / "config.json"
    model = read_json(file).get("model") if file.is_file() else None
    return model if isinstance(model, str) else None


def _whole(raw: dict[str, Any], field: str) -> bool:
    return type(raw.get(field)) is int
