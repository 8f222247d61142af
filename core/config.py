"""A frozen, keyword-only config for each step. Forms, `--help`, fingerprints and manifests are made from these classes.

Every field has a text for people (`help`), states whether another value changes the result (`result`), and which values
are allowed (`choices`, `minimum`). Defaults that the paper does not give are our choice: METHOD.md marks them [C].
Field names are kept in caches, so they never change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigError


def option(default: Any, help: str, *, result: bool = True, choices: tuple[Any, ...] = (), minimum: float | int | None = None) -> Any:
    """A config field. `result=False`: the value may change speed or memory, never the result, so it stays out of
    fingerprints.
    """
    meta = {"help": help, "result": result, "choices": choices, "minimum": minimum}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


class Config:
    """What all configs share: their values are checked when they are made, and they can be written as JSON values."""

    def __post_init__(self) -> None:
        for spec in fields(self):  # type: ignore[arg-type]
            value, choices, minimum = getattr(self, spec.name), spec.metadata.get("choices"), spec.metadata.get("minimum")
            name = f"{type(self).__name__}.{spec.name}"
            if choices and value not in choices:
                raise ConfigError(f"{name} has an unknown value", expected=" | ".join(map(str, choices)), found=repr(value))
            if minimum is not None and value is not None and not value >= minimum:
                raise ConfigError(f"{name} is too small", expected=f">= {minimum}", found=repr(value))

    def result_fields(self) -> dict[str, Any]:
        """The fields that change the result, as JSON values: the part of a config that enters a fingerprint."""
        return {s.name: _plain(getattr(self, s.name)) for s in fields(self) if s.metadata.get("result", True)}  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {s.name: _plain(getattr(self, s.name), all_fields=True) for s in fields(self)}  # type: ignore[arg-type]


def _plain(value: Any, *, all_fields: bool = False) -> Any:
    if is_dataclass(value) and isinstance(value, Config):
        return value.to_dict() if all_fields else value.result_fields()
    if isinstance(value, Mapping):
        return {str(k): _plain(v, all_fields=all_fields) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(v, all_fields=all_fields) for v in value]
    return value


@dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """Which preference pairs, how they are read, and how they are split."""

    pairs: str = option(
        "", "file (.jsonl .json .csv .tsv .parquet .arrow, also .gz), folder or Hub id of the preference pairs; empty: the embedded demo pairs"
    )
    format: str = option(
        "auto",
        "format of the rows; auto detects it",
        choices=(
            *("auto", "trl", "hh-rlhf", "safe-rlhf", "truthfulqa", "rewardbench", "rewardbench-2", "rm-bench", "ultrafeedback", "helpsteer"),
            *("nectar", "arena", "a-b", "llama-factory", "openai", "orca", "swift", "kto", "argilla", "label-studio"),
        ),
    )
    columns: Mapping[str, str] = option({}, "our field = your column, for files with other column names (prompt=question,...)")
    implicit_prompt: str = option(
        "auto",
        "the prompt of rows without one; auto: the messages or turns that both sides begin with; text: also the words that two texts begin with",
        choices=("auto", "text"),
    )
    label_values: Mapping[str, str] = option(
        {}, "for two answers and a label that can be read in two ways: the label's value for each answer (first=0,second=1)"
    )
    preference: str = option("safer", "which judgement of SafeRLHF decides", choices=("safer", "better"))
    hub_split: str = option("train", "split of a Hub data set")
    hub_config: str = option("", "configuration name of a Hub data set")
    hub_revision: str = option("", "revision (commit) of a Hub data set")
    max_pairs_per_prompt: int = option(4, "most pairs of a row or prompt with several answers", minimum=1)
    limit: int = option(0, "use only the first N prompts (0: all)", minimum=0)
    protocol: str = option(
        "", "named split of the paper; sets ratios (truthfulqa 4:1:5, safe-rlhf, red-teaming)", choices=("", "truthfulqa", "safe-rlhf", "red-teaming")
    )
    ratios: tuple[float, ...] = option((0.4, 0.1, 0.5), "shares of train, validation and test")
    split_by: str = option(
        "prompt", "prompt: each prompt is in one split only; pair: prompts may be in several, which shows the leak", choices=("prompt", "pair")
    )
    seed: int = option(0, "seed of the split")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.ratios) != 3 or min(self.ratios) < 0 or not 0 < sum(self.ratios) <= 1 + 1e-9 or self.ratios[0] <= 0:
            raise ConfigError(
                "DataConfig.ratios is impossible", expected="train > 0, validation and test >= 0, together at most 1", found=str(self.ratios)
            )


@dataclass(frozen=True, kw_only=True)
class BackboneConfig(Config):
    """Which language model, at which place its states are read, and with what arithmetic (METHOD.md section 2)."""

    model: str = option("smollm2-135m", "Hub id, local folder, .gguf file, or `smollm2-135m` (the embedded default)")
    revision: str = option("", "Hub revision (commit)")
    layer: int = option(19, "0-based decoder layer L whose output is read (hidden_states[L+1])", minimum=0)
    position: str = option(
        "response_end",
        "what is read: the last token of the response (the paper), the mean over its own tokens, or the end-of-turn token",
        choices=("response_end", "response_mean", "turn_end"),
    )
    also_read: tuple[str, ...] = option((), "other positions to read in the same pass, so that a later fit finds them", result=False)
    dtype: str = option(
        "auto", "arithmetic; auto: bfloat16 where the device is fast at it, else float32", choices=("auto", "bfloat16", "float16", "float32")
    )
    quantization: str = option("none", "bitsandbytes weights", choices=("none", "8bit", "4bit"))
    max_length: int = option(2048, "longest sequence in tokens", minimum=8)
    over_length: str = option(
        "drop_turns", "what happens to a longer sequence: drop the prompt's leading turns, or refuse the row", choices=("drop_turns", "refuse")
    )
    control_tokens: str = option(
        "refuse",
        "a control token inside a prompt or answer: refuse the row, or encode its characters as text (closing tokens at an answer's end are cut)",
        choices=("refuse", "text"),
    )
    think: str = option(
        "keep",
        "a thinking block in an answer: keep it as it was written, strip it, or refuse the row",
        choices=("keep", "strip", "refuse"),
    )
    template_date: str = option("26 Jul 2024", "date given to templates that print today's date")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", result=False)
    device_map: str = option("", "accelerate's device map (auto spreads a large model)", result=False)
    attention: str = option(
        "auto",
        "attention implementation; auto: sdpa, or eager where the model caps its attention logits (Gemma-2)",
        choices=("auto", "sdpa", "eager"),
    )
    tokens_per_batch: int = option(2048, "token budget of a batch; 2048 suits a CPU, 16384 a GPU", result=False, minimum=128)


@dataclass(frozen=True, kw_only=True)
class SAEConfig(Config):
    """Which sparse autoencoder. Either a sae-lens release with its id, or a folder or file on this machine."""

    release: str = option("", "sae-lens release, e.g. gemma-scope-9b-it-res-canonical")
    sae_id: str = option("", "id in that release, e.g. layer_31/width_16k/canonical")
    path: str = option("", "sae-lens or sparsify folder, Gemma Scope params.npz, or Llama Scope folder")
    format: str = option("auto", "format on disk; auto detects it", choices=("auto", "sae-lens", "gemma-scope", "llama-scope", "sparsify"))


def sae_config(text: str) -> SAEConfig:
    """The SAE that `RELEASE:ID` or a path names. A path that exists is a path, whatever colons it holds."""
    release, colon, sae_id = text.partition(":")
    if colon and release and sae_id and "/" not in release and "\\" not in sae_id and not Path(text).expanduser().exists():
        return SAEConfig(release=release, sae_id=sae_id)
    return SAEConfig(path=text)


@dataclass(frozen=True, kw_only=True)
class SelectionConfig(Config):
    """Which latents become directions, and the statistics that are shown of them."""

    k: int = option(128, "latents a side (the paper: 128)", minimum=1)
    selection: str = option(
        "frequency",
        "rank latents by how much more often they are active on one side (the paper), or by the paired difference of mean activation over prompts",
        choices=("frequency", "effect"),
    )
    min_active: int = option(10, "a latent active in fewer training responses is not live", minimum=1)
    resamples: int = option(200, "bootstrap resamples of the prompts for intervals and stability", minimum=10)
    seed: int = option(0, "seed of the bootstrap")


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Config):
    """The MLP head and its training (METHOD.md section 3, step 3)."""

    hidden: int = option(512, "hidden units", minimum=1)
    gamma: float = option(1.0, "margin of the margin loss", minimum=0)
    loss: str = option("margin", "training loss", choices=("margin", "bradley-terry", "bce"))
    lr: float = option(1e-3, "AdamW learning rate", minimum=0)
    weight_decay: float = option(1e-2, "AdamW weight decay", minimum=0)
    batch_size: int = option(64, "pairs a batch", minimum=1)
    epochs: int = option(100, "most epochs", minimum=1)
    patience: int = option(20, "stop after this many epochs without a better validation accuracy", minimum=1)
    seeds: int = option(5, "heads to train; the one with the best validation accuracy is shipped", minimum=1)


@dataclass(frozen=True, kw_only=True)
class FitConfig(Config):
    """Everything that `sparserm fit` needs."""

    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig()
    sae: SAEConfig = SAEConfig()
    selection: SelectionConfig = SelectionConfig()
    head: HeadConfig = HeadConfig()
    random_draws: int = option(5, "draws of each kind of random directions", minimum=1)
    curve: tuple[int, ...] = option((8, 16, 32, 64, 128, 256), "values of K on the accuracy-against-K curve")


@dataclass(frozen=True, kw_only=True)
class SweepConfig(Config):
    """Accuracy on validation pairs for each layer and K, from one extraction."""

    fit: FitConfig = FitConfig()
    layers: tuple[int, ...] = option((), "layers to compare; an SAE is needed for each")
    saes: tuple[str, ...] = option((), "the SAE of each layer: a path, or release:id")
    ks: tuple[int, ...] = option((8, 16, 32, 64, 128, 256), "values of K")


@dataclass(frozen=True, kw_only=True)
class SAETrainConfig(Config):
    """`sparserm sae train`: an SAE on streamed activations of a backbone, by sae-lens' trainer."""

    backbone: BackboneConfig = BackboneConfig()
    architecture: str = option("batchtopk", "activation rule", choices=("batchtopk", "topk"))
    width: int = option(4608, "latents (d_sae)", minimum=8)
    k: int = option(32, "active latents a token", minimum=1)
    tokens: int = option(1_200_000, "training tokens", minimum=1024)
    corpus: str = option("chitchat", "`chitchat` (PyPI), or files of dialogues or preference pairs, comma-separated")
    ratios: tuple[float, ...] = option(
        (0.4, 0.1, 0.5), "preference pairs in the corpus are split by these shares as in `fit`, and only the train split is read"
    )
    split_seed: int = option(0, "seed of that split")
    measure: str = option("", "files of preference pairs, comma-separated, on whose last-token states the SAE is also measured; never trained on")
    response_end_share: float = option(0.125, "share of each batch drawn from response-final positions", minimum=0)
    context: int = option(256, "longest dialogue in tokens", minimum=16)
    batch_size: int = option(1024, "tokens a training step", minimum=16)
    lr: float = option(2e-3, "Adam learning rate", minimum=0)
    init: str = option(
        "", "folder of an SAE to continue training (same layer, width and form; give a small --lr, and its latents stay); empty: a new SAE"
    )
    held_out: float = option(0.03, "share of the dialogues kept out of training, for the card", minimum=0)
    seed: int = option(0, "seed of weights, order and splits")
    checkpoint_every: int = option(200_000, "tokens between two states from which training can resume", result=False, minimum=1024)
    out: str = option("", "folder to save the SAE in; empty: the cache", result=False)


