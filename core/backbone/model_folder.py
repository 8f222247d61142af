"""Checks the small files of a model's folder: content that is no causal language model is named. Loads no torch.

Four faults are looked for, in this order:
1. a file that holds something else in its place: nothing, a Git LFS pointer, a web page, a pickle;
2. a folder that holds something else: an adapter, a data set, an SAE, a reward model, a GGUF file;
3. a config.json that no model can be made from;
4. a folder without a tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import BackboneError

LFS_POINTER = b"version https://git-lfs"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FOREIGN_WEIGHTS = (".h5", ".msgpack", ".onnx", ".npz", ".tflite")
DATA_FILES = (".jsonl", ".parquet", ".csv", ".tsv", ".arrow")
DOWNLOAD_AGAIN = "download the file again"
TO_SAFETENSORS = (
    "convert it once, where you trust it: load it with transformers and call save_pretrained(FOLDER), which writes safetensors; then give that folder"
)
# Any one of these sets of files is a tokenizer that transformers can read.
TOKENIZERS = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("spiece.model",),
    ("sentencepiece.bpe.model",),
    ("tekken.json",),
    ("qwen.tiktoken",),
)
TRAINING_FOLDERS = ("checkpoint-*/config.json", "*/config.json")


def check_file(file: Path) -> None:
    """Raises BackboneError for a file with other content: nothing, a Git LFS pointer, a web page or a pickle."""
    try:
        with file.open("rb") as handle:
            head = handle.read(512)
    except OSError as error:
        raise BackboneError(f"{file} can't be read", found=f"{type(error).__name__}: {error.strerror}", remedy="check its rights") from error
    start = head.lstrip().lower()
    if head.startswith(LFS_POINTER):
        remedy = "run `git lfs pull` in that repository, or download it with `hf download`, which follows the pointers"
        raise BackboneError(f"{file} is a Git LFS pointer, not the file itself", found=f"{file.stat().st_size} bytes of text", remedy=remedy)
    if not head.strip(b"\0"):
        content = "zeros only, as an interrupted download leaves them" if head else "0 bytes"
        raise BackboneError(f"{file} is empty", found=content, remedy=DOWNLOAD_AGAIN)
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        remedy = f"{DOWNLOAD_AGAIN}; a page in its place means that the address was wrong or that it needs a login"
        raise BackboneError(f"{file} is a web page, not the file itself", found=head[:60].decode("utf-8", "replace"), remedy=remedy)
    if file.suffix == ".safetensors" and head.startswith((b"PK\x03\x04", b"\x80\x02")):
        raise BackboneError(f"{file} is a pickled file under the name of a safetensors file", expected="safetensors", remedy=TO_SAFETENSORS)


def first_few(names: Sequence[str], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def read_json_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises BackboneError, naming the file, where it holds none."""
    check_file(file)
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(f"{file} can't be read as JSON", found=f"{type(error).__name__}: {error}"[:300], remedy=DOWNLOAD_AGAIN) from error
    if not isinstance(value, dict):
        raise BackboneError(
            f"{file} can't be used", expected="a JSON object", found=f"{type(value).__name__} {str(value)[:60]}", remedy=DOWNLOAD_AGAIN
        )
    return value


def check_folder(folder: Path) -> None:
    """Raises BackboneError, naming the content, where the folder holds no language model or has no config.json."""
    names = {path.name for path in folder.iterdir()}
    kind = _adapter(folder, names) or _data_set(names) or _reward_model(folder, names) or _sae(folder, names)
    if kind:
        content, remedy = kind
        raise BackboneError(f"{folder} is no language model but {content}", expected="the folder of a causal language model", remedy=remedy)
    if "config.json" not in names:
        raise _without_config(folder, names)


def single_file(path: Path) -> BackboneError:
    """The error for a file that was given as a model and is no GGUF file."""
    try:
        check_file(path)
    except BackboneError as error:
        return error
    expected = "a folder with config.json, a .gguf file, or a Hub id such as org/name"
    remedy = f"give its folder: --model {path.parent}"
    if path.suffix in (*DATA_FILES, ".json", ".gz") and not (path.parent / "config.json").is_file():
        remedy = "give pairs as --pairs, and a language model as --model"
    elif path.suffix == ".npz":
        remedy = "give an SAE as --sae, and the language model it was trained on as --model"
    elif path.suffix in PICKLED:
        remedy = TO_SAFETENSORS
    return BackboneError(f"{path} is a single file and no model", expected=expected, found=path.name, remedy=remedy)


