"""De-quantises GGUF files: the file is checked before, and the copy is compared with the file's own list of tensors.

transformers silently fills what a GGUF file lacks with random numbers and leaves out tensors that it has no place for.
Numbers are therefore counted: each block of the file must hold as many as the same layer of the copy, and so must the
tensors outside the blocks.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.backbone.checkpoint import Checkpoint, read_checkpoint
from core.backbone.loading import check_finite, check_report
from core.backbone.model_folder import DOWNLOAD_AGAIN, check_file, first_few, read_json_object
from core.backbone.transformers_calls import GIVE_SAFETENSORS, library_errors, quiet_transformers
from core.errors import BackboneError

MAGIC = b"GGUF"
OUTSIDE = -1  # stands for the tensors outside all blocks
NEEDED = ("token_embd.weight", "output_norm.weight")
# Factors of rotary frequencies, which transformers leaves out. Factors of one change nothing.
ROTARY_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """The header of a GGUF file: architecture, number of blocks, and for each tensor how many numbers it holds."""

    path: Path
    architecture: str
    n_blocks: int
    sizes: Mapping[str, int]


def read_gguf(path: Path) -> GgufFile:
    """The file's header. Raises BackboneError unless it is a whole language model that can be de-quantised."""
    check_file(path)
    with path.open("rb") as handle:
        magic = handle.read(len(MAGIC))
    if magic != MAGIC:
        remedy = "give a .gguf file of llama.cpp's format, or the model as a folder of safetensors"
        raise BackboneError(f"{path} is no GGUF file", expected=f"{MAGIC!r} at its beginning", found=repr(magic), remedy=remedy)
    try:
        reader = GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if name.split(".")[0] not in ("tokenizer", "GGUF")}
        sizes = {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}
        end = max((int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors), default=0)
    except Exception as error:  # where bytes are missing, gguf passes on whatever numpy raises
        state = f"{path.stat().st_size:,} bytes; {type(error).__name__}: {error}"[:300]
        raise BackboneError(f"{path} is cut or damaged", expected="a whole GGUF file", found=state, remedy=DOWNLOAD_AGAIN) from error
    if end > path.stat().st_size:
        raise BackboneError(f"{path} is cut", expected=f"{end:,} bytes", found=f"{path.stat().st_size:,} bytes", remedy=DOWNLOAD_AGAIN)
    _check_use(path, fields)
    for tensor in reader.tensors:
        if tensor.name in ROTARY_FACTORS and not np.array_equal(np.asarray(tensor.data, np.float32), np.ones(tensor.n_elements, np.float32)):
            _refuse_rotary(path, f"{tensor.name}, with factors up to {float(np.max(tensor.data)):g}")
    gguf = GgufFile(
        path=path,
        architecture=str(fields["general.architecture"]),
        n_blocks=int(fields[f"{fields['general.architecture']}.block_count"]),
        sizes=sizes,
    )
    _check_blocks(gguf)
    return gguf


def _check_use(path: Path, fields: Mapping[str, Any]) -> None:
    """Raises BackboneError for a part of a model, an adapter, a vision tower, or rotary scaling, which is ignored."""
    architecture = fields.get("general.architecture")
    if int(fields.get("split.count") or 0) > 1:
        n = int(fields["split.count"])
        remedy = "join them with `llama-gguf-split --merge FIRST OUT`, and give OUT"
        raise BackboneError(f"{path} is one of {n} parts of a model", expected="one file", found=f"split.count {n}", remedy=remedy)
    if fields.get("general.type") not in (None, "model") or architecture == "clip":
        what = "a vision tower" if architecture == "clip" else f"of the type {fields.get('general.type')!r}"
        raise BackboneError(
            f"{path} is no language model but {what}", expected="general.type model", remedy="give the language model's own .gguf file"
        )
    if not architecture or not isinstance(fields.get(f"{architecture}.block_count"), int):
        fields_read = f"general.architecture {architecture!r}, block_count {fields.get(f'{architecture}.block_count')!r}"
        problem = f"{path} does not name its kind of model"
        raise BackboneError(problem, expected="general.architecture, block_count", found=fields_read, remedy=DOWNLOAD_AGAIN)
    scaling, factor = (fields.get(f"{architecture}.rope.scaling.{name}") for name in ("type", "factor"))
    if scaling not in (None, "none") and (scaling, factor) not in (("linear", None), ("linear", 1.0)) and architecture != "gpt-oss":
        _refuse_rotary(path, f"rope.scaling.type {scaling}, factor {factor}")