@dataclass(frozen=True, kw_only=True)
class SampleConfig(Config):
    """`sparserm sae sample`: a backbone's own answers, as text to train an SAE on."""

    backbone: BackboneConfig = BackboneConfig()
    prompts: str = option(
        "", "files of preference pairs, comma-separated: the prompts of their training split are answered; empty: the embedded pairs"
    )
    ratios: tuple[float, ...] = option((0.4, 0.1, 0.5), "shares of the split, which is made as in `fit`")
    split_seed: int = option(0, "seed of that split")
    per_prompt: int = option(1, "answers to each prompt", minimum=1)
    max_new_tokens: int = option(96, "a longer answer is cut after its last whole sentence, or left out if it has none", minimum=1)
    temperature: float = option(1.0, "sampling temperature", minimum=0.0001)
    top_p: float = option(0.95, "nucleus of the distribution that is drawn from", minimum=0.01)
    batch_size: int = option(48, "answers written at a time", minimum=1)
    seed: int = option(0, "seed of the draws")


@dataclass(frozen=True, kw_only=True)
class SpacesConfig(Config):
    """`sparserm spaces`: t-SNE pictures of the dense and the sparse space, and figures of both."""

    points: int = option(10_000, "at most this many responses, drawn by whole prompts", minimum=2)
    perplexity: float = option(30.0, "t-SNE's perplexity, lowered to a third of the number of points if that is less", minimum=1)
    neighbours: int = option(15, "nearest neighbours that vote", minimum=1)
    random_draws: int = option(5, "draws of each kind of random directions", minimum=1)
    seed: int = option(0, "seed of t-SNE and of the choice of points")


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(Config):
    """`sparserm doctor`: how much is measured. More takes longer and narrows the intervals."""

    swaps: int = option(10, "label swaps of the null test; METHOD.md's test takes 100", minimum=3)
    responses: int = option(64, "responses scored again alone, padded and shuffled", minimum=4)
    dialogues: int = option(100, "dialogues whose tokens the SAE is measured on", minimum=2)
    deleted: int = option(100, "held-out responses whose sentences are deleted one by one, where whole responses are read", minimum=2)
    refits: int = option(10, "refits on resampled prompts that words are compared over, where whole responses are read", minimum=2)
    seed: int = option(0, "seed of the choices and of the swaps")


