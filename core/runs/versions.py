"""The version of every step whose result the store keeps.

Raise a step's number by hand when it computes something else from the same inputs: earlier results are then computed
again instead of being found. Golden figures (tests/test_golden.py) fail where a number should have been raised.
"""

from __future__ import annotations

VERSIONS = {
    # core/fit/steps.py, in the order of a fit
    "pairs": 3,
    "extraction": 2,
    "frequencies": 1,
    "heads": 1,
    "controls": 1,
    "curve": 1,
    "evaluation": 3,
    "known": 1,
    "reward_model": 2,
    # of a file of pairs alone, core/fit/pairs_check.py
    "pairs_check": 2,
    # of a reward model's folder: core/doctor/doctor.py, core/explain/model_spaces.py, core/latents/make_pages.py
    "doctor": 5,
    "spaces": 1,
    "latents": 2,
    # core/align/steps.py and core/align/loop.py
    "align-candidates": 2,
    "align-rewards": 1,
    "align-filter": 1,
    "align-dpo": 3,
    "align-evaluation": 2,
    "align-shift": 2,
    "align-round": 2,
    "alignment": 2,
    # core/sae/training.py
    "sae-train": 4,
}
