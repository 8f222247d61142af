"""Reads the dialogues of a corpus and cleans them: the texts that an SAE is trained on.

1. Read: the default corpus (`chitchat`, inside a PyPI wheel), JSONL files of dialogues, files of preference pairs in
   any known format.
2. Clean: successive messages of one speaker are merged, empty ones dropped; a dialogue with an e-mail address, a link
   or something like a telephone number is left out whole (a simple filter on purpose; names stay in). Of preference
   pairs only the training split is read, and a dialogue with one of their validation or test prompts is left out,
   whichever file it is in. `Corpus.unseen` holds those pairs' dialogues, to measure on.

core.sae.documents tokenises the dialogues.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from core.backbone.pypi_files import file_from_wheel
from core.config import DataConfig
from core.data.pairs import load_pairs
from core.data.splits import split_pairs
from core.errors import ConfigError, DataError
from core.types import Message, PreferencePair, PreferencePairs, Progress, no_progress, sha256_of

CHITCHAT = "chitchat-dataset==0.9.0"
CHITCHAT_SHA256 = "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e"
CHITCHAT_MEMBER = "chitchat_dataset/dataset.json"
CHITCHAT_BYTES = 8_105_664
ROLES = ("system", "user", "assistant")
PERSONAL = re.compile(
    r"[\w.+-]+@[\w-]+\.\w+"  # e-mail address
    r"|https?://|\bwww\.\w"  # link
    r"|\+?(?:\d[\s().-]{0,2}){8,}\d|\b\d{3}[-.]\d{4}\b"  # nine digits or more in a row, or 555-1234
)


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """A conversation that begins with a user (or system) message.

    Dialogues of one `group` share a prompt: they stay on one side of a split; intervals are over groups.
    """

    messages: tuple[Message, ...]
    group: str


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Cleaned dialogues in a fixed order, and counts for each source: read, kept, and left out by reason (JSON values).

    `unseen`: for each file of preference pairs, as it was named, the dialogues of its validation and test prompts; none
    of them is in `dialogues`.
    """

    dialogues: tuple[Dialogue, ...]
    report: Mapping[str, Mapping[str, int]]
    unseen: Mapping[str, tuple[Dialogue, ...]] = field(default_factory=dict)

    @property
    def content_hash(self) -> str:
        """sha256 over all dialogues in order."""
        return sha256_of([[d.group, *d.messages] for d in self.dialogues])


def load_corpus(
    corpus: str,
    *,
    root: Path,
    ratios: tuple[float, ...] = (1.0, 0.0, 0.0),
    split_seed: int = 0,
    exclude_prompts: Set[str] = frozenset(),
    progress: Progress = no_progress,
) -> Corpus:
    """Reads `corpus`: names and files, comma-separated (`chitchat,hh.jsonl.gz`); downloads are kept in `root/corpora`.

    Preference pairs are split as `fit` splits them (`ratios`, `split_seed`); what is not their training split is left
    out, and so are dialogues that hold a prompt of `exclude_prompts` (ids as `PreferencePair.prompt_id`), wherever in
    the dialogue it ends. Raises DataError on a file that can't be read or holds no dialogue, ConfigError on an empty
    list or impossible ratios.
    """
    names = comma_separated(corpus)
    if not names:
        raise ConfigError("no corpus is given", expected="`chitchat`, or files of dialogues or preference pairs, comma-separated")
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    read: dict[str, Iterable[Dialogue]] = {}
    unseen: dict[str, tuple[Dialogue, ...]] = {}
    excluded = set(exclude_prompts)
    for name in names:  # all files are split before any dialogue is cleaned: a prompt that one file excludes is left out of all
        if _is_pairs(name):
            pairs, n_refused = load_split_and_refused(DataConfig(pairs=name, ratios=ratios, seed=split_seed), progress)
            counts[name].update({"rows refused": n_refused} if n_refused else {})
            others = [pair for pair, split in zip(pairs, pairs.split, strict=True) if split != "train"]
            excluded |= {pair.prompt_id for pair in others}
            read[name], unseen[name] = pair_dialogues(pairs), tuple(pair_dialogues(others))
        else:
            read[name] = _read(name, root, counts[name], progress)
    kept: list[Dialogue] = []
    seen: set[str] = set()
    for name, count in counts.items():
        kept.extend(_clean(read[name], excluded, seen, count))
        if not count["kept"]:
            reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(count.items())) or "no row"
            raise DataError(f"the corpus {name} has no usable dialogue", found=reasons)
    labels = short_names(names)
    report = {labels[name]: dict(sorted(count.items())) for name, count in counts.items()}
    return Corpus(dialogues=tuple(kept), report=report, unseen={name: rows for name, rows in unseen.items() if rows})


