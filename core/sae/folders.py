"""Finds the SAE's folder at a path, names what else is there, and compares an SAE's files with each other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from core.errors import SAEError
from core.files import file_sha256
from core.sae.files import kind_of_file, read_json, read_safetensors
from core.sae.hooks import hook_number, layer_of_hook

CONFIG, WEIGHTS, SPARSIFY_WEIGHTS, CARD = "cfg.json", "sae_weights.safetensors", "sae.safetensors", "card.json"
PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
CONVERT = (
    "convert it once, where you trust the file: write its tensors as W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_in], b_dec (and threshold) to "
    f"{WEIGHTS}, and {CONFIG} with architecture, d_in, d_sae, apply_b_dec_to_input, normalize_activations, k where it is TopK, "
    "and metadata with hook_name and model_name; then give that folder"
)
_SAE_LENS = f"a folder with {CONFIG} and {WEIGHTS} (sae-lens) or {SPARSIFY_WEIGHTS} (sparsify)"
EXPECTED = f"{_SAE_LENS}, or with hyperparams.json (Llama Scope), or a Gemma Scope params.npz"
_DEPTH, _LOOKED_AT, _SHOWN = 4, 5000, 6  # of the search for SAEs in folders: levels, entries, and SAEs in the message


def sae_folder(path: Path) -> Path:
    """The SAE's folder where the path of one of its files was given."""
    if path.is_file() and path.name in (CONFIG, WEIGHTS, SPARSIFY_WEIGHTS, "hyperparams.json"):
        return path.parent
    if path.is_file() and path.name == "final.safetensors" and path.parent.name == "checkpoints":
        return path.parent.parent
    return path


def other_weights(path: Path) -> bool:
    """Whether a folder holds weights under another name than sae-lens'."""
    return any(file.suffix in (*PICKLED, ".safetensors", ".npz") and file.name != WEIGHTS for file in path.iterdir() if file.is_file())


def not_an_sae(path: Path) -> SAEError:
    """The error for a path without an SAE of a supported format: it names what is there."""
    if path.is_file():
        return _file_instead(path)
    if not path.is_dir():
        return SAEError(f"there is no SAE at {path}", expected=EXPECTED, found="nothing", remedy="check the path")
    names = sorted(file.name for file in path.iterdir())
    kind, remedy = _trainer(path, names)
    if kind:
        return SAEError(f"there is no SAE at {path} that can be read: it is {kind}", expected=EXPECTED, found=", ".join(names[:8]), remedy=remedy)
    inside = list(_saes_inside(path))
    if inside:
        shown = ", ".join(inside[:_SHOWN]) + (f" and {len(inside) - _SHOWN} more" if len(inside) > _SHOWN else "")
        remedy = f"give one of them: --sae {path / inside[0]}"
        return SAEError(f"there is no SAE at {path} itself, but in folders inside it", expected="the folder of one SAE", found=shown, remedy=remedy)
    content = ", ".join(names[:8]) or "an empty folder"
    return SAEError(f"there is no SAE at {path}", expected=EXPECTED, found=content, remedy="check the path")


def _file_instead(path: Path) -> SAEError:
    if path.suffix in PICKLED:
        return SAEError(
            f"there is no SAE at {path} that can be read: it is a PyTorch file (a pickle), which is not opened: a pickle can run code",
            expected=EXPECTED,
            found=f"a file {path.name}, as OpenAI's sparse_autoencoder, dictionary_learning and others save SAEs",
            remedy=CONVERT,
        )
    kind = kind_of_file(path)
    return SAEError(f"there is no SAE at {path}", expected=EXPECTED, found="a file" + (f": {kind}" if kind else ""), remedy="give the SAE's folder")