def check_tokenizer(folder: Path) -> None:
    """Raises BackboneError for a folder with a damaged tokenizer or none (transformers would make a small one)."""
    names = {path.name for path in folder.iterdir()}
    for name in sorted({name for files in TOKENIZERS for name in files} & names):
        check_file(folder / name)
    template = folder / "chat_template.jinja"
    if template.is_file() and template.stat().st_size:
        check_file(template)
    for name in sorted({"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json"} & names):
        read_json_object(folder / name)
    if not any(set(files) <= names for files in TOKENIZERS):
        raise BackboneError(
            f"{folder} holds no tokenizer",
            expected="tokenizer.json, tokenizer.model, or vocab.json with merges.txt",
            found=_listed(names),
            remedy="copy the tokenizer's files of the model it was trained from into the folder",
        )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Raises BackboneError where it names no kind of model, or one that only custom code can load."""
    config = read_json_object(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        fields = ", ".join(sorted(map(str, config))[:8]) or "an empty object"
        remedy = "take config.json from the model's own repository"
        raise BackboneError(f"{folder / 'config.json'} names no kind of model", expected="model_type", found=fields, remedy=remedy)
    if not isinstance(config.get("text_config", {}), dict):
        value = f"text_config {config['text_config']!r}"[:80]
        raise BackboneError(f"{folder / 'config.json'} can't be used", expected="text_config: an object", found=value, remedy=DOWNLOAD_AGAIN)
    return config


def architecture_in(config: Mapping[str, Any]) -> str:
    """The name of the model's class in config.json, empty where it gives none."""
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def _adapter(folder: Path, names: set[str]) -> tuple[str, str] | None:
    if "adapter_config.json" not in names:
        return None
    base = read_json_object(folder / "adapter_config.json").get("base_model_name_or_path") or "a model that it does not name"
    if "config.json" in names:
        remedy = "if the adapter is merged into these weights, remove the adapter_* files; if not, merge it first (merge_and_unload)"
        return f"a model together with a PEFT adapter of {base}, and it is not clear which of them is meant", remedy
    merge = "PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(FOLDER), and the tokenizer's save_pretrained(FOLDER)"
    return f"a PEFT adapter of {base}", f"give the base model, --model {base}; or merge the adapter into it and give that folder: {merge}"


def _data_set(names: set[str]) -> tuple[str, str] | None:
    arrow = any(name.endswith(".arrow") for name in names)
    if "dataset_dict.json" in names or ({"dataset_info.json", "state.json"} & names and (arrow or "config.json" not in names)):
        return "a data set as `save_to_disk` of the library datasets writes it", "give pairs as --pairs, and a language model as --model"
    if "config.json" not in names and names and all(Path(name).suffix in DATA_FILES or name.startswith((".", "README")) for name in names):
        return f"a folder of data files ({_listed(names)})", "give pairs as --pairs, and a language model as --model"
    return None


def _reward_model(folder: Path, names: set[str]) -> tuple[str, str] | None:
    if not {"selection.jsonl", "heads.safetensors"} <= names:
        return None
    backbone = read_json_object(folder / "config.json").get("backbone") if "config.json" in names else None
    base = backbone.get("name") if isinstance(backbone, dict) else None
    return "a reward model that `sparserm fit` wrote", f"give its language model as --model{f': {base}' if base else ''}"


def _sae(folder: Path, names: set[str]) -> tuple[str, str] | None:
    remedy = "give an SAE as --sae, and the language model it was trained on as --model"
    if "cfg.json" in names and "config.json" not in names:
        kind = "sae-lens" if "sae_weights.safetensors" in names else "sparsify" if "sae.safetensors" in names else "an SAE library"
        return f"a sparse autoencoder (cfg.json, as {kind} writes it)", remedy
    if next(folder.glob("*/cfg.json"), None) and ("config.json" not in names or "model_type" not in read_json_object(folder / "config.json")):
        return "a folder of sparse autoencoders (cfg.json in its subfolders, as sparsify writes them)", remedy
    if "hyperparams.json" in names:
        return "a sparse autoencoder (hyperparams.json, as Llama Scope has it)", remedy
    if "params.npz" in names:
        return "a sparse autoencoder (params.npz, as Gemma Scope has it)", remedy
    if {"ae.pt", "ae.safetensors"} & names:
        return "a sparse autoencoder (ae.pt, as dictionary_learning writes it)", remedy
    if "config.json" in names:
        config = read_json_object(folder / "config.json")
        if isinstance(config.get("trainer"), dict) and "model_type" not in config:
            return "a sparse autoencoder (config.json with a trainer, as dictionary_learning writes it)", remedy
        if "model_type" not in config and {"d_sae", "dict_size", "num_latents", "n_latents"} & set(config):
            return "a sparse autoencoder (config.json gives a number of latents and no model_type)", remedy
    return None


def _without_config(folder: Path, names: set[str]) -> BackboneError:
    """The error for a folder without config.json."""
    problem, expected = f"{folder} is no model folder", "config.json, *.safetensors, tokenizer.json"
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if ggufs:
        return BackboneError(problem, expected="a .gguf file itself", found=_listed(names), remedy=f"give the file: --model {folder / ggufs[0]}")
    inside = sorted({str(path.parent) for pattern in TRAINING_FOLDERS for path in folder.glob(pattern)})
    if inside:
        return BackboneError(problem, expected=expected, found=f"model folders inside it: {', '.join(inside[:4])}", remedy="give one of them")
    if "params.json" in names or any(name.startswith("consolidated.") for name in names):
        remedy = "take the repository's own files for transformers (config.json and *.safetensors), or convert these"
        return BackboneError(problem, expected=expected, found=f"weights in another format: {_listed(names)}", remedy=remedy)
    if any(name.endswith(".safetensors") for name in names):
        remedy = "weights alone do not define a model: copy config.json and the tokenizer's files from the model's repository beside them"
        return BackboneError(problem, expected=expected, found=_listed(names), remedy=remedy)
    return BackboneError(problem, expected=expected, found=_listed(names), remedy="give the folder that holds these files, or a Hub id")


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)[:8]) or "an empty folder"