def comma_separated(text: str) -> list[str]:
    """The names in a list such as `chitchat, hh.jsonl.gz`."""
    return [name.strip() for name in text.split(",") if name.strip()]


def short_names(names: Sequence[str]) -> dict[str, str]:
    """For each path its file's name, with as many folders before it as distinguish it from the others."""
    parts = {name: Path(name).parts for name in names}
    short: dict[str, str] = {}
    for name, path in parts.items():
        others = [other for other_name, other in parts.items() if other_name != name]
        length = next((n for n in range(1, len(path)) if all(path[-n:] != other[-n:] for other in others)), len(path))
        short[name] = "/".join(path[-length:])
    return short


def load_split(config: DataConfig, progress: Progress = no_progress) -> PreferencePairs:
    """The pairs of a file, split as a fit with the same options does. Raises as `load_pairs` and `split_pairs`."""
    return load_split_and_refused(config, progress)[0]


def load_split_and_refused(config: DataConfig, progress: Progress = no_progress) -> tuple[PreferencePairs, int]:
    """As `load_split`, and the number of rows of the file that could not be used."""
    pairs, report = load_pairs(config, progress)
    return split_pairs(pairs, config), len(report.refused)


def split_corpus(dialogues: Sequence[Dialogue], held_out: float, seed: int) -> tuple[list[Dialogue], list[Dialogue]]:
    """Training and held-out dialogues: a share `held_out` of the groups (two or more), drawn by seed and groups. Raises
    DataError where too few groups are there to hold any out."""
    groups = sorted({d.group for d in dialogues})
    n = max(2, round(held_out * len(groups)))
    if len(groups) < n + 2:
        expected = f"at least {n + 2} dialogues on different prompts"
        raise DataError("the corpus is too small to hold dialogues out", expected=expected, found=str(len(groups)))
    drawn = {groups[i] for i in np.random.default_rng([seed, 0]).permutation(len(groups))[:n]}
    return [d for d in dialogues if d.group not in drawn], [d for d in dialogues if d.group in drawn]


def pair_dialogues(pairs: Iterable[PreferencePair]) -> Iterator[Dialogue]:
    """Each pair's two dialogues, prompt and answer, chosen first."""
    for pair in pairs:
        for answer in (pair.chosen, pair.rejected):
            yield Dialogue(messages=(*pair.prompt, Message(role="assistant", content=answer)), group=_opening(pair.prompt))


def _read(name: str, root: Path, count: Counter[str], progress: Progress) -> Iterator[Dialogue]:
    if name == "chitchat":
        target = root / "corpora" / "chitchat-0.9.0.json"
        file_from_wheel(
            CHITCHAT,
            CHITCHAT_SHA256,
            CHITCHAT_MEMBER,
            target,
            size=CHITCHAT_BYTES,
            instead="train on files of your own: --corpus FILE",
            progress=progress,
        )
        return _chitchat(target)
    return _dialogue_rows(Path(name).expanduser(), count)


