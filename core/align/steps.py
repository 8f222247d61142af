"""The steps of a round as artefacts: each is read from the store, or computed if it is missing.

core.align.loop has them in order.

    align-candidates   candidates.jsonl (every generated pair), counts.json, beside.jsonl (answers to shift_prompts)
    align-rewards      rewards.jsonl, states.safetensors (z of both texts of each parsed pair, in the rows' order)
    align-filter       decisions.jsonl, kept.jsonl (TRL's preference format; its split chooses the epoch), counts.json
    align-dpo          adapter/ (PEFT), dpo.json
    align-evaluation   evaluation.json, samples.jsonl ... (core.align.evaluation); in round 0 of the base model
    align-shift        shift.json, shift.safetensors (core.explain.shift)

Steps exchange values by these files. The language model is loaded only where a step has to be computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from core.align.candidates import best_of_n, make_candidates
from core.align.dpo import train_dpo, with_dtype
from core.align.dpo_pairs import encode_pairs
from core.align.evaluation import evaluate_policy, load_evaluation, save_evaluation
from core.align.filtering import NONE, RANDOM, ScoredCandidates, counts_of, decide, score_pairs
from core.align.inputs import AlignInputs, PolicyRef, same_reading, scorer_of
from core.align.mc import mc_content
from core.align.records import CANDIDATES, DPO, EVALUATION, FILTER, REWARDS, SHIFT, Ledger
from core.align.values import Candidate
from core.config import DataConfig, SpacesConfig
from core.data.pairs_file import read_pairs, write_pairs
from core.data.splits import split_pairs
from core.explain.shift import GeneratedPairs, compare_shift, save_shift, shift_spaces
from core.files import read_json_lines, write_json, write_json_lines
from core.reward.fit_responses import prompt_id
from core.reward.model import BackboneReader
from core.runs.store import Artefact
from core.runs.versions import VERSIONS
from core.types import PreferencePair, PreferencePairs, Progress

COUNTS = ("generated", "parsed", "kept", "dropped")  # shown by progress at the end of a step
SEED_DISTANCE = 1000  # between rounds: configured seeds below it never equal another round's
SHIFT_POINTS = 1000  # training and generated answers in the shift's pictures


def round_seed(seed: int, round: int) -> int:
    """The seed of a round's draws."""
    return seed + SEED_DISTANCE * round


