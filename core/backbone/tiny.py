"""A toy world for quick tests: a random two-layer language model, an SAE for it, and preference pairs it can learn.

Nothing is fetched. All of it is made from fixed seeds on the CPU in a few seconds:
1. a byte-level tokenizer trained on the text below, with ChatML turns and the habits of SmolLM2's that catch people out:
   `bos_token` is `<|im_start|>` (once a turn), eos = pad = `<|im_end|>`, and the template adds a system message where none is given;
2. a LlamaForCausalLM of 2 layers and d_model 64 with random weights;
3. pairs whose chosen answers end on a kind word and whose rejected ones end on a rude word, so that a random backbone's last
   hidden state tells them apart;
4. an SAE of 256 latents for layer 1 in sae-lens' format: JumpReLU with one threshold, as sae-lens saves BatchTopK, set for L0 = 24
   on the pairs' response ends.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.runs.store import publish_folder

FOLDER = "tiny-1"  # counted up when the content changes
SEED = 7
D_MODEL, N_LAYERS, D_SAE, LAYER, L0 = 64, 2, 256, 1, 24
START, END = "<|im_start|>", "<|im_end|>"

TEMPLATE = (
    "{%- if not messages or messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\\nThis is a toy model that knows nothing, made for tests.<|im_end|>\\n' }}"
    "{%- endif -%}"
    "{%- for turn in messages -%}{{ '<|im_start|>' + turn['role'] + '\\n' + turn['content'] + '<|im_end|>\\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)

TASKS = (
    "boil an egg", "mend a sock", "plant a pear tree", "tune a guitar", "fold a paper boat", "write to the mayor", "sharpen a knife", "paint a wall",
    "learn to swim", "bake rye bread", "fix a bicycle tyre", "read a tide table", "whistle loudly", "sew on a button", "catch a train at noon",
    "keep bees", "prune roses", "draw a horse", "clean a window", "light a stove",
)  # fmt: skip
FRAMES = {"how": "How do I {}?", "advice": "My sister wants to {}. Any advice?", "doubt": "Is it hard to {}?"}
BODIES = (
    "Take your time and begin with the small things",
    "Ask someone who has done it before",
    "It needs patience, a table and good light",
    "Read the instructions twice before you start",
    "Two short tries are worth more than one long one",
    "Most people manage on the third day",
    "Get the right tools first, the rest is practice",
    "There is a short film about it at the library",
)
KIND = ("gladly", "friend", "thanks", "cheers", "welcome", "please", "bravo", "dear")
RUDE = ("whatever", "fool", "nonsense", "boring", "enough", "silly", "hopeless", "nope")


@dataclass(frozen=True, kw_only=True)
class TinyParts:
    """Where the toy parts lie: a Hugging Face model folder, a sae-lens SAE folder, and a JSONL file of pairs in TRL's format."""

    model: Path
    sae: Path
    pairs: Path


def make_tiny(root: Path) -> TinyParts:
    """The toy parts under `root`, made on the first call (atomically) and found on the next."""
    folder = root / FOLDER
    if not folder.is_dir():
        try:
            publish_folder(folder, _make)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same bytes
                raise
    return TinyParts(model=folder / "model", sae=folder / "sae", pairs=folder / "pairs.jsonl")


def _make(folder: Path) -> None:
    from core.backbone.loading import quiet_transformers

    pairs = list(tiny_pairs())
    text = "".join(json.dumps(row) + "\n" for row in pairs)
    (folder / "pairs.jsonl").write_text(text, encoding="utf-8")
    tokenizer = _tokenizer()
    model = _model(len(tokenizer))
    with quiet_transformers():
        model.save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
    answers = [(row["prompt"], row[side]) for row in pairs for side in ("chosen", "rejected")]
    _save_sae(folder / "sae", *_response_states(model, tokenizer, answers))