def _refuse_rotary(path: Path, scaling: str) -> None:
    problem = f"{path} scales its rotary positions, which transformers would leave out: every hidden state would be another"
    raise BackboneError(problem, expected="plain rotary positions", found=scaling, remedy=GIVE_SAFETENSORS)


def _check_blocks(gguf: GgufFile) -> None:
    """Raises BackboneError where blocks, the embedding or the final norm are not in the file."""
    blocks = {number for name in gguf.sizes if (number := _block(name)) != OUTSIDE}
    absent = [f"blk.{number}.*" for number in range(gguf.n_blocks) if number not in blocks]
    absent += [name for name in NEEDED if name not in gguf.sizes]
    extra = [f"blk.{number}.*" for number in sorted(blocks) if number >= gguf.n_blocks]
    if absent or extra:
        raise BackboneError(
            f"{gguf.path} is not a whole model",
            expected=f"{gguf.n_blocks} blocks, {', '.join(NEEDED)}",
            found="; ".join(f"{what}: {first_few(names)}" for what, names in (("missing", absent), ("too many", extra)) if names),
            remedy=f"{DOWNLOAD_AGAIN}, or convert it again",
        )


def save_dequantised(file: Path, folder: Path) -> None:
    """De-quantises a GGUF file with transformers and saves it in `folder` as float32 safetensors with its tokenizer.
    Raises BackboneError if transformers can't read it, or makes another model of it than the file holds."""
    gguf = read_gguf(file)
    # transformers writes a progress bar for this straight to stderr; redirecting is the only way to keep it off the
    # terminal.
    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
        with library_errors(f"{file} can't be de-quantised"):
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
            options: dict[str, Any] = {"gguf_file": file.name, "output_loading_info": True, "ignore_mismatched_sizes": True}
            loaded: Any = AutoModelForCausalLM.from_pretrained(str(file.parent), **options)
            model, report = loaded
        check_report(model, report, Checkpoint(tensors={}, wrappers=()), name=str(file), n_layers=gguf.n_blocks)
        check_finite(model, str(file))
        # The tensors are plain now. Without these lines transformers takes the model for a quantised one and refuses to
        # save it.
        del model.config.quantization_config
        for name, value in (("hf_quantizer", None), ("is_quantized", False), ("quantization_method", None)):
            setattr(model, name, value)
        model.config._name_or_path = file.stem
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    check_copy(gguf, folder)


def check_copy(gguf: GgufFile, folder: Path) -> None:
    """Raises BackboneError where a part of the copy in `folder` has more or fewer numbers than in the file."""
    config = read_json_object(folder / "config.json")
    stored, copied = Counter[int](), Counter[int]()
    for name, size in gguf.sizes.items():
        stored[_block(name)] += size if name not in ROTARY_FACTORS else 0
    for name, tensor in read_checkpoint(folder, config).tensors.items():
        number = re.search(r"\.(?:layers|h|blocks|block)\.(\d+)\.", f".{name}")
        copied[int(number[1]) if number else OUTSIDE] += prod(tensor.shape)
    if config.get("tie_word_embeddings") and stored[OUTSIDE] != copied[OUTSIDE]:
        stored[OUTSIDE] -= gguf.sizes.get("output.weight", 0)  # the file repeats the embedding
    differing = sorted(block for block in stored | copied if stored[block] != copied[block])
    if differing:
        raise BackboneError(
            f"{gguf.path} can't be de-quantised: transformers makes another model of it than it holds",
            expected="as many numbers in each layer as in the same block of the file",
            found="; ".join(_difference(gguf, block, stored[block], copied[block]) for block in differing[:3]),
            remedy=f"{DOWNLOAD_AGAIN}, or convert it again, if tensors are missing in it; else {GIVE_SAFETENSORS}",
        )


def _difference(gguf: GgufFile, block: int, stored: int, copied: int) -> str:
    """How many numbers of a block file and copy have, and which tensors the block lacks that most blocks have."""
    if block == OUTSIDE:
        return f"outside the layers: {stored:,} in the file, {copied:,} in the model"
    parts = [name.split(".", 2) for name in gguf.sizes if _block(name) != OUTSIDE]
    usual = {part for part, times in Counter(part for _, _, part in parts).items() if 2 * times > gguf.n_blocks}
    absent = sorted(usual - {part for _, number, part in parts if int(number) == block})
    missing = f", without {first_few([f'blk.{block}.{part}' for part in absent])}" if absent else ""
    return f"layer {block}: {stored:,} in the file{missing}, {copied:,} in the model"


def _block(name: str) -> int:
    number = re.match(r"blk\.(\d+)\.", name)
    return int(number[1]) if number else OUTSIDE
