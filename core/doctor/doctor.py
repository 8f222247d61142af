"""The doctor: measures every trap that METHOD.md names on a fit's own model, texts and hidden states.

    layer and position, BOS, template, padding and batches     core.doctor.checks_reading    the language model reads 64 responses again
    L0, FVU, dead latents                                      core.doctor.checks_sae        the SAE, on the tokens of 100 dialogues
    pairs left out, and whether they differ                    core.doctor.checks_left_out   counted over all pairs of the file
    split leakage, duplicates                                  core.doctor.checks_data       counted over all pairs that were read
    wording and length shortcut, attribution residual,
    faithfulness, stability of the top K, prompt share         core.doctor.checks_reward     from what the fit kept
    sentences against deletions, words' stability              core.doctor.checks_words      where whole responses are read
    label-swap null                                            core.doctor.null_test        10 fits on swapped labels (METHOD.md's test: 100)

Each check gives a figure, its bound, the bound's reason and a remedy. Bounds that are not in METHOD.md are our choice,
marked [C] in the code.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from core.backbone.model import Backbone
from core.config import DoctorConfig, HeadConfig, SelectionConfig, from_dict
from core.data.duplicates import find_duplicates
from core.doctor.checks_data import duplicate_pairs, split_leakage
from core.doctor.checks_left_out import left_out_differ, lost_share, pairs_left_out
from core.doctor.checks_reading import (
    ALONE,
    Tokens,
    bos_count,
    find_placement,
    invariance,
    layer_and_position,
    readings_of,
    template_check,
    ways_of_batching,
)
from core.doctor.checks_reward import attribution_residual, faithful_explanations, length_shortcut, prompt_variance, top_k_stability, wording_shortcut
from core.doctor.checks_sae import dead_latents, fvu_on_our_tokens, l0_on_our_tokens, measure_sae
from core.doctor.checks_words import word_causes, words_stable
from core.doctor.null_test import PAIRS, label_swap_null, null_check, thinned
from core.doctor.report import STEP, Check, Report, load_report, save_report
from core.errors import ConfigError, MissingError
from core.explain.cues import length_cue
from core.explain.faithfulness import faithfulness
from core.explain.stability import prompt_share, spread, stability
from core.explain.word_causes import deletion_agreement
from core.explain.word_stability import held_out_responses, refit_on_resamples, word_stability
from core.files import read_json
from core.reward.dialogues import Item
from core.reward.extraction import response_states
from core.reward.fit_responses import FitResponses
from core.reward.folder import ModelFolder
from core.reward.hidden_states import WHOLE, HiddenStates
from core.reward.model import SparseRM
from core.reward.pair_counts import LostPair
from core.types import PreferencePair, PreferencePairs, Progress, no_progress

STATES = 5000  # held-out states that the SAE, and responses that the attribution, are measured on


def doctor_report(folder: ModelFolder, config: DoctorConfig, *, device: str = "auto", progress: Progress = no_progress) -> tuple[Report, Path]:
    """The report on a fitted reward model and its artefact's folder: found by the content of the model's folder, or
    made.

    Raises MissingError where the folder does not keep its pairs or this cache does not hold the fit's hidden states,
    and what loading backbone and SAE raises.
    """

    def make(target: Path, _scratch: Path) -> dict[str, Any]:
        model = SparseRM.load(folder.path, device=device)
        _ = folder.responses_with_texts
        report = Doctor(
            model=model,
            z=folder.states(),
            hidden=folder.hidden_states(),
            table=folder.evaluation,
            left_out=folder.lost_pairs(),
            config=config,
            progress=progress,
        ).examine()
        save_report(target, report)
        return {"status": report.status, "counts": report.counts, **report.about}

    path = folder.result(STEP, config, make).path
    return load_report(path), path


@dataclass(kw_only=True)
class Doctor:
    """Examines one SparseRM on the responses of its fit. Row i of `z` (may be a memory map) is the hidden state of row
    i of `model.known`, as the fit kept it, and `hidden` the extraction it came from, with rows of its own (needed where
    whole responses are read); `table` is the fit's evaluation; `left_out` are the pairs that it could not read (None:
    the cache no longer holds them).

    Raises ConfigError for a control, MissingError if the responses of the fit or their texts are not kept with the
    model.
    """

    model: SparseRM
    z: Float[np.ndarray, "n d_model"]
    table: Mapping[str, Any]
    hidden: HiddenStates | None = None
    left_out: Sequence[LostPair] | None = None
    config: DoctorConfig = field(default_factory=DoctorConfig)
    progress: Progress = no_progress
    today: datetime.date = field(default_factory=datetime.date.today)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.model.parts.kind != "sparserm":
            raise ConfigError("the doctor examines a SparseRM, not its controls", expected="sparserm", found=self.model.parts.kind)
        if self.model.known is None or self.model.known.pairs is None:
            raise MissingError("the pairs of this reward model are not kept beside it, so nothing can be measured on them", remedy="fit it again")
        self.parts = self.model.parts
        self.known: FitResponses = self.model.known
        self.pairs: PreferencePairs = self.model.known.pairs

    def examine(self) -> Report:
        """All checks, in order. Raises what loading backbone and SAE raises (core.errors), and what `progress` raises
        to cancel.
        """
        parts = (self.reading, self.autoencoder, self.data, self.explanations, self.null)
        checks: list[Check] = []
        for number, part in enumerate(parts):
            self.progress("doctor", number, len(parts), next=part.__name__)
            with self._timed(part.__name__):
                checks += part()
        self.progress("doctor", len(parts), len(parts))
        return Report(checks=tuple(checks), about=self._about(), seconds=self.seconds)

    # --- the parts ---

    def reading(self) -> Iterator[Check]:
        """The language model reads some held-out responses alone and in several kinds of batches."""
        layer, position = self.parts.layer, self.parts.position
        rows, items = self.sample
        kept, tokens = np.asarray(self.z[rows], dtype=np.float32), readings_of(self.backbone, items)
        placement, alone = find_placement(self.backbone, items, tokens, kept, self.progress)
        yield layer_and_position(placement, self.parts.sae or {}, layer=layer, position=position, exact=self.exact)
        yield bos_count([tokens_of_one.ids for tokens_of_one in tokens], real=self.backbone.template.bos, named=self.backbone.tokenizer.bos_token_id)
        yield self.template()
        rewards = {ALONE: alone[layer, position], "as the fit kept them": kept, **self._batched(items, tokens)}
        yield invariance(
            {name: self.model.rewards_of(z) for name, z in rewards.items()},
            self.known.groups[rows],
            deviation=float(self.rewards.std()),
            exact=self.exact,
        )

    def _batched(self, items: list[Item], tokens: list[Tokens]) -> dict[str, Float[np.ndarray, "n d_model"]]:
        layer, position = self.parts.layer, self.parts.position
        ways = dict(ways_of_batching(self.backbone, tokens, layer=layer, position=position, seed=self.config.seed, progress=self.progress))
        return {**ways, "as it scores": response_states(self.backbone, items, layer=layer, position=position)}

    def template(self) -> Check:
        """Whether the backbone's template still writes the system message that the fit recorded."""
        identity = self.backbone.identity
        recorded, has_template = self.parts.backbone.get("system_message"), bool(identity.get("has_template", True))
        return template_check(recorded=recorded, now=str(identity.get("system_message", "")), has_template=has_template, today=self.today)

    def autoencoder(self) -> Iterator[Check]:
        """The SAE on content tokens, and on the held-out states that are read."""
        pairs = self.pairs.take(spread(self.known.held_out_pairs, max(self.config.dialogues // 2, 1)))
        figures = measure_sae(
            self.model.sae,
            self.backbone,
            pairs,
            *self._states_read(),
            layer=self.parts.layer,
            position=self.parts.position,
            card=self._card(),
            progress=self.progress,
        )
        yield l0_on_our_tokens(figures)
        yield fvu_on_our_tokens(figures)
        yield dead_latents(figures, self.parts.selection)

    def _states_read(self) -> tuple[Float[np.ndarray, "n d_model"], Int[np.ndarray, " n"]]:
        """Held-out states that the SAE read, and the prompt of each: of whole responses those of single tokens, of which
        at most STATES spread over all that are kept."""
        if self.hidden is None or self.hidden.tokens is None:
            rows = spread(self.known.held_out, STATES)
            return np.asarray(self.z[rows], dtype=np.float32), self.known.groups[rows]
        tokens = self.hidden.tokens
        row_in_hidden = np.unique(np.concatenate([self.hidden.chosen_rows, self.hidden.rejected_rows]))
        places = tokens.places(row_in_hidden[self.known.held_out])
        kept = [(int(row), tokens.tokens(int(place))) for row, place in zip(self.known.held_out, places, strict=True) if place >= 0]
        if not kept:
            raise MissingError(
                "the extraction kept single tokens of no held-out response", remedy="fit shorter responses, or read --position response_end"
            )
        numbers = np.concatenate([np.arange(part.start, part.stop) for _, part in kept])
        groups = np.concatenate([np.full(part.stop - part.start, self.known.groups[row]) for row, part in kept])
        few = spread(np.arange(len(numbers)), STATES)
        return np.asarray(tokens.states[numbers[few]], dtype=np.float32), groups[few]

    def data(self) -> Iterator[Check]:
        """The pairs: which are missing, which occur twice, and how much their words and lengths predict."""
        counts = self.parts.method.get("pair_counts")
        yield pairs_left_out(counts)
        yield left_out_differ(self.pairs, self.left_out, lost_share(counts))
        self.progress("duplicates", 0, 1)
        duplicates = find_duplicates(self.pairs)
        self.progress("duplicates", 1, 1)
        yield split_leakage(self.pairs, duplicates)
        yield duplicate_pairs(self.pairs, duplicates)
        yield wording_shortcut(self.table)
        yield length_shortcut(self.table, length_cue(self.parts, self.known))

    def explanations(self) -> Iterator[Check]:
        """Whether explanations add up, are faithful, and are stable."""
        yield attribution_residual(self.parts, self.known, spread(self.known.held_out, STATES))
        yield faithful_explanations(faithfulness(self.parts, self.known, self.progress))
        yield top_k_stability(stability(self.parts, self.known))
        yield prompt_variance(prompt_share(self.rewards, self.known.groups[self.known.held_out]))
        if self.parts.position == WHOLE:
            yield from self.words()

    def words(self) -> Iterator[Check]:
        """Whether sentences cause what they carry, and whether other draws of the training prompts mark the same words."""
        rows = spread(self.known.held_out, self.config.deleted)
        texts = {int(row): (pair.prompt, text) for pair, sides in self._held_out_sides() for row, text in sides}
        items = [texts[int(row)] for row in rows]
        groups = self.known.groups[rows]
        yield word_causes(deletion_agreement(self.model.explainer, items, groups, seed=self.config.seed, progress=self.progress))
        yield self._words_stable()

    def _held_out_sides(self) -> Iterator[tuple[PreferencePair, tuple[tuple[int, str], tuple[int, str]]]]:
        for number in self.known.held_out_pairs.tolist():
            pair = self.pairs[number]
            yield pair, ((int(self.known.chosen_rows[number]), pair.chosen), (int(self.known.rejected_rows[number]), pair.rejected))

    def _words_stable(self) -> Check:
        method, n_all = self.parts.method["config"], len(self.pairs.rows_of("train"))
        if self.hidden is None or self.hidden.tokens is None:
            return words_stable(None, refits=self.config.refits, n_pairs=0, n_all=n_all)
        hidden, pairs = thinned(self.hidden, self.pairs, PAIRS, self.config.seed)
        selection, head = from_dict(SelectionConfig, method["selection"]), from_dict(HeadConfig, method["head"])
        refits = refit_on_resamples(
            hidden, pairs, self.model.sae, selection, head, refits=self.config.refits, seed=self.config.seed, progress=self.progress
        )
        measured = word_stability(refits, held_out_responses(self.hidden, self.known))
        return words_stable(measured, refits=len(refits), n_pairs=len(pairs.rows_of("train")), n_all=n_all)

    def null(self) -> Iterator[Check]:
        """Fits on swapped labels."""
        method = self.parts.method["config"]
        test = label_swap_null(
            self._hidden,
            self.pairs,
            self.model.sae,
            from_dict(SelectionConfig, method["selection"]),
            from_dict(HeadConfig, method["head"]),
            swaps=self.config.swaps,
            seed=self.config.seed,
            progress=self.progress,
        )
        yield null_check(test)

    # --- what they share ---

    @property
    def backbone(self) -> Backbone:
        """The language model up to layer L, loaded when it is first needed."""
        backbone: Backbone = self.model.reader.backbone  # type: ignore[attr-defined]
        return backbone

    @property
    def exact(self) -> bool:
        """Whether hidden states are computed in float32."""
        return self.backbone.identity.get("dtype") == "float32" and self.backbone.identity.get("quantization") == "none"

    @cached_property
    def sample(self) -> tuple[Int[np.ndarray, " n"], list[Item]]:
        """Rows and texts of some held-out pairs' responses; chosen and rejected alternate."""
        pairs = spread(self.known.held_out_pairs, max(self.config.responses // 2, 1))
        rows = np.stack([self.known.chosen_rows[pairs], self.known.rejected_rows[pairs]], axis=1).reshape(-1)
        return rows, [(self.pairs[int(i)].prompt, text) for i in pairs for text in (self.pairs[int(i)].chosen, self.pairs[int(i)].rejected)]

    @cached_property
    def rewards(self) -> Float[np.ndarray, " n"]:
        """Rewards of the held-out responses."""
        return self.parts.head.reward(self.known.projections[self.known.held_out])

    @property
    def _hidden(self) -> HiddenStates:
        if self.hidden is not None:
            return self.hidden
        return HiddenStates(
            states=self.z,
            chosen_rows=self.known.chosen_rows,
            rejected_rows=self.known.rejected_rows,
            pair_rows=np.arange(len(self.pairs)),
            n_tokens=self.known.n_tokens,
            layer=self.parts.layer,
            position=self.parts.position,
        )

    def _card(self) -> Mapping[str, Any] | None:
        """The card beside a trained SAE's folder, if there is one."""
        place = self.parts.sae_config.path if self.parts.sae_config else ""
        path = Path(place) / "card.json"
        return read_json(path) if place and path.is_file() else None

    def _about(self) -> dict[str, Any]:
        names = {"backbone": self.parts.backbone.get("name"), "sae": (self.parts.sae or {}).get("name"), "dtype": self.backbone.identity.get("dtype")}
        place = {"layer": self.parts.layer, "position": self.parts.position, "k": self.parts.k}
        return {**names, **place, "n_pairs": len(self.pairs), "n_held_out": len(self.known.held_out_pairs), "config": self.config.result_fields()}

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started
