"""Compares the SAE that a row of labels names with the SAE that is to get the labels.

Latent 12 of one SAE is unrelated to latent 12 of another, so a label of another SAE is wrong and looks right. A row may
contain

    saeSha256                                        hash of the SAE's weights (exported by a workbench); decides alone
    modelId (model_id), layer (source, sourceId,     Neuronpedia's model and source: gemma-2-2b, 20-gemmascope-res-16k
    source_id, neuronpedia_id)                       (layer 20 of that model, the residual stream, 16k latents)
    url                                              a page of Neuronpedia, which names both
    layer (a number or a hook), hook_name, width     parts of the same; a width may be a number or say 16k
    (d_sae), release, sae, sae_id

and the SAE's identity holds its hash, release and id, model, layer, hook and number of latents. The verdicts:

    SAME       the hashes are equal, or model and source are this SAE's (of a preset, or as exported before)
    DIFFERENT  hash, source, model, layer, kind of activations, SAE id or width contradict the SAE
    UNPROVEN   a source is named, but nothing shows whether it is this SAE: the person is asked
    UNSTATED   no SAE is named: the labels are taken and marked
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.backbone.presets import neuronpedia_source, source_names
from core.errors import MismatchError, SAEError
from core.latents.labels import LONGEST_NAME, SOURCES, one_line
from core.sae.hooks import hook_number, layer_of_hook

SAME, DIFFERENT, UNPROVEN, UNSTATED = "same", "different", "unproven", "unstated"
SOURCE_ID = re.compile(r"(\d+)-[\w.-]*\w")
SIZE = re.compile(r"\d{1,6}[kKmM]")
PAGE = re.compile(r"neuronpedia\.org/(?:api/feature/)?([\w.-]+)/(\d+-[\w.-]*\w)")
Source = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class StatedSAE:
    """The SAE that a row names; empty or None: not stated. `source` is Neuronpedia's, such as 20-gemmascope-res-16k."""

    sha256: str = ""
    model: str = ""
    source: str = ""
    sae: str = ""
    release: str = ""
    hook: str = ""
    layer: int | None = None
    width: int | str | None = None

    @property
    def name(self) -> str:
        """Its name in messages and labels."""
        parts = "/".join(part for part in (self.model, self.source) if part)
        layer = f"layer {self.layer}" if self.layer is not None and not self.source else ""
        width = f"{self.width} latents" if self.width is not None else ""
        digest = f"weights {self.sha256[:16]}" if self.sha256 and not parts else ""
        sae = f"{self.release} {self.sae}".strip()
        return one_line(", ".join(part for part in (parts, sae, self.hook, layer, width, digest) if part), LONGEST_NAME)


def stated_sae(row: Mapping[str, Any]) -> StatedSAE:
    """The SAE that a row names."""
    nested = row.get("sae")
    facts = {**nested, **row} if isinstance(nested, Mapping) else row
    model, source = _text(facts, "modelId", "model_id"), ""
    page = PAGE.search(_text(facts, "url"))
    whole = (_text(facts, "neuronpedia_id", "neuronpediaId") or (f"{page[1]}/{page[2]}" if page else "")).rpartition("/")
    place, sae = facts.get("layer"), _text(facts, "sae_id", "saeId", "sae_name", "sae")
    hook = _text(facts, "hook_name", "hookName", "hook_point", "hookPoint")
    if not hook and isinstance(place, str) and hook_number(place) is not None:
        hook = place
    widths = (_width(facts.get(name)) for name in ("d_sae", "dSae", "width", "n_latents"))
    for value in (facts.get("layer"), facts.get("sourceId"), facts.get("source_id"), facts.get("source"), whole[2]):
        if not source and isinstance(value, str) and SOURCE_ID.fullmatch(value) and value not in SOURCES:
            source = value
    return StatedSAE(
        sha256=_text(facts, "saeSha256"),
        model=model or whole[0],
        source=source,
        sae=sae,
        release=_text(facts, "sae_release", "saeRelease", "release") if sae else "",  # alone it may be a data set's
        hook=hook,
        layer=_whole(place) if not source else int(source.partition("-")[0]),
        width=next((width for width in widths if width is not None), None),
    )


def stated_source(source: Source) -> StatedSAE:
    """The SAE that Neuronpedia's model and source name."""
    number = SOURCE_ID.fullmatch(source[1])
    return StatedSAE(model=source[0], source=source[1], layer=int(number[1]) if number else None)


def verdict(stated: StatedSAE, sae: Mapping[str, Any], claimed: Source | None = None) -> tuple[str, str]:
    """SAME, DIFFERENT, UNPROVEN or UNSTATED, and the properties in which the two differ.

    `claimed` is the source of Neuronpedia that, by the person's word, is this SAE: its rows are SAME unless something
    contradicts it (`check_claim`).
    """
    if stated.sha256:
        return (SAME, "") if stated.sha256 == sae.get("sha256") else (DIFFERENT, "the weights' hash")
    named = (stated.model, stated.source)
    known = claimed or neuronpedia_source(sae)
    if all(named) and any(_same_source(named, other) for other in (known, source_names(sae)) if other):
        return SAME, ""
    if all(named) and known:
        return DIFFERENT, "model" if _model(named[0]) != _model(known[0]) else "source"
    differences = _differences(stated, sae)
    if differences:
        return DIFFERENT, ", ".join(differences)
    if stated.sae and stated.sae in (sae.get("name"), sae.get("sae_id")):
        return SAME, ""
    return (UNPROVEN, "") if stated.source or stated.sae else (UNSTATED, "")