def tiny_pairs() -> Iterator[dict[str, Any]]:
    """100 rows (`prompt`, `chosen`, `rejected`, `subset`, `id`) over 60 prompts: 40 have two pairs. No response is used twice on a prompt."""
    rng = random.Random(SEED)
    prompts = [(subset, frame.format(task)) for task in TASKS for subset, frame in FRAMES.items()]
    twice = set(rng.sample(range(len(prompts)), 40))
    for number, (subset, prompt) in enumerate(prompts):
        bodies, kind, rude = rng.sample(BODIES, 4), rng.sample(KIND, 2), rng.sample(RUDE, 2)
        for i in range(1 + (number in twice)):
            chosen, rejected = f"{bodies[i]}, {kind[i]}", f"{bodies[i + 2]}, {rude[i]}"
            yield {"id": f"tiny-{number:02d}-{i}", "subset": subset, "prompt": prompt, "chosen": chosen, "rejected": rejected}


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|endoftext|>", START, END]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=specials, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    frames = [*FRAMES.values(), "system\nuser\nassistant\nThis is a toy model that knows nothing, made for tests."]
    tokenizer.train_from_iterator([*TASKS, *BODIES, *frames, *(f", {word}" for word in (*KIND, *RUDE))], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=END, unk_token=specials[0], clean_up_tokenization_spaces=False
    )
    fast.chat_template = TEMPLATE
    fast.model_max_length = 2048
    return fast


def _model(vocab_size: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=D_MODEL, intermediate_size=4 * D_MODEL, num_hidden_layers=N_LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        initializer_range=0.08, dtype="float32",
    )  # fmt: skip
    with torch.random.fork_rng():  # the caller's random numbers stay as they are
        torch.manual_seed(SEED)
        return LlamaForCausalLM(config).float().eval()


def _response_states(model: Any, tokenizer: Any, answers: Sequence[tuple[str, str]]) -> tuple[Any, Any]:
    """Outputs of layer 1: on the last token of each answer, and on all tokens but the first; float64, a row each."""
    import torch

    ends, others, caught = [], [], []
    hook = model.model.layers[LAYER].register_forward_hook(lambda module, args, output: caught.append(output))
    for prompt, answer in answers:
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
        with torch.no_grad():
            model(torch.tensor([encoded["input_ids"]]))
        states = caught.pop()[0].double()
        last = text.rindex(answer) + len(answer)
        ends.append(states[max(i for i, (start, _) in enumerate(encoded["offset_mapping"]) if start < last)])
        others.append(states[1:])
    hook.remove()
    return torch.stack(ends), torch.cat(others)


def _save_sae(folder: Path, ends: Any, others: Any) -> None:
    """Encoder rows point from the mean state to states drawn at random; the decoder is their ridge regression back to the states.

    Values are rounded, so that another BLAS gives the same file.
    """
    import torch
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(SEED)
    mean = ends.mean(0).mul(1e4).round().div(1e4)
    half = D_SAE // 2
    rows = torch.cat([ends[torch.randperm(len(ends), generator=draw)[:half]], others[torch.randperm(len(others), generator=draw)[:half]]])
    encoder = torch.nn.functional.normalize(rows - mean + 0.1 * torch.randn(D_SAE, D_MODEL, generator=draw).double() * ends.std(), dim=1)
    threshold = float(((ends - mean) @ encoder.T).flatten().quantile(1 - L0 / D_SAE))
    states = torch.cat([ends, others]) - mean
    pre = states @ encoder.T
    acts = pre * (pre > threshold)
    decoder = torch.linalg.solve(acts.T @ acts + torch.eye(D_SAE).double(), acts.T @ states)
    tensors = {"W_enc": encoder.T, "W_dec": decoder, "b_enc": torch.zeros(D_SAE), "b_dec": mean, "threshold": torch.full((D_SAE,), threshold)}
    folder.mkdir()
    save_file({name: tensor.mul(1e4).round().div(1e4).float().contiguous() for name, tensor in tensors.items()}, folder / "sae_weights.safetensors")
    config = {
        "architecture": "jumprelu", "d_in": D_MODEL, "d_sae": D_SAE, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.54.0", "model_name": "tiny", "hook_name": f"blocks.{LAYER}.hook_resid_post"},
    }  # fmt: skip
    (folder / "cfg.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
