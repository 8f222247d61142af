"""Each step of a round wrapped by the store: what stands is found, what does not is computed (core.align.loop has them in order).

    align-candidates   candidates.jsonl (every generated pair), counts.json, beside.jsonl (answers to training prompts, where the prompts are others)
    align-rewards      rewards.jsonl, states.safetensors (z of both texts of each parsed pair, in the order of the rows)
    align-filter       decisions.jsonl, kept.jsonl (TRL's preference format, with the split that chooses the epoch), counts.json
    align-dpo          adapter/ (PEFT), dpo.json
    align-evaluation   evaluation.json, samples.jsonl ... (core.align.evaluation); of round 0 the base model's
    align-shift        shift.json, shift.safetensors (core.explain.shift)

Between steps values go over the disk; models are loaded only if a step has to be computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from core.align.filtering import NONE, RANDOM, Rewarded, counts_of, decide, reward_pairs
from core.align.inputs import PolicyAt, Setting, same_reading, score_by
from core.align.mc import mc_content
from core.align.records import CANDIDATES, DPO, EVALUATION, FILTER, REWARDS, SHIFT, Ledger
from core.align.values import Candidate
from core.config import DataConfig, SpacesConfig
from core.data.pairs_file import read_pairs, write_pairs
from core.data.splits import split_pairs
from core.files import read_json_lines, write_json, write_json_lines
from core.reward.fit_responses import prompt_id
from core.runs.store import Artefact
from core.runs.versions import VERSIONS
from core.types import PreferencePair, PreferencePairs, Progress

COUNTS = ("generated", "parsed", "kept", "dropped")  # shown while it runs
SEEDS_A_ROUND = 1000  # apart: seeds below it never meet another round's
SHIFT_POINTS = 1000  # of training and generated answers, in the pictures


def round_seed(seed: int, round: int) -> int:
    """The seed of a round's own draws."""
    return seed + SEEDS_A_ROUND * round


