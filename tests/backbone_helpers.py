"""Small random models and tokenizers that behave like real ones, written by the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from core.backbone.model import Backbone, load_backbone
from core.backbone.tiny import make_tiny
from core.config import BackboneConfig
from core.runs.store import cache_root

GEMMA_LIKE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
)
DATED = (
    "{{ '<|im_start|>system\nToday is ' + date_string + ' or ' + strftime_now('%d %b %Y') + '<|im_end|>\n' }}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
)
REWRITING = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] | replace('e', 'E') + '<|im_end|>' }}{% endfor %}"
# Like Qwen3: thinking blocks are removed from earlier answers; the last answer's is formatted again, or an empty one is
# added.
QWEN_LIKE = (
    "{% for m in messages %}{% set text = m['content'] %}{% set thought = '' %}"
    "{% if '</think>' in text %}{% set thought = text.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set text = text.split('</think>')[-1].lstrip() %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    "{{ text + '<|im_end|>\n' }}{% endfor %}"
)
# Like SmolLM3 without thinking: an empty block comes before every answer, whose text is unchanged.
SMOLLM3_LIKE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
)
# Like R1's distillations: everything before the end of a thinking block is removed.
R1_LIKE = "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] }}{{ m['content'].split('</think>')[-1] + '<|im_end|>' }}{% endfor %}"
# Like Mistral-Nemo: the system text is part of the last user turn, turns must alternate, and an answer has only an end
# mark.
NEMO_LIKE = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set turns = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}"
    "{% if system and loop.index0 >= turns | length - 2 %}{{ '[INST]' + system + '\n\n' + m['content'] + '[/INST]' }}"
    "{% else %}{{ '[INST]' + m['content'] + '[/INST]' }}{% endif %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
)
# Like Llama-2: markers that are no tokens, the system text inside the first user turn, texts stripped.
LLAMA2_LIKE = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + (system if loop.first else '') + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' <|im_end|>' }}{% endif %}{% endfor %}"
)


def tiny_folder() -> Path:
    return make_tiny(cache_root() / "tiny").model


def tiny_backbone(**changes: Any) -> Backbone:
    options: dict[str, Any] = {"model": str(tiny_folder()), "layer": 1, "dtype": "float32", "device": "cpu"}
    depth = changes.pop("depth", 2)
    return load_backbone(BackboneConfig(**{**options, **changes}), depth=depth)


def tiny_tokenizer(template: str | None, *, real_bos: bool = False) -> Any:
    """The tiny tokenizer with another template; with `real_bos` it adds <|endoftext|> first, as Llama's and Gemma's
    do."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    tokenizer.chat_template = template
    if real_bos:
        tokenizer.bos_token = "<|endoftext|>"
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", pair="<|endoftext|> $A $B", special_tokens=[("<|endoftext|>", tokenizer.bos_token_id)]
        )
    return tokenizer


def save_model(folder: Path, kind: str) -> Path:
    """A random model of another family, three layers deep, with the tiny tokenizer."""
    import transformers as t

    tokenizer = t.AutoTokenizer.from_pretrained(tiny_folder())
    small = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "pad_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    rope = {"num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 8, "max_position_embeddings": 512}
    configs: dict[str, Any] = {
        "gpt2": lambda: t.GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=3, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2),
        "gemma2": lambda: t.Gemma2Config(**small, **rope, sliding_window=64, attn_logit_softcapping=50.0, query_pre_attn_scalar=8),
        "qwen2": lambda: t.Qwen2Config(**small, num_key_value_heads=2, intermediate_size=64, max_position_embeddings=512),
        "neox": lambda: t.GPTNeoXConfig(**small, intermediate_size=64, max_position_embeddings=512),
    }
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = t.AutoModelForCausalLM.from_config(configs[kind]())
        for parameter in model.parameters():  # the initial scales of the families hide mistakes
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