@dataclass(kw_only=True)
class AlignSteps(AlignInputs):
    """The steps of one run; each artefact is entered in the ledger."""

    ledger: Ledger

    def step(
        self, round: int, name: str, config: Mapping[str, Any], inputs: Sequence[str], make: Callable[[Path, Path, Progress], Mapping[str, Any]]
    ) -> Artefact:
        """A step's artefact, read or computed, and entered in the ledger."""
        label = name.removeprefix("align-")

        def report(step: str, done: float, total: float, **figures: Any) -> None:
            self.progress(f"round {round}: {step}", done, total, **figures)

        report(label, 0, 1)
        artefact = self.store.get_or_make(name, VERSIONS[name], config, inputs, lambda folder, scratch: make(folder, scratch, report))
        self.ledger.add_step(round, name, artefact.fingerprint)
        report(label, 1, 1, **{count: artefact.facts[count] for count in COUNTS if count in artefact.facts})
        return artefact

    def candidates(self, round: int, policy: PolicyRef) -> Artefact:
        """The policy's pairs for every prompt. Only best_of_n reads rewards here, to select the pairs."""
        config = replace(self.config.candidates, seed=round_seed(self.config.candidates.seed, round))
        inputs = [policy.fingerprint, self.prompts_hash, *([self.model_hashes["judge"]] if config.mode == "best_of_n" else [])]
        prompts, n = [*self.prompts.prompts, *self.shift_prompts], len(self.prompts.prompts) * config.per_prompt

        def make(folder: Path, scratch: Path, progress: Progress) -> dict[str, Any]:
            generator = self.generator(policy, config, scratch / "answers.jsonl", progress)
            if config.mode == "best_of_n":
                candidates = best_of_n(prompts, generator, scorer_of(self.judge), config, progress=progress)
            else:
                candidates = make_candidates(prompts, generator, config, progress=progress)
            of_round, of_shift = candidates[:n], candidates[n:]
            write_json_lines(folder / "candidates.jsonl", [candidate.to_json() for candidate in of_round], sort_keys=True)
            write_json_lines(folder / "beside.jsonl", [candidate.to_json() for candidate in of_shift], sort_keys=True)
            refused = Counter(candidate.refused.partition(":")[0] for candidate in of_round if candidate.refused)
            counts = {"generated": n, "parsed": n - refused.total(), "refused": dict(sorted(refused.items()))}
            write_json(folder / "counts.json", counts)
            return {**counts, "tokens": sum(sum(candidate.meta["tokens"]) for candidate in candidates)}

        return self.step(round, CANDIDATES, config.result_fields(), inputs, make)

    def rewards(self, round: int, candidates: Artefact) -> Artefact:
        """The rewards of every parsed pair by the reward model that filters."""

        def make(folder: Path, _scratch: Path, progress: Progress) -> dict[str, Any]:
            parsed = parsed_of(candidates)
            scored = score_pairs(self.judge, parsed, progress)
            values = [[None if np.isnan(value) else float(value) for value in row] for row in scored.rewards]
            names = [candidate.candidate_id for candidate in parsed]
            rows = [{"candidate_id": name, "reward_chosen": w, "reward_rejected": x} for name, (w, x) in zip(names, values, strict=True)]
            write_json_lines(folder / "rewards.jsonl", rows, sort_keys=True)
            tensors = {"z": scored.z, "rewards": scored.rewards}
            save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / "states.safetensors")
            return {"kind": self.judge.parts.kind, "n": len(parsed), "n_read": int(np.isfinite(scored.margins).sum())}

        return self.step(round, REWARDS, {}, [candidates.fingerprint, self.model_hashes["judge"]], make)

    def filter(self, round: int, candidates: Artefact, rewards: Artefact) -> Artefact:
        """The decision on every parsed pair, and the kept pairs for DPO."""
        config, arm = self.config, self.config.arm if self.config.arm in (NONE, RANDOM) else "reward"
        options = {"arm": arm, "min_margin": config.min_margin, "max_length": config.dpo.max_length, "share": config.dpo.evaluation_share}
        seeds = {"seed": round_seed(config.seed, round) if arm == RANDOM else 0, "split": round_seed(config.dpo.seed, round)}

        def make(folder: Path, _scratch: Path, _progress: Progress) -> dict[str, Any]:
            parsed = parsed_of(candidates)
            decisions = decide(
                parsed,
                scored_of(rewards),
                self._refused(parsed),
                arm=config.arm,
                min_margin=config.min_margin,
                seed=seeds["seed"],
                parts=self.judge.parts,
            )
            write_json_lines(folder / "decisions.jsonl", [decision.to_json() for decision in decisions], sort_keys=True)
            kept = [candidate.pair() for candidate, decision in zip(parsed, decisions, strict=True) if decision.kept]
            pairs = split_kept(kept, share=config.dpo.evaluation_share, seed=seeds["split"])
            write_pairs(pairs, folder / "kept.jsonl")
            counts = counts_of(candidates_of(candidates), decisions)
            write_json(folder / "counts.json", counts)
            return {**counts, "pairs": pairs.content_hash}

        return self.step(round, FILTER, {**options, **seeds}, [candidates.fingerprint, rewards.fingerprint, self.model_hashes["judge"]], make)

    def dpo(self, round: int, kept: Artefact, policy: PolicyRef) -> Artefact:
        """The next policy's adapter."""
        config = with_dtype(replace(self.config.dpo, seed=round_seed(self.config.dpo.seed, round)), self.base)

        def make(folder: Path, _scratch: Path, progress: Progress) -> dict[str, Any]:
            self.free_policy()
            pairs = read_pairs(kept.path / "kept.jsonl")
            train, validation = (pairs.take(pairs.rows_of(split)).pairs for split in ("train", "validation"))
            (folder / "adapter").mkdir()
            outcome = train_dpo(
                train, validation, base=self.base, adapter=policy.adapter, config=config, out=folder / "adapter", progress=progress
            ).to_json()
            write_json(folder / "dpo.json", outcome)
            return {name: outcome[name] for name in ("adapter_before", "adapter_after", "reference", "tokens", "best_epoch")}

        return self.step(round, DPO, config.result_fields(), [policy.fingerprint, kept.facts["pairs"]], make)

    def evaluation(self, round: int, policy: PolicyRef, first: Artefact | None) -> Artefact:
        """The policy's evaluation on held-out data, compared with `first`, that of round 0.

        Draws are the same in every round, so differences are paired. A base model has round 0's evaluation.
        """
        if first and policy.adapter is None:
            self.ledger.add_step(round, EVALUATION, first.fingerprint)
            return first
        config = self.config.evaluation
        generation = replace(self.config.candidates, seed=config.seed, max_new_tokens=config.max_new_tokens, endpoint="")
        sampling = {name: getattr(generation, name) for name in ("temperature", "top_p", "batch_size")}
        inputs = [policy.fingerprint, self.model_hashes["model"], *([first.fingerprint] if first else [])]
        inputs += [mc_content(config), self.prompts_hash] if config.mc else []

        def make(folder: Path, scratch: Path, progress: Progress) -> dict[str, Any]:
            generator = self.generator(policy, generation, scratch / "answers.jsonl", progress)
            before = load_evaluation(first.path) if first else None
            loaded, prompts = self.evaluation_policy(policy, progress), self.prompts.prompts
            evaluation = evaluate_policy(loaded, self.pairs, generator, self.model, config, aligned_on=prompts, first=before, progress=progress)
            save_evaluation(folder, evaluation)
            return {"adapter": loaded.adapter_hash, "n_warnings": len(evaluation.warnings)}

        return self.step(round, EVALUATION, {**config.result_fields(), **sampling}, inputs, make)

    def shift(self, round: int, candidates: Artefact, rewards: Artefact) -> Artefact:
        """The distance of generated answers from the reward model's training answers."""
        config = SpacesConfig(points=SHIFT_POINTS, seed=self.config.evaluation.seed)

        def make(folder: Path, _scratch: Path, progress: Progress) -> dict[str, Any]:
            parsed, scored = self._compared(candidates, rewards, progress)
            read = np.flatnonzero(np.isfinite(scored.margins))
            ids = np.array([prompt_id(parsed[int(i)].prompt) for i in read], dtype=np.int64)
            names = tuple(parsed[int(i)].candidate_id for i in read)
            generated = GeneratedPairs(z=scored.z[read], prompt_ids=ids, ids=names, n_unread=len(parsed) - len(read))
            spaces = shift_spaces(self.model, self.fitted.find_frequencies(), config.random_draws)
            save_shift(folder, compare_shift(generated, self.fit_responses, self.fitted.states(), spaces, config, progress))
            return {"n": len(read), "n_unread": len(parsed) - len(read)}

        return self.step(round, SHIFT, config.result_fields(), [candidates.fingerprint, rewards.fingerprint, self.model_hashes["model"]], make)

    def _compared(self, candidates: Artefact, rewards: Artefact, progress: Progress) -> tuple[list[Candidate], ScoredCandidates]:
        """The pairs that the shift compares, and z as the reward model that measures reads it. The filter's z is used
        where both reward models read the same hidden states."""
        of_shift = [candidate for candidate in candidates_of(candidates, "beside.jsonl") if candidate.parsed]
        if of_shift:
            return of_shift, score_pairs(self.model, of_shift, progress)
        parsed = parsed_of(candidates)
        return parsed, scored_of(rewards) if same_reading(self.model.parts, self.judge.parts) else score_pairs(self.model, parsed, progress)

    def _refused(self, parsed: Sequence[Candidate]) -> dict[str, str]:
        """Candidate id -> the reason why the pair can't be used: `unfit` of best_of_n, or a reason of DPO.

        Pairs are encoded with the backbone of the reward model that measures, with the policy's tokenizer and template.
        """
        reader = self.model.reader
        assert isinstance(reader, BackboneReader)  # since the model was loaded from a folder
        unfit = {candidate.candidate_id: str(candidate.meta["unfit"]) for candidate in parsed if candidate.meta.get("unfit")}
        _, refused = encode_pairs([candidate.pair() for candidate in parsed], reader.backbone, self.config.dpo.max_length)
        return {**refused, **unfit}


