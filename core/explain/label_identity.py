"""Whose latents a row of labels names: what the row says of its SAE, compared with the SAE that is to have the labels.

Latent 12 of one SAE has nothing to do with latent 12 of another, so a label of another SAE is a wrong statement that looks right. A row may say

    saeSha256                                        the hash of the SAE's weights (rows that a workbench exported): decides alone
    modelId (model_id), layer (source, sourceId,     Neuronpedia's model and source, such as gemma-2-2b and 20-gemmascope-res-16k: layer 20 of that
    source_id, neuronpedia_id)                       model, the residual stream, 16k latents
    layer (a number), width, d_sae, sae, sae_id      parts of the same

and the SAE's identity holds its hash, release and id, model, layer, hook and number of latents. The verdicts:

    SAME       the hashes are equal, or model and source are those by which this SAE is known (of a preset, or as exported before)
    DIFFERENT  hash, source, model, layer, kind of activations, SAE id or width contradict the SAE
    UNPROVEN   a source is named, and nothing tells whether it is this SAE: the person is asked
    UNSTATED   no SAE is named: the labels are taken, and that is said
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.backbone.presets import neuronpedia_source, source_names
from core.errors import MismatchError
from core.explain.labels import LONGEST_NAME, SOURCES, one_line

SAME, DIFFERENT, UNPROVEN, UNSTATED = "same", "different", "unproven", "unstated"
SOURCE_ID = re.compile(r"(\d+)-[\w.-]*\w")
Source = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class StatedSAE:
    """What a row says of its SAE; empty strings and None where it says nothing. `source` is Neuronpedia's, such as 20-gemmascope-res-16k."""

    sha256: str = ""
    model: str = ""
    source: str = ""
    sae: str = ""
    layer: int | None = None
    width: int | None = None

    @property
    def name(self) -> str:
        """How messages and labels call it."""
        parts = "/".join(part for part in (self.model, self.source) if part)
        layer = f"layer {self.layer}" if self.layer is not None and not self.source else ""
        width = f"{self.width} latents" if self.width is not None else ""
        digest = f"weights {self.sha256[:16]}" if self.sha256 and not parts else ""
        return one_line(", ".join(part for part in (parts, self.sae, layer, width, digest) if part), LONGEST_NAME)


def stated_sae(row: Mapping[str, Any]) -> StatedSAE:
    """What a row says of its SAE."""
    nested = row.get("sae")
    facts = {**nested, **row} if isinstance(nested, Mapping) else row
    model, source = _text(facts, "modelId", "model_id"), ""
    whole = _text(facts, "neuronpedia_id", "neuronpediaId").rpartition("/")
    for value in (facts.get("layer"), facts.get("sourceId"), facts.get("source_id"), facts.get("source"), whole[2]):
        if not source and isinstance(value, str) and SOURCE_ID.fullmatch(value) and value not in SOURCES:
            source = value
    return StatedSAE(
        sha256=_text(facts, "saeSha256"),
        model=model or whole[0],
        source=source,
        sae=_text(facts, "sae_id", "saeId", "sae_name", "sae"),
        layer=_whole(facts.get("layer")) if not source else int(source.partition("-")[0]),
        width=next((width for width in map(_whole, (facts.get("d_sae"), facts.get("width"))) if width is not None), None),
    )


def stated_source(source: Source) -> StatedSAE:
    """What Neuronpedia's model and source say."""
    number = SOURCE_ID.fullmatch(source[1])
    return StatedSAE(model=source[0], source=source[1], layer=int(number[1]) if number else None)


def verdict(stated: StatedSAE, sae: Mapping[str, Any], claimed: Source | None = None) -> tuple[str, str]:
    """SAME, DIFFERENT, UNPROVEN or UNSTATED, and in what the two differ.

    `claimed` is Neuronpedia's source that the person says this SAE is: rows of it are SAME, where nothing contradicts it (`check_claim`).
    """
    if stated.sha256:
        return (SAME, "") if stated.sha256 == sae.get("sha256") else (DIFFERENT, "the weights' hash")
    named = (stated.model, stated.source)
    known = claimed or neuronpedia_source(sae)
    if all(named) and named in (known, source_names(sae)):
        return SAME, ""
    if all(named) and known:
        return DIFFERENT, "model" if named[0] != known[0] else "source"
    differences = _differences(stated, sae)
    if differences:
        return DIFFERENT, ", ".join(differences)
    if stated.sae and stated.sae in (sae.get("name"), sae.get("sae_id")):
        return SAME, ""
    return (UNPROVEN, "") if stated.source or stated.sae else (UNSTATED, "")