@dataclass(frozen=True, kw_only=True)
class LatentsConfig(Config):
    """`sparserm latents`: which texts the pages of latents are made from, and how much a page shows."""

    corpus: str = option(
        "", "`pairs` (those of the fit), `chitchat` (PyPI), files of dialogues or pairs, comma-separated; empty: pairs, and chitchat if it can be had"
    )
    tokens: int = option(500_000, "tokens to read; tokens of the template and first tokens do not count", minimum=1)
    context: int = option(512, "longest document in tokens; longer dialogues are cut", minimum=16)
    window: int = option(32, "tokens shown of a text, two thirds of them before its maximum", minimum=3)
    top: int = option(16, "texts of highest activation", minimum=1)
    intervals: int = option(5, "equal parts of the activation range", minimum=1)
    per_interval: int = option(4, "texts from each part", minimum=0)
    snippets: int = option(500, "texts drawn at random, from which those without activity are chosen", minimum=0)
    inactive: int = option(50, "most of these texts on a page, all of them without activity of its latent", minimum=0)
    seed: int = option(0, "seed of all choices")


@dataclass(frozen=True, kw_only=True)
class EndpointConfig(Config):
    """`sparserm labels ask`: which language model writes labels. Its key is read only from SPARSERM_ENDPOINT_KEY."""

    endpoint: str = option("", "OpenAI-compatible endpoint, such as http://localhost:8000/v1, to which top activating texts are sent; empty: none")
    endpoint_model: str = option("", "name of the endpoint's model")
    max_tokens: int = option(2000, "most tokens of an answer, including its thinking", minimum=1)


