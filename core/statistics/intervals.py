"""The 95 % interval of a share.

The trials are prompts, never pairs, since pairs of one prompt depend on each other (METHOD.md section 3, statistics).
"""

from __future__ import annotations

import numpy as np

Z_95 = 1.959963984540054  # the normal distribution's 97.5 % quantile, written out: scipy.special takes 0.15 s to import


def wilson(right: float, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a share of `right` in `n` independent trials; (0, 1) where there are none."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = right / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * float(np.sqrt(share * (1 - share) / n + z2 / (4 * n * n)))
    # At 0 and at n the ends are 0 and 1 exactly; rounding would miss them by 1e-17.
    return (0.0 if right == 0 else centre - half), (1.0 if right == n else centre + half)
