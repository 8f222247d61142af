"""The toy world's tokenizer, language model and SAE, made from fixed seeds.

1. A byte-level tokenizer trained on the toy texts, with ChatML turns and those habits of SmolLM2's that cause mistakes:
   `bos_token` is `<|im_start|>` (once a turn), eos = pad = `<|im_end|>`, and the template adds a system message where
   none is given.
2. A LlamaForCausalLM of 2 layers and d_model 64 with random weights.
3. An SAE of 256 latents for layer 1 in sae-lens' format: JumpReLU with one threshold, as sae-lens saves BatchTopK, set
   for L0 = 24 on the pairs' response ends.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from core.backbone.transformers_calls import quiet_transformers

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


def make_model(folder: Path, texts: Sequence[str]) -> tuple[Any, Any]:
    """Model and tokenizer, which is trained on `texts`. Both are also saved in `folder`."""
    tokenizer = _tokenizer(texts)
    model = _model(len(tokenizer))
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return model, tokenizer


def _tokenizer(texts: Sequence[str]) -> Any:
    specials = ["<|endoftext|>", START, END]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=specials, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=END, unk_token=specials[0], clean_up_tokenization_spaces=False
    )
    fast.chat_template = TEMPLATE
    fast.model_max_length = 2048
    return fast


def _model(vocab_size: int) -> Any:
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=D_MODEL, intermediate_size=4 * D_MODEL, num_hidden_layers=N_LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        initializer_range=0.08, dtype="float32",
    )  # fmt: skip
    with torch.random.fork_rng():  # the caller's random numbers stay as they are
        torch.manual_seed(SEED)
        return LlamaForCausalLM(config).float().eval()


def _response_states(model: Any, tokenizer: Any, answers: Sequence[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Outputs of layer 1, float64: at each answer's last token [n, d_model], and at all but the first [m, d_model]."""
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


def save_sae(folder: Path, model: Any, tokenizer: Any, answers: Sequence[tuple[str, str]]) -> None:
    """Makes the SAE from the model's states on these prompts and answers, and saves it in `folder` in sae-lens' format.

    Encoder rows point from the mean state to states drawn at random; the decoder is their ridge regression back to the
    states. Values are rounded, so that another BLAS gives the same file.
    """
    ends, others = _response_states(model, tokenizer, answers)
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