def described_sae(sae: Mapping[str, Any]) -> str:
    """A description of the SAE for messages."""
    known = neuronpedia_source(sae)
    parts = [f"SAE {sae.get('name') or sae.get('sae_id') or '?'}", f"({'/'.join(known)})" if known else ""]
    facts = [f"model {sae.get('model_name') or 'not known'}", f"layer {sae.get('layer')}", f"{sae.get('d_sae')} latents"]
    return f"{' '.join(part for part in parts if part)}: {', '.join(facts)}"


def other_sae(stated: StatedSAE, kind: str, differences: str, sae: Mapping[str, Any], n_rows: int = 0) -> MismatchError:
    """The error for labels that may be of another SAE: names both SAEs, and the option that takes the labels anyway."""
    rows = f"{n_rows} rows " if n_rows else ""
    expected, stated_rows = f"labels of {described_sae(sae)}", f"{rows}of {stated.name or 'another SAE'}"
    if kind == UNPROVEN:
        source = "/".join(part for part in (stated.model, stated.source) if part) or "MODEL/SOURCE"
        remedy = f"if they are of the same SAE, say so: --neuronpedia {source}; to take them as another SAE's, and marked so: --any-sae"
        return MismatchError("nothing tells whether these labels are of this SAE", expected=expected, found=stated_rows, remedy=remedy)
    remedy = "import the labels of this SAE; to take these all the same, marked as another SAE's: --any-sae"
    return MismatchError(f"these labels are of another SAE: they differ in {differences}", expected=expected, found=stated_rows, remedy=remedy)


def check_claim(claimed: Source, sae: Mapping[str, Any]) -> None:
    """Raises MismatchError if an SAE can't be the claimed source."""
    stated = stated_source(claimed)
    differences = _differences(stated, sae)
    known = neuronpedia_source(sae)
    if known and not _same_source(claimed, known):
        differences = ["source"]
    if differences:
        raise other_sae(stated, DIFFERENT, ", ".join(differences), sae)


def _differences(stated: StatedSAE, sae: Mapping[str, Any]) -> list[str]:
    """Properties in which a row's SAE contradicts this one; what either side does not state is no difference."""
    differences = []
    model = str(sae.get("model_name") or "")
    if stated.model and model and _model(stated.model) != _model(model):
        differences.append("model")
    other_point, layers = _layers(stated, sae)
    if layers - {sae.get("layer"), None} and sae.get("layer") is not None:
        differences.append("layer")
    if other_point or re.search(r"(?:^|-)(?:mlp|att|attn|transcoder|hook_z|clt|res_mid)\w*(?:-|$)", stated.source):
        differences.append("kind of activations")
    width, sizes = sae.get("d_sae"), f"{stated.source} {stated.width if isinstance(stated.width, str) else ''}".split()
    if isinstance(width, int) and ((isinstance(stated.width, int) and stated.width != width) or not all(_fits_width(size, width) for size in sizes)):
        differences.append("width")
    if stated.release and sae.get("release") and stated.release != sae["release"]:
        differences.append("release")
    if stated.sae and sae.get("sae_id") and stated.sae not in (sae["sae_id"], sae.get("name"), f"{sae.get('release')}/{sae['sae_id']}"):
        differences.append("SAE id")
    return differences


def _layers(stated: StatedSAE, sae: Mapping[str, Any]) -> tuple[bool, set[int | None]]:
    """Whether a row's hook is another point of the model than a layer's output, and the layers that the row names.

    Neuronpedia counts an SAE of a block's input by that block: 8-res-jb, blocks.8.hook_resid_pre, is layer 7's output.
    """
    hook_layer = hook_number(sae.get("hook_name"))
    counted = stated.layer if not stated.source or hook_layer is None or stated.layer != hook_layer else sae.get("layer")
    if not stated.hook:
        return False, {counted}
    try:
        return False, {counted, layer_of_hook(stated.hook, "")}
    except SAEError:
        return True, {counted}


def _same_source(named: Source, other: Source) -> bool:
    """Whether two names of a model and a source differ only in organisation, signs and capitals."""
    return _model(named[0]) == _model(other[0]) and named[1].lower() == other[1].lower()


def _fits_width(source: str, width: int) -> bool:
    """Whether a source's name fits this width: 16k is 16,384 or 16,000, 1m 1,048,576. True if it states none."""
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


def _width(value: object) -> int | str | None:
    """A width as a number, or in thousands or millions as it stands (16k)."""
    return value if isinstance(value, str) and SIZE.fullmatch(value) else _whole(value)


def _whole(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value, re.ASCII):
        return int(value)
    return value if type(value) is int else None
