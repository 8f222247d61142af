"""What a person must know of a reward model beside every figure of it: pairs that were left out, texts that were cut,
files that can't be checked.

No Streamlit here; `frame.left_out` draws it on every page of a model.
"""

from __future__ import annotations

from core.reward.pair_counts import sentences
from core.reward.recorded_files import has_record
from workbench.frame.models import FittedModel

NOT_COUNTED = "An older version made this reward model and did not count the pairs that it could not read. Fit it again to have the counts."
NO_RECORD = (
    "An older version made this reward model and recorded no hashes of its files, so a damaged file would not be noticed. Fit it again to have them."
)


def counted(model: FittedModel) -> list[str]:
    """Sentences on what was left out of the figures or cut, or that nothing was."""
    counts = model.evaluation.get("pair_counts")
    return sentences(counts) if counts else [NOT_COUNTED]


def headline(model: FittedModel) -> str:
    """One line for every page where pairs are missing from its figures or prompts were cut; empty where nothing is."""
    counts = model.about.get("pair_counts") or {}  # in the manifest, without the lists of rows
    n, total = counts.get("n_pairs_refused", 0), counts.get("n_pairs", 0)
    test = counts.get("splits", {}).get("test", {})
    parts = []
    if n:
        parts.append(f"{n:,} of {total:,} pairs could not be read ({test.get('n_refused', 0):,} of {test.get('n_pairs', 0):,} test pairs)")
    if shortened := counts.get("n_shortened", 0):
        parts.append(f"the prompts of {shortened:,} pairs were cut")
    if rows := counts.get("n_rows_refused", 0):
        parts.append(f"{rows:,} of {counts['n_rows']:,} rows of the data could not be used")
    return "Not in these figures: " + "; ".join(parts) if parts else ""


def lines(model: FittedModel) -> list[str]:
    """All of it in sentences, for whoever opens the headline."""
    return [*counted(model), *([] if has_record(model.config) else [NO_RECORD])]
