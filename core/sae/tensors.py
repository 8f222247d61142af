"""Checks an SAE's tensors against its architecture and configuration, so that damaged and foreign files are refused.

With d_model the width of the hidden states and d_sae the number of latents: W_enc [d_model, d_sae], W_dec [d_sae,
d_model], b_dec [d_model], all other tensors [d_sae]. The bias vectors give the two widths, so a transposed matrix is
recognised by its shape. Where d_model = d_sae the shapes are equal and the numbers decide: in a trained SAE the encoder
column and the decoder row of a latent have similar directions. If they fit better after transposing one matrix, or not
at all, the SAE is refused. If both are transposed they fit as well; then only the lengths of decoder rows decide, which
most trainers keep equal: if the columns have one length and the rows do not, the SAE is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from core.errors import SAEError

COMMON = {"W_enc", "W_dec", "b_dec"}
TENSORS: Mapping[str, set[str]] = {
    "standard": COMMON | {"b_enc"},
    "topk": COMMON | {"b_enc"},
    "jumprelu": COMMON | {"b_enc", "threshold"},
    "gated": COMMON | {"b_gate", "b_mag", "r_mag"},
}
# For d_model = d_sae: the mean cosine of encoder columns and decoder rows, about 1 / d_model around 0 by chance and far
# above in trained SAEs.
CLEAR = 4.0  # standard errors of the mean cosine, which is 1 / sqrt(d_model * d_sae) for unrelated directions
EVEN = 0.01  # spread of norms, relative to their mean, below which vectors count as equally long


def check_tensors(tensors: Mapping[str, Tensor], architecture: str, config: Mapping[str, Any], name: str, file: str) -> None:
    """Raises SAEError with `file` and the tensor: missing, unknown, mis-shaped, transposed, not finite, all zeros."""
    wanted = TENSORS[architecture]
    if set(tensors) != wanted:
        raise _other_tensors(tensors, wanted, architecture, name, file)
    d_model, d_sae = _widths(tensors, name, file)
    _check_config_widths(config, d_model, d_sae, name, file)
    for key, value in tensors.items():
        shape = {"W_enc": (d_model, d_sae), "W_dec": (d_sae, d_model), "b_dec": (d_model,)}.get(key, (d_sae,))
        if tuple(value.shape) != shape:
            raise _wrong_shape(key, shape, tuple(value.shape), name, file)
        _check_finite(key, value, name, file)
        if key in ("W_enc", "W_dec") and not bool(value.any()):
            remedy = "fetch the file again: an interrupted download may leave zeros behind, in a file of the right size"
            raise SAEError(f"tensor {key} of SAE {name} holds zeros only", expected="trained weights", found=f"zeros in {file}", remedy=remedy)
    if d_model == d_sae:
        _check_square(tensors["W_enc"], tensors["W_dec"], name, file)


def _other_tensors(tensors: Mapping[str, Tensor], wanted: set[str], architecture: str, name: str, file: str) -> SAEError:
    missing, unknown = sorted(wanted - set(tensors)), sorted(set(tensors) - wanted)
    others = [kind for kind, names in TENSORS.items() if names == set(tensors) and kind != architecture]
    parts = [f"missing: {', '.join(missing)}" if missing else "", f"not of this architecture: {', '.join(unknown)}" if unknown else ""]
    remedy = f"these are the tensors of {' or '.join(others)}: check that cfg.json and the weights are of the same SAE" if others else ""
    if not remedy and missing:
        remedy = "fetch the file again; if it comes from another trainer, convert it to sae-lens' names and shapes"
    return SAEError(
        f"SAE {name} does not hold the tensors of its architecture ({architecture})",
        expected=", ".join(sorted(wanted)),
        found=f"{', '.join(sorted(tensors)) or 'no tensor'} ({'; '.join(part for part in parts if part)}) in {file}",
        remedy=remedy or "check that cfg.json and the weights are of the same SAE",
    )


def _widths(tensors: Mapping[str, Tensor], name: str, file: str) -> tuple[int, int]:
    """d_model and d_sae by the lengths of the vectors."""
    for key, value in tensors.items():
        rank = 2 if key in ("W_enc", "W_dec") else 1
        if value.ndim != rank or not value.numel():
            raise _wrong_shape(key, ("d_model", "d_sae")[:rank] if rank == 2 else ("length",), tuple(value.shape), name, file)
    latents = next(key for key in ("b_enc", "b_gate") if key in tensors)
    return len(tensors["b_dec"]), len(tensors[latents])


def _check_config_widths(config: Mapping[str, Any], d_model: int, d_sae: int, name: str, file: str) -> None:
    for key, width in (("d_in", d_model), ("d_sae", d_sae)):
        in_config = config.get(key)
        if in_config is not None and in_config != width:
            raise SAEError(
                f"tensor W_dec of SAE {name} has the wrong shape for its configuration, which gives {key} {in_config}",
                expected=f"{key} {in_config}, so W_dec {(config.get('d_sae', d_sae), config.get('d_in', d_model))}",
                found=f"{key} {width}, W_dec {(d_sae, d_model)} in {file}",
                remedy="put the cfg.json and the weights of the same SAE side by side",
            )


def _wrong_shape(key: str, expected: tuple[Any, ...], shape: tuple[int, ...], name: str, file: str) -> SAEError:
    transposed = len(expected) == 2 and shape == expected[::-1]
    return SAEError(
        f"tensor {key} of SAE {name} has the wrong shape{': it is transposed' if transposed else ''}",
        expected=f"({', '.join(map(str, expected))})",
        found=f"{shape} in {file}",
        remedy=f"save {key} transposed" if transposed else "put the cfg.json and the weights of the same SAE side by side, or fetch them again",
    )


def _check_finite(key: str, value: Tensor, name: str, file: str) -> None:
    n_bad = value.numel() - int(torch.isfinite(value).sum())
    if n_bad:
        raise SAEError(
            f"tensor {key} of SAE {name} holds infinite or missing numbers",
            expected="finite numbers",
            found=f"{n_bad} of {value.numel()} numbers are not finite in {file}",
            remedy="fetch the file again; if it was saved as float16, save it as float32 (float16 ends at 65,504)",
        )


def _check_square(encoder: Tensor, decoder: Tensor, name: str, file: str) -> None:
    """Raises SAEError where W_enc [d, d] and W_dec [d, d] do not fit each other as they are named."""
    width = len(encoder)
    as_named, turned = _mean_cosine(encoder.T, decoder), _mean_cosine(encoder, decoder)
    rows, columns = _spread(decoder.norm(dim=1)), _spread(decoder.norm(dim=0))
    if as_named * width > CLEAR and as_named >= turned and not (columns < EVEN <= rows):
        return
    raise SAEError(
        f"SAE {name} has as many latents as the hidden states have numbers, and W_enc and W_dec do not fit as they are named: "
        "one of them may be transposed",
        expected=f"W_enc [d_model, d_sae] and W_dec [d_sae, d_model] in {file}, a latent's encoder column along its decoder row",
        found=f"mean cosine {as_named:.3f} as named and {turned:.3f} with W_enc transposed; "
        f"lengths of W_dec's rows spread {rows:.1%}, of its columns {columns:.1%}",
        remedy="save W_enc as [d_model, d_sae] and W_dec as [d_sae, d_model]",
    )


def _mean_cosine(first: Tensor, second: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(first, second, dim=1).mean())


def _spread(norms: Tensor) -> float:
    return float(norms.std() / norms.mean().clamp(min=1e-12))
