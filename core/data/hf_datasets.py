"""Loads data sets with the library `datasets`: from the Hugging Face Hub, or from a folder that `save_to_disk` wrote.

Code that comes with a data set is never run.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from core.config import DataConfig
from core.data.hub import one_question
from core.errors import DataError
from core.text_safety import printable

# Words of an error's name or text in lower case, and the remedy for it. The first match counts.
REMEDIES = (
    (("gated",), "accept its terms on its page on the Hub, then run `hf auth login` or set HF_TOKEN"),
    (("401", "403", "unauthorized", "forbidden"), "run `hf auth login` or set HF_TOKEN; the account needs access to the data set"),
    (("scripts are no longer supported",), "code of data sets is not run: give hub_revision refs/convert/parquet, or a file of the data set"),
    (("offline", "couldn't reach", "connection", "timeout", "proxy", "resolve"), "go online (HF_HUB_OFFLINE unset), or give a downloaded file"),
    (("revision",), "check hub_revision against the commits of the data set"),
    (("builderconfig", "config name"), "give hub_config: the text above lists what there is"),
    (("notfound", "not found", "doesn't exist"), "check the id; if it is private run `hf auth login`; for a file of your own check the path"),
    (("split",), "give hub_split: the text above lists what there is"),
)


def describe(config: DataConfig) -> str:
    """The data set in one line: id, configuration, revision and split."""
    name = config.pairs + (f" ({config.hub_config})" if config.hub_config else "")
    return name + (f"@{config.hub_revision}" if config.hub_revision else "") + f" [{config.hub_split}]"


def load(config: DataConfig) -> Any:
    """The split as a `datasets.Dataset`, a sequence of dicts. Raises DataError with a remedy if it can't be loaded."""
    folder = os.path.expanduser(config.pairs)
    local = os.path.isdir(folder)
    name = folder if local else config.pairs
    try:
        from datasets import load_dataset

        with contextlib.nullcontext() if local else one_question():
            dataset = load_dataset(name, config.hub_config or None, split=config.hub_split, revision=config.hub_revision or None)
    except ImportError as error:
        raise DataError("the package `datasets` is missing", found=str(error), remedy="pip install datasets, or give a local file") from error
    except Exception as error:  # the network, the Hub and damaged data files raise errors of many classes
        raise DataError(f"the data set {describe(config)} can't be loaded", found=_found(error), remedy=_remedy(error)) from error
    if isinstance(dataset, dict):
        names = ", ".join(map(str, dataset))
        raise DataError(f"{describe(config)} has several splits", expected="one of them", found=names, remedy="give hub_split")
    return dataset


def load_saved(folder: Path, split: str) -> Any:
    """A data set that `datasets` saved, as a sequence of dicts. Raises DataError if it is damaged."""
    try:
        from datasets import load_from_disk

        return load_from_disk(str(folder / split if split else folder))
    except ImportError as error:
        raise DataError("the package `datasets` is missing", found=str(error), remedy="pip install datasets, or give a file") from error
    except Exception as error:  # datasets and pyarrow raise errors of many classes for a damaged folder
        raise DataError(
            f"{folder} is a data set saved by `save_to_disk`, but it can't be read",
            found=printable(f"{type(error).__name__}: {error}", 300),
            remedy="save it again, or save a file: dataset.to_json(FILE) or dataset.to_parquet(FILE)",
        ) from error


def _found(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}"


def _remedy(error: Exception) -> str:
    message = f"{type(error).__name__} {error}".lower()
    return next((remedy for words, remedy in REMEDIES if any(word in message for word in words)), "check id, configuration, split and revision")