def described_sae(sae: Mapping[str, Any]) -> str:
    """The SAE in words, for messages."""
    known = neuronpedia_source(sae)
    parts = [f"SAE {sae.get('name') or sae.get('sae_id') or '?'}", f"({'/'.join(known)})" if known else ""]
    facts = [f"model {sae.get('model_name') or 'not known'}", f"layer {sae.get('layer')}", f"{sae.get('d_sae')} latents"]
    return f"{' '.join(part for part in parts if part)}: {', '.join(facts)}"


def other_sae(stated: StatedSAE, kind: str, differences: str, sae: Mapping[str, Any], n_rows: int = 0) -> MismatchError:
    """The error for labels that are, or may be, of another SAE: both sides, and the way to take them all the same."""
    rows = f"{n_rows} rows " if n_rows else ""
    expected, theirs = f"labels of {described_sae(sae)}", f"{rows}of {stated.name or 'another SAE'}"
    if kind == UNPROVEN:
        source = "/".join(part for part in (stated.model, stated.source) if part) or "MODEL/SOURCE"
        remedy = f"if they are of the same SAE, say so: --neuronpedia {source}; to take them as another SAE's, and marked so: --any-sae"
        return MismatchError("nothing tells whether these labels are of this SAE", expected=expected, found=theirs, remedy=remedy)
    remedy = "import the labels of this SAE; to take these all the same, marked as another SAE's: --any-sae"
    return MismatchError(f"these labels are of another SAE: they differ in {differences}", expected=expected, found=theirs, remedy=remedy)


def check_claim(claimed: Source, sae: Mapping[str, Any]) -> None:
    """Raises MismatchError where an SAE can't be the source that it is said to be."""
    stated = stated_source(claimed)
    differences = _differences(stated, sae)
    known = neuronpedia_source(sae)
    if known and known != claimed:
        differences = ["source"]
    if differences:
        raise other_sae(stated, DIFFERENT, ", ".join(differences), sae)


def _differences(stated: StatedSAE, sae: Mapping[str, Any]) -> list[str]:
    """In what a row's SAE contradicts this one; what either side does not say is no difference."""
    differences = []
    ours = str(sae.get("model_name") or "")
    if stated.model and ours and _model(stated.model) != _model(ours):
        differences.append("model")
    if stated.layer is not None and sae.get("layer") is not None and stated.layer != sae["layer"]:
        differences.append("layer")
    if re.search(r"(?:^|-)(?:mlp|att|attn|transcoder|hook_z)\w*(?:-|$)", stated.source):
        differences.append("kind of activations")
    width = sae.get("d_sae")
    if isinstance(width, int) and ((stated.width is not None and stated.width != width) or (stated.source and not _fits_width(stated.source, width))):
        differences.append("width")
    if stated.sae and sae.get("sae_id") and stated.sae not in (sae["sae_id"], sae.get("name"), f"{sae.get('release')}/{sae['sae_id']}"):
        differences.append("SAE id")
    return differences


def _fits_width(source: str, width: int) -> bool:
    """Whether a source's name may be of an SAE of this width: 16k stands for 16,384 or 16,000, 1m for 1,048,576. True where it says none."""
    sizes = re.findall(r"(?:^|[-_])(\d+)([km])(?=$|[-_])", source.lower())
    if not sizes:
        return True
    number, unit = sizes[-1]
    thousand, binary = (1000, 1024) if unit == "k" else (10**6, 2**20)
    return int(number) in (width // thousand, width // binary, round(width / thousand), round(width / binary))


def _model(name: str) -> str:
    """A language model's name without organisation, spaces and signs: gemma22b for google/gemma-2-2b."""
    short = re.sub(r"[^a-z0-9]", "", name.rstrip("/").rpartition("/")[2].lower()).removeprefix("meta")
    return {"gpt2small": "gpt2"}.get(short, short)


def _text(facts: Mapping[str, Any], *names: str) -> str:
    return next((value for name in names if isinstance(value := facts.get(name), str) and value), "")


def _whole(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value, re.ASCII):
        return int(value)
    return value if type(value) is int else None