@dataclass(frozen=True, kw_only=True)
class PairsRunConfig(Config):
    """`sparserm pairs` as a run."""

    data: DataConfig = DataConfig()


MODEL_HELP = "folder of a reward model that was fitted with this cache"


@dataclass(frozen=True, kw_only=True)
class DoctorRunConfig(Config):
    """`sparserm doctor MODEL` as a run."""

    model: str = option("", MODEL_HELP)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", result=False)
    doctor: DoctorConfig = DoctorConfig()


@dataclass(frozen=True, kw_only=True)
class SpacesRunConfig(Config):
    """`sparserm spaces MODEL` as a run."""

    model: str = option("", MODEL_HELP)
    spaces: SpacesConfig = SpacesConfig()


@dataclass(frozen=True, kw_only=True)
class LatentsRunConfig(Config):
    """`sparserm latents MODEL` as a run."""

    model: str = option("", MODEL_HELP)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", result=False)
    latent: tuple[int, ...] = option((), "further latents that get a page")
    which: str = option("selected", "pages of the latents that the model selects, or of all live ones", choices=("selected", "all"))
    pages: LatentsConfig = LatentsConfig()


TASKS = ("truthfulness", "safety")


@dataclass(frozen=True, kw_only=True)
class CandidatesConfig(Config):
    """How a policy makes the candidate pairs of a round (METHOD.md section 5)."""

    mode: str = option(
        "two_prompts",
        "two_prompts: an answer under a positive, one under a negative instruction; contrastive: one prompt asks for both; best_of_n: by reward",
        choices=("two_prompts", "contrastive", "best_of_n"),
    )
    task: str = option("truthfulness", "task whose instructions are used", choices=TASKS)
    positive: str = option("", "your positive instruction (two_prompts); empty: the task's")
    negative: str = option("", "your negative instruction (two_prompts); empty: the task's")
    contrastive: str = option("", "your instruction that asks for both answers (contrastive); empty: the task's")
    per_prompt: int = option(1, "pairs generated for each prompt", minimum=1)
    n: int = option(4, "best_of_n: samples of each prompt", minimum=2)
    min_margin: float = option(0.0, "best_of_n: smallest difference of the two rewards", minimum=0)
    length_ratio: float = option(2.0, "best_of_n: largest ratio of the two texts' lengths in characters", minimum=1)
    max_new_tokens: int = option(96, "a longer answer is cut after its last whole sentence, or counts as unparsed if it has none", minimum=1)
    temperature: float = option(1.0, "sampling temperature", minimum=0.0001)
    top_p: float = option(0.95, "nucleus of the distribution that is drawn from", minimum=0.01)
    batch_size: int = option(24, "answers written at a time", minimum=1)
    endpoint: str = option("", "OpenAI-compatible server, such as http://localhost:8000/v1, that generates instead of the local policy; empty: local")
    endpoint_model: str = option("", "name of the endpoint's model")
    endpoint_timeout: float = option(120.0, "seconds without an answer after which the request is sent again", result=False, minimum=1)
    concurrency: int = option(8, "requests to the endpoint at a time", result=False, minimum=1)
    seed: int = option(0, "seed of the draws")