@dataclass(kw_only=True)
class AlignSteps(Setting):
    """One run over the steps; what stands is noted in the ledger."""

    ledger: Ledger

    def step(
        self, round: int, name: str, config: Mapping[str, Any], inputs: Sequence[str], make: Callable[[Path, Path, Progress], Mapping[str, Any]]
    ) -> Artefact:
        """A step's artefact, found or made, and noted in the ledger."""
        label = name.removeprefix("align-")

        def tell(step: str, done: float, total: float, **figures: Any) -> None:
            self.progress(f"round {round}: {step}", done, total, **figures)

        tell(label, 0, 1)
        found = self.store.get_or_make(name, VERSIONS[name], config, inputs, lambda folder, scratch: make(folder, scratch, tell))
        self.ledger.step(round, name, found.fingerprint)
        tell(label, 1, 1, **{count: found.facts[count] for count in COUNTS if count in found.facts})
        return found

    def candidates(self, round: int, policy: PolicyAt) -> Artefact:
        """The policy's pairs for every prompt, before any reward (but for best_of_n, where the reward chooses)."""
        config = replace(self.config.candidates, seed=round_seed(self.config.candidates.seed, round))
        inputs = [policy.fingerprint, self.asked, *([self.contents["judge"]] if config.mode == "best_of_n" else [])]
        prompts, n = [*self.prompts.prompts, *self.beside], len(self.prompts.prompts) * config.per_prompt

        def make(folder: Path, scratch: Path, progress: Progress) -> dict[str, Any]:
            from core.align.candidates import best_of_n, make_candidates

            generator = self.generator(policy, config, scratch / "answers.jsonl", progress)
            if config.mode == "best_of_n":
                every = best_of_n(prompts, generator, score_by(self.judge), config, progress=progress)
            else:
                every = make_candidates(prompts, generator, config, progress=progress)
            found = every[:n]
            write_json_lines(folder / "candidates.jsonl", [one.to_json() for one in found], sort_keys=True)
            write_json_lines(folder / "beside.jsonl", [one.to_json() for one in every[n:]], sort_keys=True)
            counts = {"generated": n, "parsed": sum(one.parsed for one in found), "refused": _reasons(found)}
            return {**_said(folder, counts), "tokens": sum(sum(one.meta["tokens"]) for one in every)}

        return self.step(round, CANDIDATES, config.result_fields(), inputs, make)

    def rewards(self, round: int, candidates: Artefact) -> Artefact:
        """What the reward model that filters makes of every parsed pair."""

        def make(folder: Path, _scratch: Path, progress: Progress) -> dict[str, Any]:
            parsed = parsed_of(candidates)
            found = reward_pairs(self.judge, parsed, progress)
            values = [[None if np.isnan(value) else float(value) for value in row] for row in found.rewards]
            rows = [{"candidate_id": one.candidate_id, "reward_chosen": w, "reward_rejected": x} for one, (w, x) in zip(parsed, values, strict=True)]
            write_json_lines(folder / "rewards.jsonl", rows, sort_keys=True)
            _save(folder / "states.safetensors", {"z": found.z, "rewards": found.rewards})
            return {"kind": self.judge.parts.kind, "n": len(parsed), "n_read": int(np.isfinite(found.margins).sum())}

        return self.step(round, REWARDS, {}, [candidates.fingerprint, self.contents["judge"]], make)

    def filter(self, round: int, candidates: Artefact, rewards: Artefact) -> Artefact:
        """Which pairs DPO learns from, and why not from the others."""
        config, arm = self.config, self.config.arm if self.config.arm in (NONE, RANDOM) else "reward"
        asked = {"arm": arm, "min_margin": config.min_margin, "max_length": config.dpo.max_length, "share": config.dpo.evaluation_share}
        seeds = {"seed": round_seed(config.seed, round) if arm == RANDOM else 0, "split": round_seed(config.dpo.seed, round)}

        def make(folder: Path, _scratch: Path, _progress: Progress) -> dict[str, Any]:
            everything, parsed = candidates_of(candidates), parsed_of(candidates)
            decisions = decide(
                parsed,
                rewarded_of(rewards),
                self._refused(parsed),
                arm=config.arm,
                min_margin=config.min_margin,
                seed=seeds["seed"],
                parts=self.judge.parts,
            )
            write_json_lines(folder / "decisions.jsonl", [one.to_json() for one in decisions], sort_keys=True)
            chosen = [one.pair() for one, said in zip(parsed, decisions, strict=True) if said.kept]
            kept = set_apart(chosen, share=config.dpo.evaluation_share, seed=seeds["split"])
            write_pairs(kept, folder / "kept.jsonl")
            return {**_said(folder, counts_of(everything, decisions)), "pairs": kept.content_hash}

        return self.step(round, FILTER, {**asked, **seeds}, [candidates.fingerprint, rewards.fingerprint, self.contents["judge"]], make)

    def dpo(self, round: int, kept: Artefact, policy: PolicyAt) -> Artefact:
        """The next policy's adapter."""
        from core.align.dpo import train_dpo, with_dtype

        config = with_dtype(replace(self.config.dpo, seed=round_seed(self.config.dpo.seed, round)), self.base)

        def make(folder: Path, _scratch: Path, progress: Progress) -> dict[str, Any]:
            self.let_go()
            pairs = read_pairs(kept.path / "kept.jsonl")
            train, validation = ([pairs[int(i)] for i in pairs.rows_of(split)] for split in ("train", "validation"))
            (folder / "adapter").mkdir()
            outcome = train_dpo(
                train, validation, base=self.base, adapter=policy.adapter, config=config, out=folder / "adapter", progress=progress
            ).to_json()
            write_json(folder / "dpo.json", outcome)
            return {name: outcome[name] for name in ("adapter_before", "adapter_after", "reference", "tokens", "best_epoch")}

        return self.step(round, DPO, config.result_fields(), [policy.fingerprint, kept.facts["pairs"]], make)

    def evaluation(self, round: int, policy: PolicyAt, first: Artefact | None) -> Artefact:
        """The policy on what nobody trained on, `first` being round 0's. Its draws are the same in every round, so differences are paired.

        A policy that still is the base model has round 0's evaluation.
        """
        if first and policy.adapter is None:
            self.ledger.step(round, EVALUATION, first.fingerprint)
            return first
        config, asked = self.config.evaluation, self.config.candidates
        written = replace(asked, seed=config.seed, max_new_tokens=config.max_new_tokens, endpoint="")
        sampling = {name: getattr(written, name) for name in ("temperature", "top_p", "batch_size")}
        inputs = [policy.fingerprint, self.contents["model"], *([first.fingerprint] if first else [])]
        inputs += [mc_content(config), self.asked] if config.mc else []

        def make(folder: Path, scratch: Path, progress: Progress) -> dict[str, Any]:
            from core.align.evaluation import evaluate_policy, load_evaluation, save_evaluation

            generator, before = self.generator(policy, written, scratch / "answers.jsonl", progress), load_evaluation(first.path) if first else None
            loaded = self.measured(policy, progress)
            found = evaluate_policy(
                loaded, self.pairs, generator, self.model, config, aligned_on=self.prompts.prompts, first=before, progress=progress
            )
            save_evaluation(folder, found)
            return {"adapter": loaded.adapter_hash, "n_warnings": len(found.to_json()["warnings"])}

        return self.step(round, EVALUATION, {**config.result_fields(), **sampling}, inputs, make)

    def shift(self, round: int, candidates: Artefact, rewards: Artefact) -> Artefact:
        """How far generated answers lie from the reward model's training answers."""
        config = SpacesConfig(points=SHIFT_POINTS, seed=self.config.evaluation.seed)

        def make(folder: Path, _scratch: Path, progress: Progress) -> dict[str, Any]:
            from core.explain.shift import Generated, compare_shift, save_shift, shift_spaces

            parsed, rewarded = self._compared(candidates, rewards, progress)
            read = np.flatnonzero(np.isfinite(rewarded.margins))
            ids = np.array([prompt_id(parsed[int(i)].prompt) for i in read], dtype=np.int64)
            names = tuple(parsed[int(i)].candidate_id for i in read)
            generated = Generated(z=rewarded.z[read], prompt_ids=ids, ids=names, n_unread=len(parsed) - len(read))
            spaces = shift_spaces(self.model, self.fitted.find_frequencies(), config.random_draws)
            save_shift(folder, compare_shift(generated, self.known, self.fitted.states(), spaces, config, progress))
            return {"n": len(read), "n_unread": len(parsed) - len(read)}

        return self.step(round, SHIFT, config.result_fields(), [candidates.fingerprint, rewards.fingerprint, self.contents["model"]], make)

    # --- what they need ---

    def _compared(self, candidates: Artefact, rewards: Artefact, progress: Progress) -> tuple[list[Candidate], Rewarded]:
        """The pairs that the shift is about, and z as the reward model that measures reads it: at hand where the filter's reads the same states."""
        beside = [one for one in candidates_of(candidates, "beside.jsonl") if one.parsed]
        if beside:
            return beside, reward_pairs(self.model, beside, progress)
        parsed = parsed_of(candidates)
        return parsed, rewarded_of(rewards) if same_reading(self.model.parts, self.judge.parts) else reward_pairs(self.model, parsed, progress)

    def _refused(self, parsed: Sequence[Candidate]) -> dict[str, str]:
        """Why a pair can't be used, by candidate: what its maker says (`unfit`), and DPO's reasons.

        Read with the backbone of the reward model that measures, whose tokenizer and template are the policy's.
        """
        from core.align.dpo_pairs import encode_pairs
        from core.reward.model import BackboneReader

        reader = self.model.reader
        assert isinstance(reader, BackboneReader)  # loaded from a folder
        unfit = {one.candidate_id: str(one.meta["unfit"]) for one in parsed if one.meta.get("unfit")}
        return {**encode_pairs([one.pair() for one in parsed], reader.backbone, self.config.dpo.max_length)[1], **unfit}