def _trainer(path: Path, names: list[str]) -> tuple[str, str]:
    """What a folder without a supported SAE is, and the remedy; both empty where that is unknown."""
    there = set(names)
    pickled = [name for name in names if Path(name).suffix in PICKLED]
    if "ae.pt" in there:
        return "a folder of dictionary_learning, whose ae.pt is a pickle, which is not opened: a pickle can run code", CONVERT
    if "adapter_config.json" in there:
        return "an adapter of a language model, not an SAE", "give it as --model, and an SAE as --sae"
    if "config.json" in there and ("tokenizer.json" in there or _states(path / "config.json", "model_type")):
        return "a language model, not an SAE", "give it as --model, and an SAE as --sae"
    if "config.json" in there and "params.safetensors" in there:
        release = "gemma-scope-2-1b-it-res"
        return "a folder of Gemma Scope 2, which is read by release and id", f"give its release and id as sae-lens names them, such as {release}"
    if "config.json" in there and any(name.endswith(".safetensors") for name in names) and _states(path / "config.json", "sae_type", "d_sae"):
        return "a folder of OpenMOSS' Language-Model-SAEs in its newer form, which is not read", CONVERT
    if pickled:
        many = f"{', '.join(pickled[:3])}{' ...' if len(pickled) > 3 else ''}"
        return f"a folder of PyTorch files ({many}), as OpenAI's sparse_autoencoder and others save SAEs; a pickle is not opened", CONVERT
    weights = [name for name in names if name.endswith(".safetensors")]
    if weights and CONFIG not in there:
        return f"{weights[0]} without the {CONFIG} that defines how to compute with it", f"put {CONFIG} of the same SAE beside it; {CONVERT}"
    if weights:
        return (
            f"{CONFIG} with weights of another name ({weights[0]})",
            f"if that is the SAE of this {CONFIG}, in sae-lens' tensor names, call it {WEIGHTS}",
        )
    return "", ""


def _states(file: Path, *fields: str) -> bool:
    try:
        return any(field in read_json(file) for field in fields)
    except SAEError:
        return False


def _saes_inside(path: Path) -> Iterator[str]:
    """Folders below `path` that hold an SAE of a supported format, by name. No file is opened."""
    looked_at = 0
    waiting = [(path, 0)]
    while waiting:
        folder, depth = waiting.pop(0)
        for child in sorted(folder.iterdir(), key=lambda entry: _by_numbers(entry.name)):
            looked_at += 1
            if looked_at > _LOOKED_AT:
                return
            if not child.is_dir() or child.name.startswith("."):
                continue
            if any((child / name).is_file() for name in ("params.npz", "hyperparams.json", CONFIG)):
                yield str(child.relative_to(path))
            elif depth < _DEPTH:
                waiting.append((child, depth + 1))


def _by_numbers(name: str) -> list[tuple[str, int]]:
    """A sort key by which layers.2 comes before layers.11."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def check_companions(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> None:
    """Raises SAEError where a file beside an SAE's weights belongs to another SAE.

    The weights are compared with the card that `sparserm sae train` writes (hash of the weights' file, and
    configuration), with sae-lens' file of the latents' sparsity (their number), and with a folder named by a hook.
    """
    remedy = f"put {CONFIG}, {WEIGHTS} and what lies beside them of the same SAE into one folder, or fetch them again"
    for fault, expected, actual in _contradictions(path, config, tensors):
        raise SAEError(f"the files in the folder of SAE {name} are not of one SAE: {fault}", expected=expected, found=actual, remedy=remedy)


def _contradictions(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, str, str]]:
    hook = config["metadata"].get("hook_name")
    in_name = re.search(r"(?:blocks|layers|h)[._]\d+\.?(?:hook_\w+)?$", path.absolute().name)
    if in_name and hook and hook_number(in_name[0]) is not None and hook_number(in_name[0]) != hook_number(hook):
        layer = layer_of_hook(hook, path.name)
        yield (
            f"{CONFIG} names another layer than the folder",
            f"hook {in_name[0]}, as the folder is called",
            f"hook {hook} (layer {layer}) in {CONFIG}",
        )
    if (path / "sparsity.safetensors").is_file() and "W_dec" in tensors:
        for key, value in read_safetensors(path / "sparsity.safetensors").items():
            if value.ndim == 1 and len(value) != len(tensors["W_dec"]):
                width = f"{key} of {len(value)} latents in sparsity.safetensors"
                yield "sparsity.safetensors has another width", f"{len(tensors['W_dec'])} latents, as in {WEIGHTS}", width
    yield from _against_card(path, config)


def _against_card(path: Path, config: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    card = read_json(path / CARD).get("sae") if (path / CARD).is_file() else None
    if not isinstance(card, dict):
        return
    for field in ("hook_name", "model_name"):
        if card.get(field) and card[field] != config["metadata"].get(field):
            yield f"{CONFIG} is not the one it was saved with", f"{field} {card[field]}, by {CARD}", f"{config['metadata'].get(field)} in {CONFIG}"
    if isinstance(card.get("sha256"), str):
        digest = file_sha256(path / WEIGHTS)
        if digest != card["sha256"]:
            yield f"{WEIGHTS} is damaged or another SAE's", f"sha256 {card['sha256'][:16]}..., by {CARD}", f"sha256 {digest[:16]}..."
