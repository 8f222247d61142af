"""What every page of a reward model must report: pairs left out of its figures, texts that were cut, files without
hashes.

No Streamlit here; `layout.show_left_out` draws it.
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
    """Sentences on the pairs left out of the figures and the prompts that were cut, or that there are none."""
    counts = model.evaluation.get("pair_counts")
    return sentences(counts) if counts else [NOT_COUNTED]


def headline(model: FittedModel) -> str:
    """One line for every page: the pairs missing from its figures and the prompts that were cut; empty without any."""
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
    """The details behind the headline, in sentences."""
    return [*counted(model), *([] if has_record(model.config) else [NO_RECORD])]
