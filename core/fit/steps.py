"""The steps of the pipeline (core.fit.pipeline has their order), each found in the store or computed.

A fingerprint is made of the step's name, VERSIONS, the config fields that change the result, and the inputs'
fingerprints: a run that finds everything loads no language model. Values pass between steps over the disk.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from core.backbone.estimate import CHARACTERS_PER_TOKEN, Estimate, check_disk, estimate_extraction
from core.backbone.model import load_backbone
from core.backbone.source import backbone_identity, find_model, resolve_device
from core.config import FitConfig, LatentsConfig
from core.data.pairs import load_pairs
from core.data.pairs_file import read_pairs, write_pairs
from core.data.splits import split_pairs, split_report
from core.errors import DataError
from core.explain.faithfulness import faithfulness
from core.files import file_sha256, read_json, write_json
from core.latents.fit_evidence import evidence_config, evidence_inputs, make_evidence
from core.reward.controls import Probe
from core.reward.curve import accuracy_curve
from core.reward.extraction import extract, texts_as_read
from core.reward.fit_responses import collect_responses, read_responses, write_responses
from core.reward.fitting import Controls, HeadEnsemble, SparseFit, evaluate_fit, fit_controls, fit_sparserm
from core.reward.head import Head, TrainedHead
from core.reward.hidden_states import WHOLE, HiddenStates, alone_readings, load_hidden_states
from core.reward.pair_counts import brief, pair_counts, sentences, summed_rows
from core.reward.parts_files import write_parts
from core.reward.parts_from_fit import PartsFromFit
from core.reward.projection import project, response_activations
from core.reward.ranking import Resamples
from core.reward.reading_details import reading_details
from core.reward.recorded_files import CURVE, EVALUATION, FAITHFULNESS, KNOWN, KNOWN_TEXTS, TOKENS
from core.reward.response_tokens import write_tokens
from core.reward.selection import SelectionSummary, latent_frequencies
from core.reward.shards import TOKEN_BYTES
from core.reward.token_projections import collect_tokens
from core.runs.store import Artefact, Store
from core.runs.values import load_value, save_value
from core.runs.versions import VERSIONS
from core.sae.autoencoder import SparseAutoencoder, check_sae_fits, load_sae
from core.types import LatentFrequencies, PreferencePairs, Progress, SelectedDirections, json_value, sha256_of

STEPS = ("pairs", "extraction", "frequencies", "heads", "controls", "curve", "evaluation", "known", "reward_model")
CLASSES = (LatentFrequencies, Resamples, SparseFit, SelectedDirections, SelectionSummary, HeadEnsemble, TrainedHead, Head, Controls, Probe)
log = logging.getLogger(__name__)
ACTIVITY_BYTES = 300.0  # of a token's active latents, once reduced to responses: 200 to 300 on the embedded pairs and TruthfulQA; for estimates only
LayerSAEs = Mapping[int, SparseAutoencoder | None]  # layers to read; None where no SAE is needed for it


@dataclass(frozen=True, kw_only=True)
class States:
    """Where the hidden states of one layer lie. `fingerprint` is that of an extraction of this layer alone, whichever
    pass computed it; `backbone` the language model's identity; `report` the extraction's, with the unreadable pairs."""

    folder: Path
    layer: int
    position: str
    fingerprint: str
    backbone: Mapping[str, Any]
    report: Mapping[str, Any]

    def load(self, pairs: PreferencePairs) -> tuple[HiddenStates, PreferencePairs]:
        """The states (a memory map), and the pairs as they were read, in the same order; without unreadable pairs."""
        hidden = load_hidden_states(self.folder, self.layer, self.position)
        return hidden, texts_as_read(pairs.take(hidden.pair_rows), self.report)


@dataclass(kw_only=True)
class Steps:
    """One run over the steps: what was asked, and what is loaded only if a step has to be computed."""

    config: FitConfig
    store: Store
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def sae(self) -> SparseAutoencoder:
        return load_sae(self.config.sae, device=resolve_device(self.config.backbone), progress=self.progress)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The backbone's identity, from its files alone."""
        return backbone_identity(self.config.backbone, find_model(self.config.backbone, progress=self.progress))

    def check_sae(self) -> None:
        """Before anything slow: the SAE fits the backbone, and was trained where it will be read."""
        check_sae_fits(self.sae, self.identity, self.config.backbone.layer)
        if self.config.backbone.position == "turn_end" and "turn_end" not in self.sae.identity["trained_positions"]:
            log.warning("The SAE's card does not say that it was trained on end-of-turn tokens; position response_end is safer.")

    def step(self, step: str, config: Mapping[str, Any], inputs: Sequence[str], make: Callable[[Path, Path], Mapping[str, Any]]) -> Artefact:
        """The step's artefact, found or made."""
        with self._timed(step):
            return self.store.get_or_make(step, VERSIONS[step], config, inputs, make)

    @contextlib.contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.monotonic() - started

    def pairs(self) -> Artefact:
        """`pairs.jsonl` with splits, and `report.json`. A file counts by its content; a Hub data set or folder by its
        pairs and the report, since the refused rows may change where the pairs do not."""
        data, path = self.config.data, Path(self.config.data.pairs).expanduser()
        loaded = None if path.is_file() else load_pairs(data, self.progress)
        source = file_sha256(path) if loaded is None else sha256_of([loaded[0].content_hash, loaded[1].to_json()])
        asked = {**data.result_fields(), "pairs": path.name if loaded is None else data.pairs}

        def make(folder: Path, _scratch: Path) -> dict[str, Any]:
            pairs, report = loaded or load_pairs(data, self.progress)
            split = split_pairs(pairs, data)
            write_pairs(split, folder / "pairs.jsonl")
            splits = split_report(split, data, report.duplicates)
            write_json(folder / "report.json", {"data": report.to_json(), "split": splits.to_json()})
            counts = {"n_pairs": len(split), "splits": dict(splits.n_pairs), "n_prompts": report.n_prompts}
            counts |= {"n_rows": report.n_rows, "n_rows_refused": len(report.refused)}
            return {"source": split.source, "format": report.format, **counts, "texts": pairs.content_hash, "content": split.content_hash}

        artefact = self.step("pairs", asked, [source], make)
        for note in read_json(artefact.file("report.json"))["data"]["notes"]:
            log.warning("pairs: %s", note)
        return artefact

    def extraction(self, pairs: Artefact, saes: LayerSAEs) -> dict[int, States]:
        """Hidden states of these layers, whose SAEs are needed where the whole response is read. Layers that no earlier
        pass read are read together, in one pass, at every position that the config names."""
        with self._timed("extraction"):
            missing = {layer: sae for layer, sae in saes.items() if self._holding(pairs, layer, sae) is None}
            if missing:
                reading, inputs = self._reading(missing, self._positions), self._read_from(pairs)
                self.store.get_or_make("extraction", VERSIONS["extraction"], reading, inputs, self._extract(pairs, missing))
            return {layer: self._states(pairs, layer, sae) for layer, sae in saes.items()}

    @property
    def layer_sae(self) -> LayerSAEs:
        """The layer of this fit and, where the whole response is read, its SAE."""
        return {self.config.backbone.layer: self.sae if WHOLE in self._positions else None}

    @property
    def _positions(self) -> list[str]:
        """The position that the fit reads, and the others to read in the same pass."""
        return list(dict.fromkeys((self.config.backbone.position, *self.config.backbone.also_read)))

    def _extract(self, pairs: Artefact, saes: LayerSAEs) -> Callable[[Path, Path], Mapping[str, Any]]:
        def make(folder: Path, scratch: Path) -> dict[str, Any]:
            texts, positions, layers = pairs_of(pairs.path), self._positions, list(saes)
            given = {layer: sae for layer, sae in saes.items() if sae is not None}
            estimate = self._estimated(texts, layers)
            log.info("extraction of %d pairs: %s", len(texts), estimate)
            check_disk(estimate, self.store.root)  # refuses to start on a full disk
            backbone = load_backbone(self.config.backbone, depth=max(layers) + 1, progress=self.progress)
            report = extract(texts, backbone, layers=layers, positions=positions, folder=folder, scratch=scratch, saes=given, progress=self.progress)
            return {"backbone": backbone.identity, **report, **reading_details(texts, backbone, positions, report, self.progress)}

        return make

    def estimate(self, pairs: Artefact, saes: LayerSAEs) -> Estimate:
        """What reading these layers will take: nothing where earlier passes have read them."""
        missing = [layer for layer, sae in saes.items() if self._holding(pairs, layer, sae) is None]
        return self._estimated(pairs_of(pairs.path), missing) if missing else Estimate(memory=0.0, disk=0.0, seconds=0.0)

    def _estimated(self, texts: PreferencePairs, layers: Sequence[int]) -> Estimate:
        characters = sum(len(message["content"]) for pair in texts for message in pair.prompt) + sum(len(p.chosen) + len(p.rejected) for p in texts)
        n_tokens, whole = characters / CHARACTERS_PER_TOKEN, WHOLE in self._positions
        kept_tokens = min(len(layers) * n_tokens, TOKEN_BYTES / (4 * int(self.identity["d_model"])))
        return estimate_extraction(
            self.config.backbone,
            find_model(self.config.backbone),
            self.identity,
            depth=max(layers) + 1,
            n_tokens=n_tokens,
            n_states=2 * len(texts) * len(layers) * len(self._positions) + (kept_tokens if whole else 0),
            more_bytes=len(layers) * n_tokens * ACTIVITY_BYTES if whole else 0.0,
        )

    def _reading(self, saes: LayerSAEs, positions: Sequence[str]) -> dict[str, Any]:
        """What an extraction's states follow from: the SAEs only where the whole response is read, whose activity is
        kept, the further positions only where there are some."""
        reading = {"layers": sorted(saes), "position": positions[0], **self._rules}
        if len(positions) > 1:
            reading["also_read"] = list(positions[1:])
        if WHOLE in positions:
            reading["saes"] = {str(layer): sae.identity["sha256"] for layer, sae in sorted(saes.items()) if sae is not None}
        return reading

    @property
    def _rules(self) -> dict[str, Any]:
        """How texts become tokens."""
        return {name: getattr(self.config.backbone, name) for name in ("max_length", "over_length", "control_tokens", "think")}

    def _read_from(self, pairs: Artefact) -> list[str]:
        return [pairs.facts["texts"], sha256_of(self.identity)]

    def _alone(self, layer: int, sae: SparseAutoencoder | None) -> dict[str, Any]:
        """The reading of one layer at the fit's position alone, whatever else the same pass reads."""
        return self._reading({layer: sae}, self._positions[:1])

    def _holding(self, pairs: Artefact, layer: int, sae: SparseAutoencoder | None) -> Artefact | None:
        """An extraction that holds this layer at the fit's position, whatever else it holds."""
        wanted = (VERSIONS["extraction"], self._read_from(pairs), self._alone(layer, sae))
        for _, artefact in self.store.all("extraction"):
            if isinstance(artefact, Artefact):
                readings = alone_readings(artefact.manifest["config"], layer)
                if wanted in [(artefact.manifest["version"], artefact.manifest["inputs"], reading) for reading in readings]:
                    return artefact
        return None

    def _states(self, pairs: Artefact, layer: int, sae: SparseAutoencoder | None) -> States:
        held = self._holding(pairs, layer, sae)
        assert held is not None  # just found or made
        alone = self.store.fingerprint("extraction", VERSIONS["extraction"], self._alone(layer, sae), self._read_from(pairs))
        position, report = self.config.backbone.position, held.facts
        return States(folder=held.path, layer=layer, position=position, fingerprint=alone, backbone=report["backbone"], report=report)

    def pair_counts(self, pairs: Artefact, states: States) -> dict[str, Any]:
        """How many pairs left the computation so far, where and why (core.reward.pair_counts)."""
        data = read_json(pairs.file("report.json"))["data"]
        return pair_counts(pairs_of(pairs.path), data, states.report, self._rules)

    def say_pair_counts(self, pairs: Artefact, states: States) -> dict[str, Any]:
        """The counts, logged (and so in a run's events) where pairs were refused or prompts cut. DataError: nothing
        left to train on, or to choose by."""
        counts = self.pair_counts(pairs, states)
        if counts["n_refused"] or counts["n_shortened"]:
            log.warning("%s", "\n".join(sentences(counts)))
        for split in ("train", "validation"):
            if counts["splits"][split]["n_pairs"] and not counts["splits"][split]["n_kept"]:
                reasons = ", ".join(f"{n} x {reason}" for reason, n in counts["splits"][split]["by_reason"].items())
                remedy = "mend the texts, or change what is read: --max-length"
                raise DataError(f"no pair of the {split} split can be read by this model", found=reasons, remedy=remedy)
        return counts

    def frequencies(self, pairs: Artefact, states: States, keep: int) -> Artefact:
        """`frequencies.*` (LatentFrequencies) and `resamples.*`, for every K up to `keep`."""
        asked = {**self.config.selection.result_fields(), "k": keep}
        if asked["selection"] == "frequency":  # the only rule there was when caches of version 1 were made
            del asked["selection"]

        def make(folder: Path, _scratch: Path) -> dict[str, Any]:
            hidden, aligned = states.load(pairs_of(pairs.path))
            frequencies, resamples = latent_frequencies(hidden, aligned, self.sae, self.config.selection, keep, self.progress)
            save_value(folder, "frequencies", frequencies)
            save_value(folder, "resamples", resamples)
            return {"sae": dict(self.sae.identity), "n_live": int((frequencies.n_active >= self.config.selection.min_active).sum())}

        return self.step("frequencies", asked, [states.fingerprint, pairs.facts["content"], sha256_of(dict(self.sae.identity))], make)

    def heads(self, pairs: Artefact, states: States, frequencies: Artefact) -> Artefact:
        """`heads.*` (SparseFit): the selected directions, and an ensemble of heads for each loss."""

        def make(folder: Path, _scratch: Path) -> dict[str, Any]:
            hidden, aligned = states.load(pairs_of(pairs.path))
            measured, resamples = value_of(frequencies.path, "frequencies"), value_of(frequencies.path, "resamples")
            sparse = fit_sparserm(hidden, aligned, self.sae, measured, resamples, self.config, self.progress)
            save_value(folder, "heads", sparse)
            return {"selection": sparse.summary.to_json()}

        asked = {"k": self.config.selection.k, "head": self.config.head.result_fields()}
        return self.step("heads", asked, [frequencies.fingerprint], make)

    def controls(self, pairs: Artefact, states: States, frequencies: Artefact, heads: Artefact) -> Artefact:
        """`controls.*` (Controls): every control, on the same split with the same rule of choice."""

        def make(folder: Path, _scratch: Path) -> dict[str, Any]:
            hidden, aligned = states.load(pairs_of(pairs.path))
            selected, measured = value_of(heads.path, "heads").selected, value_of(frequencies.path, "frequencies")
            save_value(folder, "controls", fit_controls(hidden, aligned, self.sae, selected, measured, self.config, self.progress))
            return {}

        return self.step("controls", {"random_draws": self.config.random_draws}, [heads.fingerprint], make)

    def curve(self, pairs: Artefact, states: States, frequencies: Artefact, fitted: tuple[Artefact, Artefact] | None = None) -> Artefact:
        """`curve.json`: validation accuracy against K; one seed and draw in a fit (`fitted`), all in a sweep."""
        config = self.config
        seeds, draws = (1, 1) if fitted else (config.head.seeds, config.random_draws)

        def make(folder: Path, _scratch: Path) -> dict[str, Any]:
            hidden, aligned = states.load(pairs_of(pairs.path))
            measured, resamples = value_of(frequencies.path, "frequencies"), value_of(frequencies.path, "resamples")
            known = _known_margins(*fitted) if fitted else None
            points = accuracy_curve(
                hidden, aligned, self.sae, measured, resamples, config, seeds=seeds, draws=draws, known=known, progress=self.progress
            )
            write_json(folder / "curve.json", json_value(points))
            return {}

        asked = {"curve": list(config.curve), "k": config.selection.k, "head": config.head.result_fields(), "seeds": seeds, "draws": draws}
        return self.step("curve", asked, [a.fingerprint for a in (frequencies, *(fitted or ()))], make)

    def evaluation(self, pairs: Artefact, states: States, heads: Artefact, controls: Artefact) -> Artefact:
        """`evaluation.json`: the table on the test pairs, with `pair_counts`."""

        def make(folder: Path, _scratch: Path) -> dict[str, Any]:
            _, aligned = states.load(pairs_of(pairs.path))
            table = evaluate_fit(aligned, value_of(heads.path, "heads"), value_of(controls.path, "controls"))
            write_json(folder / "evaluation.json", json_value({**table.to_json(), "pair_counts": self.pair_counts(pairs, states)}))
            return {}

        return self.step("evaluation", {}, [heads.fingerprint, controls.fingerprint, pairs.fingerprint], make)

    def known(self, pairs: Artefact, states: States, heads: Artefact) -> Artefact:
        """`known.*` (core.reward.fit_responses): features and texts of all responses, to explain without a model."""

        def make(folder: Path, _scratch: Path) -> dict[str, Any]:
            hidden, aligned = states.load(pairs_of(pairs.path))
            selected = value_of(heads.path, "heads").selected
            seen = project(hidden.states, selected.directions), response_activations(hidden, selected.latent_ids, self.sae)
            responses = collect_responses(hidden, aligned, *seen)
            write_responses(responses, folder, texts=True)
            if hidden.tokens is not None:
                write_tokens(collect_tokens(hidden, responses, selected, self.sae), folder / TOKENS)
            return {}

        return self.step("known", {}, [heads.fingerprint], make)

    def reward_model(
        self,
        pairs: Artefact,
        states: States,
        frequencies: Artefact,
        heads: Artefact,
        controls: Artefact,
        curve: Artefact,
        evaluation: Artefact,
        known: Artefact,
    ) -> Artefact:
        """The folder of core.reward.model, each control in `controls/<kind>`, files for explaining, tables as JSON."""
        config, before = self.config, (pairs, frequencies, heads, controls, curve, evaluation, known)
        asked = {"backbone": config.backbone.result_fields(), "sae": config.sae.result_fields()}

        def make(folder: Path, scratch: Path) -> dict[str, Any]:
            sparse, measured = value_of(heads.path, "heads"), value_of(frequencies.path, "frequencies")
            table = read_json(evaluation.file("evaluation.json"))
            counts = table["pair_counts"]
            method = {
                "data": {**pairs.facts, **summed_rows(counts)},
                "pair_counts": counts,
                "config": {"selection": config.selection.result_fields(), "head": config.head.result_fields()},
                "selection": sparse.summary.to_json(),
                "fingerprints": {artefact.step: artefact.fingerprint for artefact in before} | {"extraction": states.fingerprint},
            }
            maker = PartsFromFit(config=config, backbone=states.backbone, sae=self.sae, frequencies=measured, method=method)
            parts = maker.sparserm(sparse, table["sparserm"])
            beside = [known.file(KNOWN), known.file(KNOWN_TEXTS), evaluation.file(EVALUATION), curve.file(CURVE)]
            beside += [known.file(TOKENS)] if (known.path / TOKENS).is_file() else []
            kept = read_responses(known.path, parts.k)
            if kept is not None:
                write_json(scratch / FAITHFULNESS, faithfulness(parts, kept, self.progress).to_json())
                beside.append(scratch / FAITHFULNESS)
            write_parts(parts, folder, beside)
            for kind, ensemble in value_of(controls.path, "controls").families.items():
                (folder / "controls" / kind).mkdir(parents=True)
                write_parts(maker.control(ensemble, table["controls"][kind]), folder / "controls" / kind)
            names = {"data": pairs.facts["source"], "backbone": states.backbone["name"], "sae": self.sae.identity["name"]}
            counted = {"selection": sparse.summary.to_json(), "n_prompts": table["n_prompts"], "pair_counts": brief(counts)}
            return {**names, "layer": states.layer, "position": states.position, **counted}

        return self.step("reward_model", asked, [artefact.fingerprint for artefact in before], make)

    def evidence(self, pairs: Artefact, states: States, heads: Artefact) -> Artefact | None:
        """Pages of the selected latents from the training responses; None, with a warning, where no single tokens were
        kept, and where the whole response is not read."""
        if states.position != WHOLE:
            return None
        hidden, aligned = states.load(pairs_of(pairs.path))
        train = aligned.rows_of("train")
        rows = np.unique(np.concatenate([hidden.chosen_rows[train], hidden.rejected_rows[train]]))
        if hidden.tokens is None or (hidden.tokens.places(rows) < 0).all():
            log.warning("no pages of latents come with this fit: the extraction kept single tokens of no training response")
            return None
        latents, config = value_of(heads.path, "heads").selected.latent_ids, LatentsConfig()
        inputs = evidence_inputs(self.sae.identity, states.backbone, states.fingerprint, pairs.facts["content"])

        def make(folder: Path, scratch: Path) -> Mapping[str, Any]:
            return make_evidence(hidden, aligned, self.sae, self.config.backbone, config, latents, folder, scratch, self.progress)

        return self.step("latents", evidence_config(config, states.layer, latents), inputs, make)


# Values are read back even in the run that made them, so that a resumed run takes the same path as an undisturbed one.
@lru_cache(maxsize=8)
def value_of(folder: Path, name: str) -> Any:
    return load_value(folder, name, *CLASSES)


@lru_cache(maxsize=2)
def pairs_of(folder: Path) -> PreferencePairs:
    return read_pairs(folder / "pairs.jsonl")


def _known_margins(heads: Artefact, controls: Artefact) -> dict[str, Any]:
    families = {**value_of(controls.path, "controls").families, "sparserm": value_of(heads.path, "heads").sparserm}
    return {kind: ensemble.margins for kind, ensemble in families.items()}
