"""Named configurations for `sparserm align --preset NAME`: those of `fit` with a policy, and `demo`.

5 rounds, 3 epochs, beta 0.1 and LoRA are the paper's (METHOD.md section 5); everything else is this project's choice.
   `tiny` runs two rounds of a random toy model in seconds, `demo` two rounds of the embedded model in minutes on two
   cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core.backbone.presets import PRESETS
from core.config import AlignConfig, CandidatesConfig, DPOConfig, PolicyEvaluationConfig

DEMO, TINY = "demo", "tiny"
# For models of billions of weights, which fit on a GPU for training only in bfloat16.
LARGE: Mapping[str, Any] = {
    "prompts_limit": 2000,
    "dpo": DPOConfig(dtype="bfloat16", gradient_checkpointing=True),
    "evaluation": PolicyEvaluationConfig(dtype="bfloat16"),
}

ALIGN_PRESETS: Mapping[str, AlignConfig] = {
    "smollm2-135m": AlignConfig(fit=PRESETS["smollm2-135m"]),
    **{name: AlignConfig(fit=PRESETS[name], **LARGE) for name in ("gemma-2-2b", "gemma-2-9b", "llama-3.1-8b")},
    DEMO: AlignConfig(
        fit=PRESETS["smollm2-135m"],
        prompts_limit=48,
        rounds=2,
        # So small a model writes almost nonsense at temperature 1, and at the default rate its nine steps a round
        # change nothing.
        candidates=CandidatesConfig(max_new_tokens=48, temperature=0.7),
        dpo=DPOConfig(lr=5e-4, dtype="auto"),
        evaluation=PolicyEvaluationConfig(pairs=40, prompts=16, max_new_tokens=48),
    ),
    TINY: AlignConfig(
        fit=PRESETS[TINY],
        rounds=2,
        # A random model rarely ends a sentence, so it gets many tokens.
        candidates=CandidatesConfig(per_prompt=2, max_new_tokens=200, batch_size=48),
        dpo=DPOConfig(lr=1e-3),
        evaluation=PolicyEvaluationConfig(pairs=40, prompts=24, max_new_tokens=200),
    ),
}