@dataclass(frozen=True, kw_only=True)
class DPOConfig(Config):
    """How a round trains (METHOD.md section 5; beta, epochs and the choice of checkpoint are the paper's)."""

    beta: float = option(0.1, "strength of the pull to the reference", minimum=0)
    lr: float = option(5e-5, "AdamW learning rate", minimum=0)
    epochs: int = option(3, "epochs a round", minimum=1)
    batch_size: int = option(8, "pairs a step", minimum=1)
    lora_r: int = option(16, "rank of the adapter", minimum=1)
    lora_alpha: int = option(32, "scale of the adapter", minimum=1)
    lora_dropout: float = option(0.05, "dropout of the adapter", minimum=0)
    reference: str = option("base", "base: the base model [P]; previous: the policy the round began with", choices=("base", "previous"))
    evaluation_share: float = option(0.1, "share of the kept pairs, by prompt, on which the best epoch is chosen", minimum=0)
    max_length: int = option(512, "longest pair side in tokens; longer ones are refused, never cut", minimum=16)
    dtype: str = option("float32", "arithmetic of training; auto: bfloat16 where the device is fast at it", choices=("float32", "bfloat16", "auto"))
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass: less memory, more time", result=False)
    seed: int = option(0, "seed of order, dropout and adapter")