def set_apart(pairs: Sequence[PreferencePair], *, share: float, seed: int) -> PreferencePairs:
    """The kept pairs, `share` of their prompts as `validation`, which chooses the epoch, the others as `train`; one prompt alone is trained on."""
    n_prompts = len({pair.prompt_id for pair in pairs})
    if n_prompts < 2 or not share:
        return PreferencePairs(pairs=tuple(pairs), split=("train",) * len(pairs))
    return split_pairs(PreferencePairs(pairs=tuple(pairs)), DataConfig(ratios=(1.0 - share, share, 0.0), seed=seed))


def candidates_of(artefact: Artefact, name: str = "candidates.jsonl") -> list[Candidate]:
    return [Candidate.from_json(row) for row in read_json_lines(artefact.path / name)]


def parsed_of(artefact: Artefact) -> list[Candidate]:
    return [one for one in candidates_of(artefact) if one.parsed]


def rewarded_of(artefact: Artefact) -> Rewarded:
    from safetensors.numpy import load_file

    tensors = load_file(artefact.path / "states.safetensors")
    return Rewarded(rewards=tensors["rewards"], z=tensors["z"])


def _save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, path)


def _said(folder: Path, counts: dict[str, Any]) -> dict[str, Any]:
    write_json(folder / "counts.json", counts)
    return counts


def _reasons(candidates: Sequence[Candidate]) -> dict[str, int]:
    return dict(sorted(Counter(one.refused.partition(":")[0] for one in candidates if one.refused).items()))
