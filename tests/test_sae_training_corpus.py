"""The corpus of an SAE: what is read, what is left out and counted, and which tokens are content."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from sae_training_helpers import dialogue, pairs_file, whole_backbone, write_rows

from core.config import DataConfig
from core.data.pairs import load_pairs
from core.errors import ConfigError, DataError
from core.sae.corpus import load_corpus, pair_dialogues, short_names, split_corpus
from core.sae.documents import documents


def chitchat(root: Path, conversations: dict[str, list[list[tuple[str, str]]]]) -> None:
    """The default corpus as the wheel holds it, already in the cache: turns of (sender, text)."""
    target = root / "corpora" / "chitchat-0.9.0.json"
    target.parent.mkdir(parents=True)
    rows = {
        key: {"messages": [[{"text": text, "sender": sender, "timestamp": "2018"} for sender, text in turn] for turn in turns]}
        for key, turns in conversations.items()
    }
    target.write_text(json.dumps(rows), encoding="utf-8")


def texts(dialogues: object) -> list[list[tuple[str, str]]]:
    return [[(m["role"], m["content"]) for m in d.messages] for d in dialogues]  # type: ignore[attr-defined]


def test_chitchat_becomes_dialogues_by_speaker_not_by_turn(tmp_path: Path) -> None:
    chitchat(
        tmp_path,
        {
            "a": [[("p", "Hello"), ("p", " there ")], [("q", "Hi!")], [("q", "How are you?"), ("q", "  ")], [("p", "Fine")]],
            "one-sided": [[("p", "anyone?")], [("p", "no")]],
            "empty": [],
            "mail": [[("p", "write to me.too@example.org")], [("q", "ok")]],
            "link": [[("p", "hm")], [("q", "see www.example.org")]],
            "phone": [[("p", "hm")], [("q", "call (808) 782-1557")]],
            "year": [[("p", "From 2013-2015 I had 12 jobs")], [("q", "wow")]],
            "again": [[("p", "Hello"), ("p", "there")], [("q", "Hi!"), ("q", "How are you?")], [("p", "Fine")]],
        },
    )
    corpus = load_corpus("chitchat", root=tmp_path)
    assert texts(corpus.dialogues) == [
        [("user", "Hello\nthere"), ("assistant", "Hi!\nHow are you?"), ("user", "Fine")],
        [("user", "From 2013-2015 I had 12 jobs"), ("assistant", "wow")],
    ]
    assert corpus.report == {"chitchat": {"read": 8, "kept": 2, "not a dialogue": 2, "personal data": 3, "duplicate": 1}}
    assert len({d.group for d in corpus.dialogues}) == 2


def test_files_of_dialogues_and_of_pairs_mix(tmp_path: Path) -> None:
    chitchat(tmp_path, {"a": [[("p", "Hello")], [("q", "Hi")]]})
    good = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}
    bad = [{"messages": "no"}, {"messages": [{"role": "robot", "content": "x"}]}, ["x"], {"messages": [{"role": "assistant", "content": "first"}]}]
    packed = tmp_path / "mine.jsonl.gz"
    packed.write_bytes(gzip.compress("\n".join(map(json.dumps, [good, *bad])).encode()))
    pair = {"prompt": "What is red?", "chosen": "A colour.", "rejected": "A fish."}
    pairs = write_rows(tmp_path / "pairs.jsonl", [pair])
    corpus = load_corpus(f"chitchat, {packed},{pairs}", root=tmp_path)
    assert texts(corpus.dialogues)[1:] == [
        [("system", "Be brief."), ("user", "1+1?"), ("assistant", "2")],
        [("user", "What is red?"), ("assistant", "A colour.")],
        [("user", "What is red?"), ("assistant", "A fish.")],
    ]
    assert corpus.report["mine.jsonl.gz"] == {"read": 2, "kept": 1, "malformed": 3, "not a dialogue": 1}
    assert corpus.report["pairs.jsonl"] == {"read": 2, "kept": 2}
    assert corpus.dialogues[2].group == corpus.dialogues[3].group


def test_excluded_prompts_are_left_out_wherever_they_stand(tmp_path: Path) -> None:
    pairs, _ = load_pairs(DataConfig(pairs=pairs_file()))
    hidden = {pairs[0].prompt_id, pairs[5].prompt_id}
    kept = load_corpus(pairs_file(), root=tmp_path, exclude_prompts=hidden)
    everything = load_corpus(pairs_file(), root=tmp_path)
    expected = texts(pair_dialogues(p for p in pairs if p.prompt_id not in hidden))
    assert texts(kept.dialogues) == expected and len(expected) < len(everything.dialogues)
    assert kept.content_hash != everything.content_hash

    longer = [
        *pairs[0].prompt,
        {"role": "assistant", "content": "Well."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "No."},
    ]
    rows = write_rows(tmp_path / "longer.jsonl", [{"messages": longer}, {"messages": [{"role": "user", "content": "x"}, *longer[1:]]}])
    assert load_corpus(str(rows), root=tmp_path, exclude_prompts=hidden).report["longer.jsonl"] == {"read": 2, "kept": 1, "excluded": 1}


@pytest.mark.parametrize(
    ("corpus", "error", "says"),
    [
        (" , ", ConfigError, "no corpus is given"),
        ("nowhere.jsonl", DataError, "there is no corpus file nowhere.jsonl"),
        ("EMPTY", DataError, "has no usable dialogue"),
        ("CUT", DataError, "can't be read"),
    ],
)
def test_a_corpus_that_is_none_is_refused(tmp_path: Path, corpus: str, error: type[Exception], says: str) -> None:
    empty = write_rows(tmp_path / "empty.jsonl", [{"messages": []}])
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(b'{"messages": []}\n' * 500)[:-12])
    with pytest.raises(error, match=says):
        load_corpus({"EMPTY": str(empty), "CUT": str(cut)}.get(corpus, corpus), root=tmp_path)


def test_split_keeps_groups_together_and_depends_on_the_seed() -> None:
    dialogues = [dialogue(f"q{i}", f"a{i}{j}", group=f"g{i}") for i in range(40) for j in range(2)]
    train, held = split_corpus(dialogues, 0.1, seed=3)
    assert len({d.group for d in held}) == 4 and not {d.group for d in held} & {d.group for d in train} and len(train) + len(held) == 80
    assert split_corpus(dialogues[::-1], 0.1, seed=3)[1] == [d for d in dialogues[::-1] if d in held]
    assert {d.group for d in split_corpus(dialogues, 0.1, seed=4)[1]} != {d.group for d in held}
    with pytest.raises(DataError, match="too small to hold dialogues out"):
        split_corpus(dialogues[:6], 0.5, seed=0)


LONG = dialogue(*(f"turn {i} " + "word and more " * (1 + i % 3) + f"end{i}" for i in range(21)), group="long")


@pytest.mark.parametrize("context", [110, 200, 400])
def test_long_dialogues_are_cut_between_exchanges(context: int) -> None:
    backbone = whole_backbone()
    (parts,) = documents([LONG], backbone, context)
    assert all(len(p.ids) <= context and p.group == "long" for p in parts)
    content = [backbone.tokenizer.decode(p.ids[p.content]) for p in parts]
    at = 0
    for text in content:  # each part begins with a user's message, and together they are the whole text
        starts = next(i for i in range(at, 21) if text.startswith(LONG.messages[i]["content"][:8]))
        assert starts == at and LONG.messages[starts]["role"] == "user"
        at += sum(f"end{i}" in text for i in range(at, 21))
    assert at == 21 and "".join(content) == "".join(m["content"] for m in LONG.messages)
    finals = [backbone.tokenizer.decode(p.ids[max(e - 3, 0) : e + 1]) for p in parts for e in p.ends]
    assert len(finals) == 10 and all(final.endswith(f"d{2 * i + 1}") for i, final in enumerate(finals))


def test_an_exchange_longer_than_the_context_is_cut_short() -> None:
    (parts,) = documents([dialogue("short", "yes", "go on", "word " * 200)], whole_backbone(), 64)
    assert [len(p.ids) for p in parts][-1] == 64 and parts[-1].ends == () and len(parts[0].ends) == 1


def test_template_and_first_position_are_no_content() -> None:
    backbone = whole_backbone()
    ((document,),) = documents([dialogue("How are bees kept?", "In hives, gladly")], backbone, 256)
    text = backbone.tokenizer.decode(document.ids)
    assert text.count("<|im_start|>") == 3 and "toy model" in text  # the template's own system message is there
    assert backbone.tokenizer.decode(document.ids[document.content]) == "How are bees kept?In hives, gladly"
    assert not document.content[0] and document.ends == (int(np.flatnonzero(document.content)[-1]),)


def test_files_of_one_name_are_told_apart_by_their_folders() -> None:
    assert short_names(["chitchat", "a/x.jsonl", "b/y.jsonl"]) == {"chitchat": "chitchat", "a/x.jsonl": "x.jsonl", "b/y.jsonl": "y.jsonl"}
    assert short_names(["../s/a/x.jsonl", "s/b/x.jsonl"]) == {"../s/a/x.jsonl": "a/x.jsonl", "s/b/x.jsonl": "b/x.jsonl"}
    assert short_names(["x.jsonl", "a/x.jsonl"]) == {"x.jsonl": "x.jsonl", "a/x.jsonl": "a/x.jsonl"}


def test_unusable_rows_and_cut_tokens_are_counted(tmp_path: Path) -> None:
    """One of three rows has no rejected answer; an exchange longer than the context keeps only the context's tokens."""
    rows = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(2)] + [{"prompt": "q2", "chosen": "good"}]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = load_corpus(str(file), root=tmp_path)
    assert corpus.report["pairs.jsonl"] == {"rows refused": 1, "read": 4, "kept": 4}
    backbone = whole_backbone()
    long = dialogue("Hi", "word " * 100)
    ((document,),) = documents([long], backbone, 32)
    assert document.n_cut == len(backbone.render(long.messages).ids) - 32 > 0
    assert documents([corpus.dialogues[0]], backbone, 512)[0][0].n_cut == 0