def _chitchat(path: Path) -> Iterator[Dialogue]:
    """The chitchat dialogues: the first speaker is the user; successive lines of a speaker are one message."""
    for key, conversation in json.loads(path.read_text(encoding="utf-8")).items():
        lines = [line for turn in conversation["messages"] for line in turn]
        roles = {lines[0]["sender"]: "user"} if lines else {}
        messages = tuple(Message(role=roles.get(line["sender"], "assistant"), content=line["text"]) for line in lines)
        yield Dialogue(messages=messages, group=f"chitchat/{key}")


def _lines(path: Path) -> Iterator[str]:
    opened: Callable[..., IO[str]] = gzip.open if path.name.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as handle:
            yield from handle
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read", found=str(error)) from error


def _row(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _is_pairs(name: str) -> bool:
    """Whether `name` is a file of preference pairs. Raises DataError if it is neither a file nor a named corpus."""
    path = Path(name).expanduser()
    if name != "chitchat" and not path.is_file():
        raise DataError(f"there is no corpus file {name}", expected="`chitchat`, or a file of dialogues or preference pairs")
    return name != "chitchat" and not _holds_dialogues(path)


def _holds_dialogues(path: Path) -> bool:
    """Whether a file is JSONL whose first rows have `messages`; others are left to the readers of pairs."""
    if not path.name.removesuffix(".gz").endswith(".jsonl"):
        return False
    first = [_row(line) for line, _ in zip(_lines(path), range(20), strict=False)]
    return any(isinstance(row, dict) and "messages" in row for row in first)


def _dialogue_rows(path: Path, count: Counter[str]) -> Iterator[Dialogue]:
    for line in _lines(path):
        if not line.strip():
            continue
        row = _row(line)
        messages = row.get("messages") if isinstance(row, dict) else None
        if not isinstance(messages, list) or not all(_is_message(m) for m in messages):
            count["malformed"] += 1
            continue
        plain = tuple(Message(role=m["role"], content=m["content"]) for m in messages)
        yield Dialogue(messages=plain, group=_opening(plain))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and value.get("role") in ROLES and isinstance(value.get("content"), str)


def _opening(messages: Sequence[Message]) -> str:
    """A hash of the messages before the first answer: dialogues with the same opening belong together."""
    first = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), len(messages))
    return sha256_of(list(messages[:first]))[:16]


def _merged(messages: Iterable[Message]) -> tuple[Message, ...]:
    merged: list[Message] = []
    for message in messages:
        text = message["content"].strip()
        if text and merged and merged[-1]["role"] == message["role"]:
            merged[-1] = Message(role=message["role"], content=f"{merged[-1]['content']}\n{text}")
        elif text:
            merged.append(Message(role=message["role"], content=text))
    return tuple(merged)


def _clean(dialogues: Iterable[Dialogue], exclude_prompts: Set[str], seen: set[str], count: Counter[str]) -> Iterator[Dialogue]:
    """Merges, filters and counts; prompts are compared as they were written, before merging."""
    for raw in dialogues:
        messages = _merged(raw.messages)
        name = sha256_of(list(messages))
        outcome = _refused(messages) or ("excluded" if exclude_prompts and _has_prompt((raw.messages, messages), exclude_prompts) else "")
        outcome = outcome or ("duplicate" if name in seen else "kept")
        seen.add(name)
        count["read"] += 1
        count[outcome] += 1
        if outcome == "kept":
            yield Dialogue(messages=messages, group=raw.group)


def _refused(messages: Sequence[Message]) -> str:
    """Why a dialogue is left out; empty where it is not."""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if len(turns) < 2 or turns[0]["role"] != "user" or any(m["role"] == "system" for m in turns):
        return "not a dialogue"
    return "personal data" if any(PERSONAL.search(m["content"]) for m in messages) else ""


def _has_prompt(forms: Iterable[Sequence[Message]], prompts: Set[str]) -> bool:
    ends = ((form, i) for form in forms for i, message in enumerate(form) if message["role"] == "assistant")
    return any(sha256_of(list(form[:i]))[:16] in prompts for form, i in ends)