def split_kept(pairs: Sequence[PreferencePair], *, share: float, seed: int) -> PreferencePairs:
    """The kept pairs: `share` of the prompts `validation`, which chooses the epoch; the rest (or one alone) `train`."""
    n_prompts = len({pair.prompt_id for pair in pairs})
    if n_prompts < 2 or not share:
        return PreferencePairs(pairs=tuple(pairs), split=("train",) * len(pairs))
    return split_pairs(PreferencePairs(pairs=tuple(pairs)), DataConfig(ratios=(1.0 - share, share, 0.0), seed=seed))


def candidates_of(artefact: Artefact, name: str = "candidates.jsonl") -> list[Candidate]:
    """The generated pairs of an `align-candidates` artefact."""
    return [Candidate.from_json(row) for row in read_json_lines(artefact.path / name)]


def parsed_of(artefact: Artefact) -> list[Candidate]:
    """The parsed pairs of an `align-candidates` artefact."""
    return [candidate for candidate in candidates_of(artefact) if candidate.parsed]


def scored_of(artefact: Artefact) -> ScoredCandidates:
    """Rewards and hidden states of an `align-rewards` artefact, in the order of the parsed pairs."""
    tensors = load_file(artefact.path / "states.safetensors")
    return ScoredCandidates(rewards=tensors["rewards"], z=tensors["z"])