@dataclass(frozen=True, kw_only=True)
class PolicyEvaluationConfig(Config):
    """What is measured of the policy of every round."""

    mc: str = option("", "TruthfulQA's mc_task.json for MC1 and MC2; empty: not measured")
    mc_format: str = option(
        "qa", "prompt of MC: qa (Q: ... A: ..., without examples before) or chat (the model's own template)", choices=("qa", "chat")
    )
    mc_limit: int = option(0, "only the first N questions (0: all)", minimum=0)
    pairs: int = option(200, "held-out preference pairs for accuracy by log-probability, at most", minimum=2)
    prompts: int = option(32, "held-out prompts that are answered, for reward, length and KL", minimum=1)
    samples: int = option(8, "how many of these answers are kept to be read", minimum=1)
    max_new_tokens: int = option(96, "longest answer", minimum=1)
    dtype: str = option(
        "float32", "arithmetic of log-probabilities; bfloat16 is faster, but its rounding hides small changes", choices=("float32", "bfloat16")
    )
    tokens_per_batch: int = option(2048, "token budget of a batch", result=False, minimum=128)
    seed: int = option(0, "seed of draws and choices")


@dataclass(frozen=True, kw_only=True)
class AlignConfig(Config):
    """Everything that `sparserm align` needs. `arm` names the reward model that filters."""

    fit: FitConfig = FitConfig()
    model: str = option("", "folder of a reward model that was fitted with this cache; empty: the one of the fit's options, found or fitted")
    prompts: str = option(
        "",
        "file of prompts: preference pairs in any known format, or rows with `prompt`; empty: those the split left unused, else its training ones",
    )
    prompts_limit: int = option(0, "use only this many prompts in a round, drawn by seed (0: all)", minimum=0)
    arm: str = option(
        "sparserm",
        "the filter: sparserm; none; random (drops as many pairs as sparserm would); a control's name (dense, random-rows ...); or a folder",
    )
    min_margin: float = option(0.0, "a pair is kept if the reward of its intended winner is higher by more than this", minimum=0)
    rounds: int = option(5, "number of rounds", minimum=1)
    candidates: CandidatesConfig = CandidatesConfig()
    dpo: DPOConfig = DPOConfig()
    evaluation: PolicyEvaluationConfig = PolicyEvaluationConfig()
    seed: int = option(0, "seed of the choice of prompts and of random drops")


def from_dict(cls: type[Any], values: Mapping[str, Any]) -> Any:
    """A config of class `cls` from (nested) plain values. Raises ConfigError on an unknown field."""
    known = {spec.name: spec for spec in fields(cls)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(f"{cls.__name__} has no field {', '.join(unknown)}", expected=", ".join(known))
    return cls(**{name: _restore(known[name], value) for name, value in values.items()})


def _restore(spec: dataclasses.Field[Any], value: Any) -> Any:
    default = spec.default
    if is_dataclass(default) and isinstance(value, Mapping):
        return from_dict(type(default), value)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    return value
