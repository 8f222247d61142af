"""Pages of latents: every field against brute force, what must not count, windows, resuming, and what finds them again."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from backbone_helpers import save_model, tiny_backbone, tiny_folder
from cli_helpers import kill_inside
from explain_helpers import tiny_explainer

from core.backbone.model import load_backbone
from core.backbone.token_text import pieces, token_bytes
from core.backbone.unembedding import load_unembedding
from core.cli import explanation_view, latent_view
from core.cli.main import main
from core.config import BackboneConfig, LatentsConfig, SAEConfig
from core.errors import BackboneError, Cancelled, ConfigError, DataError, MissingError, StoreError
from core.latents import columns as latent_columns
from core.latents.columns import tokenise
from core.latents.find_pages import find_pages, selected_latents
from core.latents.make_pages import make_pages
from core.latents.page_maker import BARS
from core.latents.pages import LatentPages, build, load_pages
from core.reward.folder import ModelFolder
from core.reward.recorded_files import record_files
from core.runs.store import Store
from core.sae.autoencoder import load_sae
from core.sae.corpus import Dialogue

ROOT = Path(__file__).resolve().parents[1]
CONFIG = LatentsConfig(tokens=100_000, context=96, window=12, top=4, intervals=3, per_interval=2, snippets=30, inactive=6, seed=3)
LATENTS = list(range(0, 256, 5))
NAMES = ("tiny", "1-tiny-sae")


def dialogues() -> dict[str, list[Dialogue]]:
    """Pairs that repeat their prompts, and a second source with two turns, emoji, other scripts and a line separator."""
    rows = [json.loads(line) for line in (tiny_folder().parent / "pairs.jsonl").read_text().splitlines()]
    pairs = [_dialogue(row["prompt"], row[side]) for row in rows[:30] for side in ("chosen", "rejected")]
    odd = ["Grüße, 🙂🙃 und 日本", "one\u2028two\nthree", "[red]bold[/red] \x1b[31m", "a"]
    return {
        "pairs": pairs,
        "somewhere/more.jsonl": [_dialogue("How do I boil an egg?", text, f"And {n}?", "Ask someone, friend") for n, text in enumerate(odd)],
    }


def tiny_sae() -> Any:
    return load_sae(SAEConfig(path=str(tiny_folder().parent / "sae")))


def _dialogue(*texts: str) -> Dialogue:
    roles = ("user", "assistant")
    return Dialogue(messages=tuple({"role": roles[i % 2], "content": text} for i, text in enumerate(texts)), group=texts[0])


@dataclass(frozen=True)
class World:
    backbone: Any
    sae: Any
    unembedding: Any
    corpus: Any
    pages: LatentPages
    active: np.ndarray  # [tokens of the corpus, d_sae]: f where a token counts, else 0
    counted: np.ndarray


def make(world: Any, folder: Path, scratch: Path, **changes: Any) -> LatentPages:
    for path in (folder, scratch):
        path.mkdir(parents=True, exist_ok=True)
    options = {"layer": 1, "latents": LATENTS, "names": NAMES, "folder": folder, "scratch": scratch, **changes}
    build(options.pop("corpus", world.corpus), options.pop("backbone", world.backbone), world.sae, world.unembedding, CONFIG, **options)
    return load_pages(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("latents")
    backbone, sae = tiny_backbone(), tiny_sae()
    unembedding = load_unembedding(backbone.config)
    corpus = tokenise(dialogues(), backbone, CONFIG)
    active, counted = by_hand(corpus, backbone, sae)
    parts = SimpleNamespace(backbone=backbone, sae=sae, unembedding=unembedding, corpus=corpus)
    pages = make(parts, root / "out", root / "scratch")
    return World(backbone, sae, unembedding, corpus, pages, active, counted)


def by_hand(corpus: Any, backbone: Any, sae: Any) -> tuple[np.ndarray, np.ndarray]:
    """Each document alone through the model, the SAE's formula, and message texts found in the decoded text by searching for them."""
    texts = [message["content"] for several in dialogues().values() for dialogue in several for message in dialogue.messages]
    tensors, rows, counted = sae.tensors, [], []
    for begin, end in zip(corpus.starts[:-1], corpus.starts[1:], strict=True):
        ids = torch.from_numpy(corpus.ids[begin:end].astype(np.int64))
        pre = (z_of(backbone, ids) - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
        mark = np.zeros(len(ids), dtype=bool)
        specials = {backbone.tokenizer.convert_tokens_to_ids(name) for name in ("<|im_start|>", "<|im_end|>")}
        turns = np.flatnonzero(ids.numpy() == backbone.tokenizer.convert_tokens_to_ids("<|im_start|>"))
        for turn in turns[1:]:  # the first one is the template's own system message
            stop = next(i for i in range(turn + 1, len(ids)) if int(ids[i]) in specials)
            body = backbone.tokenizer.decode(ids[turn + 1 : stop])
            role, _, text = body.partition("\n")
            assert role in ("user", "assistant") and text in texts
            start = next(i for i in range(turn + 1, stop) if backbone.tokenizer.decode(ids[turn + 1 : i + 1]) == role + "\n") + 1
            mark[start:stop] = True
        rows.append((pre * (pre > tensors["threshold"])).relu().numpy() * mark[:, None])
        counted.append(mark)
    return np.concatenate(rows), np.concatenate(counted)


def z_of(backbone: Any, ids: torch.Tensor) -> torch.Tensor:
    caught: list[torch.Tensor] = []
    handle = backbone.layers[1].register_forward_hook(lambda _m, _a, output: caught.append(output[0] if isinstance(output, tuple) else output))
    with torch.no_grad():
        backbone.model(ids[None], use_cache=False)
    handle.remove()
    return caught[0].reshape(len(ids), -1)


# --- every field ---------------------------------------------------------------------------------------------------


def test_only_message_texts_count(world: World) -> None:
    np.testing.assert_array_equal(world.corpus.counted, world.counted)
    assert not world.corpus.counted[world.corpus.starts[:-1]].any()
    assert 0 < world.counted.sum() < len(world.counted)
    sources = {source["name"]: source["tokens"] for source in world.pages.corpus["sources"]}
    assert set(sources) == {"pairs", "more.jsonl"} and sum(sources.values()) == world.pages.corpus["tokens"] == world.counted.sum()


def test_counts_and_densities(world: World) -> None:
    assert list(world.pages) == LATENTS and len(world.pages) == len(LATENTS)
    for latent, page in world.pages.items():
        values = world.active[:, latent][world.active[:, latent] > 0]
        assert (page["modelId"], page["layer"], page["index"]) == (*NAMES, str(latent))
        assert page["frac_nonzero"] == len(values) / world.counted.sum()
        heights, centres = page["freq_hist_data_bar_heights"], page["freq_hist_data_bar_values"]
        if not len(values):
            assert page["maxActApprox"] == 0 and heights == centres == page["activations"] == []
            continue
        assert page["maxActApprox"] == pytest.approx(values.max(), rel=1e-3)
        width = values.max() / BARS
        expected = [0] * BARS
        for value in values:
            expected[min(int(value / width), BARS - 1)] += 1
        assert np.abs(np.array(heights) - expected).sum() <= 2  # a value on an edge may fall to either side
        np.testing.assert_allclose(centres, (np.arange(BARS) + 0.5) * width, rtol=1e-3)


def test_logits_are_those_of_the_models_own_norm_and_head(world: World) -> None:
    whole = load_backbone(world.backbone.config).model
    vocabulary = [world.backbone.tokenizer.decode([i]) for i in range(len(world.backbone.tokenizer))]
    for latent in LATENTS[:20]:
        d = torch.from_numpy(world.sae.directions([latent]))
        with torch.no_grad():
            effect = (whole.lm_head(whole.model.norm(d * 1e3)) * d.square().mean().sqrt())[0].numpy()
        page, order = world.pages[latent], np.argsort(effect)
        np.testing.assert_allclose(page["pos_values"], effect[order[::-1][:10]], rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(page["neg_values"], effect[order[:10]], rtol=2e-3, atol=1e-4)
        assert page["pos_str"][0] == vocabulary[order[-1]] and page["neg_str"][0] == vocabulary[order[0]]
        heights, edges = np.histogram(effect, bins=BARS)
        assert np.abs(np.array(page["logits_hist_data_bar_heights"]) - heights).sum() <= 4
        np.testing.assert_allclose(page["logits_hist_data_bar_values"], (edges[1:] + edges[:-1]) / 2, rtol=2e-3, atol=1e-3)


def test_the_closest_latents_are_those_of_highest_cosine(world: World) -> None:
    rows = world.sae.tensors["W_dec"].double()
    for latent in LATENTS:
        cosine = torch.nn.functional.cosine_similarity(rows[latent][None], rows, dim=1)
        cosine[latent] = -2
        expected = cosine.topk(10)
        assert world.pages[latent]["topkCosSimIndices"] == expected.indices.tolist()
        np.testing.assert_allclose(world.pages[latent]["topkCosSimValues"], expected.values, rtol=1e-3)


def test_windows_show_what_the_latent_does(world: World) -> None:
    ids, starts = world.corpus.ids, world.corpus.starts
    shown = 0
    for latent, page in world.pages.items():
        documents, texts = set(), set()
        for text in page["activations"]:
            number = int(text["dataIndex"])
            begin, peak = int(starts[number]), text["maxValueTokenIndex"]
            document = ids[begin : starts[number + 1]]
            decoded = "".join(text["tokens"])
            places = [at for at in range(len(document)) if world.backbone.tokenizer.decode(document[at : at + len(text["tokens"])]) == decoded]
            at = next(
                p
                for p in places
                if np.allclose(world.active[begin + p : begin + p + len(text["tokens"]), latent], text["values"], rtol=1e-3, atol=1e-4)
            )
            assert text["values"][peak] == text["maxValue"] == max(text["values"]) > 0 and text["minValue"] == min(text["values"])
            assert text["template"] == np.flatnonzero(~world.counted[begin + at : begin + at + len(text["tokens"])]).tolist()
            assert peak not in text["template"]
            inside = np.flatnonzero(world.counted[begin : starts[number + 1]])
            assert len(text["tokens"]) == min(CONFIG.window, inside[-1] - inside[0] + 1)
            assert text["dataSource"] == ("pairs" if world.corpus.source[number] == 0 else "more.jsonl")
            documents.add(number)
            texts.add((decoded, peak))
            shown += 1
        assert len(documents) == len(texts) == len(page["activations"])
    assert shown > 200


def test_the_highest_texts_come_first_and_none_is_passed_over(world: World) -> None:
    """Against a greedy loop: documents by falling maximum, without those whose window, or whose window up to the maximum, was shown already."""
    ids, full = world.corpus.ids, 0
    for latent, page in world.pages.items():
        peaks = []
        for begin, end in zip(world.corpus.starts[:-1], world.corpus.starts[1:], strict=True):
            column, own = world.active[begin:end, latent], np.flatnonzero(world.counted[begin:end])
            at = int(column.argmax())
            start = max(own[0], min(at - 8, own[-1] + 1 - CONFIG.window))
            stop = min(own[-1] + 1, start + CONFIG.window)
            peaks.append((float(column[at]), tuple(ids[begin + start : begin + stop]), tuple(ids[begin + start : begin + at + 1])))
        expected, seen = [], set()
        for value, window, upto in sorted(peaks, key=lambda peak: -round(peak[0], 4)):
            if value > 0 and window not in seen and ("upto", *upto) not in seen and len(expected) < CONFIG.top:
                seen |= {window, ("upto", *upto)}
                expected.append((value, world.backbone.tokenizer.decode(upto)))
        top = [text for text in page["activations"] if text["binMin"] == -1]
        np.testing.assert_allclose([text["maxValue"] for text in top], [value for value, _ in expected], rtol=1e-3)
        shown = ["".join(text["tokens"][: text["maxValueTokenIndex"] + 1]) for text in top]
        assert sorted(shown) == sorted(text.rstrip("\ufffd") for _, text in expected)  # the last byte carries a character
        assert all(text["binMax"] == page["maxActApprox"] and text["binContains"] == -1 for text in top)
        full += len(top) == CONFIG.top
    assert full > 20


def test_intervals_are_equal_parts_of_the_range(world: World) -> None:
    found = 0
    for latent, page in world.pages.items():
        values = world.active[:, latent][world.active[:, latent] > 0]
        groups: dict[tuple[float, float], int] = {}
        for text in [text for text in page["activations"] if text["binMin"] >= 0]:
            low, high = text["binMin"], text["binMax"]
            part = values.max() / CONFIG.intervals
            assert low == pytest.approx(part * round(low / part), rel=1e-3, abs=1e-6) and high - low == pytest.approx(part, rel=5e-3)
            assert low <= text["maxValue"] <= high * 1.001
            share = ((values > part * round(low / part)) & (values <= part * round(high / part) * (1 + 1e-6))).mean()
            assert text["binContains"] == pytest.approx(share, rel=1e-3)
            groups[low, high] = groups.get((low, high), 0) + 1
            found += 1
        assert list(groups) == sorted(groups, reverse=True) and all(n <= CONFIG.per_interval for n in groups.values())
    assert found > 100


def test_snippets_are_random_texts_and_silent_means_silent(world: World) -> None:
    snippets = world.pages.snippets
    assert len(snippets) == CONFIG.snippets
    assert len({int(text["dataIndex"]) for text in snippets}) == CONFIG.snippets, "a document of its own each, as there are enough"
    spans = []
    for text in snippets:
        number, decoded = int(text["dataIndex"]), "".join(text["tokens"])
        begin, end = world.corpus.starts[number : number + 2]
        document = world.corpus.ids[begin:end]
        at = next(p for p in range(len(document)) if world.backbone.tokenizer.decode(document[p : p + len(text["tokens"])]) == decoded)
        spans.append((begin + at, begin + at + len(text["tokens"])))
    some = 0
    for latent, page in world.pages.items():
        silent = [n for n, (a, b) in enumerate(spans) if not (world.active[a:b, latent] > 0).any()]
        assert set(page["inactive"]) <= set(silent) and len(page["inactive"]) == min(CONFIG.inactive, len(silent))
        some += len(page["inactive"])
    assert some > 100


def test_a_latent_active_everywhere_counts_on_all_tokens(world: World, tmp_path: Path) -> None:
    """Template tokens, the first one and padding would show as a share above or below one."""
    loud = tiny_sae()
    loud.tensors["b_enc"] = loud.tensors["b_enc"].clone()
    loud.tensors["b_enc"][7] = 1e6
    page = make(replace(world, sae=loud), tmp_path / "out", tmp_path / "scratch", latents=[7])[7]
    assert page["frac_nonzero"] == 1.0 and page["inactive"] == []
    assert all((np.array(text["values"]) == 0).nonzero()[0].tolist() == text["template"] for text in page["activations"])


# --- the same again ------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_page_is_the_same_whichever_others_are_made(world: World, tmp_path: Path) -> None:
    every = make(world, tmp_path / "all", tmp_path / "s1", latents=[1, 2], every=True)
    live = np.flatnonzero((world.active > 0).any(0))
    assert set(every) == {*live.tolist(), 1, 2} and every.corpus["every"] and every.corpus["live"] == len(live)
    for latent in set(LATENTS) & set(every):
        ours, theirs = every[latent], world.pages[latent]
        assert [t["tokens"] for t in ours["activations"]] == [t["tokens"] for t in theirs["activations"]]
        assert ours["inactive"] == theirs["inactive"] and ours["frac_nonzero"] == theirs["frac_nonzero"]


def test_the_size_of_batches_changes_nothing_that_is_shown(world: World, tmp_path: Path) -> None:
    other = make(world, tmp_path / "out", tmp_path / "s", backbone=tiny_backbone(tokens_per_batch=128))
    for latent, page in world.pages.items():
        assert [t["tokens"] for t in page["activations"]] == [t["tokens"] for t in other[latent]["activations"]]
        assert page["frac_nonzero"] == other[latent]["frac_nonzero"]


@pytest.mark.parametrize("moment", [("activations", 1), ("activations", 7), ("pages", 2)])
def test_stopped_and_begun_again_gives_the_same_bytes(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: tuple[str, int]) -> None:
    monkeypatch.setattr(latent_columns, "SHARD_TOKENS", 500)
    monkeypatch.setattr("core.latents.pages.PAGES", 10)
    seen = {"activations": 0, "pages": 0}

    def stop(step: str, _done: float, _total: float, **_: Any) -> None:
        seen[step] = seen.get(step, 0) + 1
        if (step, seen[step]) == moment:
            raise Cancelled

    make(world, tmp_path / "undisturbed", tmp_path / "s1")
    with pytest.raises(Cancelled):
        make(world, tmp_path / "out", tmp_path / "s2", progress=stop)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "s2").iterdir() if path.suffix != ".part"}
    make(world, tmp_path / "out", tmp_path / "s2")
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in (tmp_path / "s2").iterdir()}.items(), "a whole shard was made again"
    assert moment[1] == 1 or len(kept) > 1


def test_what_another_corpus_left_is_not_used(world: World, tmp_path: Path) -> None:
    less = tokenise({"pairs": dialogues()["pairs"][:10]}, world.backbone, CONFIG)
    make(world, tmp_path / "first", tmp_path / "s", corpus=less)
    assert contents(make(world, tmp_path / "out", tmp_path / "s").folder) == contents(world.pages.folder)


# --- text ----------------------------------------------------------------------------------------------------------


def test_the_limit_of_tokens_and_the_order_of_sources(world: World) -> None:
    some = tokenise(dialogues(), world.backbone, replace(CONFIG, tokens=200))
    assert 200 <= some.n_counted < 300 and set(some.source.tolist()) == {0}
    assert tokenise(dialogues(), world.backbone, replace(CONFIG, tokens=200)).ids.tolist() == some.ids.tolist()
    assert tokenise(dialogues(), world.backbone, replace(CONFIG, tokens=200, seed=4)).ids.tolist() != some.ids.tolist()
    assert max(np.diff(tokenise(dialogues(), world.backbone, replace(CONFIG, context=48)).starts)) <= 48
    with pytest.raises(DataError, match="no token that counts"):
        tokenise({"pairs": []}, world.backbone, CONFIG)


def test_what_is_not_read_is_counted(world: World) -> None:
    """Dialogues beyond the tokens, one that can't be read, one whose answer is longer than the context, and what the reader left out."""
    plain = [_dialogue(f"Is it hard {i}?", f"Ask someone, friend {i}") for i in range(5)]
    marked, long = _dialogue("Is it?", "No <|im_start|> no"), _dialogue("How?", "word " * 200)
    given = {"pairs": [*plain, marked, long], "more.jsonl": plain}
    corpus = tokenise(given, world.backbone, replace(CONFIG, context=64), left_out={"more.jsonl": {"personal data": 3}})
    ids = world.backbone.render(long.messages).ids
    first, second = corpus.counts
    assert (first.n_dialogues, first.n_read, first.n_unreadable) == (7, 7, 1)
    assert (first.n_documents_cut, first.n_tokens_cut) == (1, len(ids) - 64) and not first.left_out
    assert (second.n_dialogues, second.n_read, second.left_out) == (5, 5, {"personal data": 3})
    few = tokenise(given, world.backbone, replace(CONFIG, tokens=1))
    assert [(one.n_dialogues, one.n_read - one.n_unreadable) for one in few.counts] == [(7, 1), (5, 0)], "one that can be read suffices"
    shown = [line for source in few.to_json()["sources"] for line in latent_view.not_read(source)]  # type: ignore[attr-defined]
    assert shown[0].startswith(f"of pairs: {7 - few.counts[0].n_read} of 7 dialogues were not needed for --tokens") and len(shown) == 2
    (line,) = latent_view.not_read(corpus.to_json()["sources"][1])  # type: ignore[index]
    assert line == "of more.jsonl: 3 left out before: personal data" and list(latent_view.not_read({"name": "old", "tokens": 3})) == []


def test_of_repeated_prompts_one_window_is_shown(world: World, tmp_path: Path) -> None:
    same = [
        _dialogue("How do I tune a guitar, my dear old friend of the house?", f"{answer}") for answer in ("Gladly", "No", "Ask Ann", "Why", "Two")
    ]
    corpus = tokenise({"pairs": same}, world.backbone, CONFIG)
    pages = make(world, tmp_path / "out", tmp_path / "s", corpus=corpus)
    last_of_prompt = 0
    for page in pages.values():
        upto = [tuple(text["tokens"][: text["maxValueTokenIndex"] + 1]) for text in page["activations"]]
        assert len(set(upto)) == len(upto)
        last_of_prompt += len(upto) == 1
    assert last_of_prompt > 3


def test_pieces_carry_whole_characters() -> None:
    tokenizer = tiny_backbone().tokenizer
    text = "Grüße 🙂, 日本<|im_end|>\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    table = token_bytes(tokenizer, ids)
    found = pieces([table[i] for i in ids])
    assert "".join(found) == text and len(found) == len(ids) and "🙂" in found and "\ufffd" not in "".join(found)
    broken = next(i for i, piece in enumerate(found) if piece == "🙂")
    assert pieces([table[i] for i in ids[:broken]])[-1] == "\ufffd", "a character cut off at the end of a window is seen to be one"


def test_pieces_of_a_sentencepiece_vocabulary_by_hand() -> None:
    names = {1: "▁the", 2: "se", 3: "<0xF0>", 4: "<0x9F>", 5: "<0x99>", 6: "<0x82>", 7: "<bos>"}
    tokenizer: Any = SimpleNamespace(
        convert_ids_to_tokens=lambda ids: [names[i] for i in ids],
        added_tokens_decoder={7: SimpleNamespace(content="<bos>")},
        backend_tokenizer=SimpleNamespace(decoder="Sequence(decoders=[Replace(...), ByteFallback(), Fuse()])"),
    )
    table = token_bytes(tokenizer, names)
    assert pieces([table[i] for i in (7, 1, 2, 3, 4, 5, 6)]) == ["<bos>", " the", "se", "", "", "", "🙂"]


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "qwen2", "neox"])
def test_the_unembedding_of_every_family(kind: str, tmp_path: Path) -> None:
    """Against the family's own norm and head: a layer norm's bias is left out, Gemma's gain is one more than its weight, its cap is left out."""
    config = BackboneConfig(model=str(save_model(tmp_path / kind, kind)), layer=1, dtype="float32", device="cpu")
    found = load_unembedding(config)
    whole = load_backbone(config).model
    norm = {"gpt2": "transformer.ln_f", "neox": "gpt_neox.final_layer_norm"}.get(kind, "model.norm")
    module = whole.get_submodule(norm)
    for parameter in module.parameters():  # untrained gains are all one and biases nought: draw some, and save them
        torch.nn.init.normal_(parameter)
    whole.save_pretrained(tmp_path / kind)
    found = load_unembedding(config)
    d = torch.randn(3, whole.get_input_embeddings().weight.shape[1])
    with torch.no_grad():
        centred = kind in ("gpt2", "neox")
        scale = (d.var(1, unbiased=False) if centred else d.square().mean(1)).sqrt()
        # The norm's epsilon is nothing beside directions this long.
        straight = (module(d * 1e4) - module(torch.zeros_like(d))) * scale[:, None] @ whole.get_output_embeddings().weight.T
    assert found.centred is centred
    np.testing.assert_allclose(found.logits(d.numpy()), straight, rtol=1e-3, atol=1e-3)


# --- pages on disk -------------------------------------------------------------------------------------------------


def test_pages_are_read_one_by_one_and_load_nothing_heavy(world: World) -> None:
    assert 5 in world.pages and 6 not in world.pages and "5" not in world.pages
    with pytest.raises(KeyError):
        world.pages[6]
    with pytest.raises(MissingError, match="no page of latent 6"):
        world.pages.page(6)
    code = (
        f"import sys\nfrom pathlib import Path\nfrom core.latents.pages import load_pages\npages = load_pages(Path({str(world.pages.folder)!r}))\n"
        "pages[5], pages.snippets, pages.corpus\nprint(sorted(set(sys.modules) & {'torch', 'sklearn', 'transformers', 'sae_lens'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
    with pytest.raises(StoreError, match="no pages of latents"):
        load_pages(ROOT)


def test_line_ends_of_other_scripts_stay_within_a_row(world: World) -> None:
    assert any("\u2028" in "".join(text["tokens"]) for page in world.pages.values() for text in page["activations"]) or any(
        "\u2028" in "".join(text["tokens"]) for text in world.pages.snippets
    )


def test_a_page_as_text_trusts_no_text(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    page = next(p for p in world.pages.values() if any("\x1b" in "".join(t["tokens"]) for t in p["activations"]))
    page["activations"] = [text for text in page["activations"] if "\x1b" in "".join(text["tokens"])]
    explanation_view.show(list(latent_view.page_parts(page, {})))
    said = capsys.readouterr().out
    assert "\x1b" not in said and "␛" in said and "«" in said and f"latent {page['index']}" in said
    assert f"{page['frac_nonzero']:.2%}" in said and f"{page['pos_values'][0]:+.2f}" in said
    assert latent_view.blocks([0, 1, 100]) == " ▁█"


# --- a reward model's pages ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Path:
    folder = tiny_explainer().model.folder
    assert folder is not None
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """chitchat can't be had."""

    def refuse(*_: Any, **__: Any) -> Path:
        raise BackboneError("chitchat can't be fetched")

    monkeypatch.setattr("core.sae.corpus.file_from_wheel", refuse)


def test_pages_are_found_again_and_more_serve_for_fewer(model: Path, tmp_path: Path, offline: None, caplog: pytest.LogCaptureFixture) -> None:
    fitted = ModelFolder(model, Store(tmp_path))
    assert find_pages(fitted, CONFIG) is None
    made = make_pages(fitted, CONFIG)
    assert "without chitchat" in caplog.text
    assert list(made) == selected_latents(fitted) and [source["name"] for source in made.corpus["sources"]] == ["pairs"]
    other = next(latent for latent in range(256) if latent not in made)
    for config, latents, every in ((CONFIG, (), False), (replace(CONFIG, corpus="pairs"), selected_latents(fitted)[:2], False)):
        again = find_pages(fitted, config, latents, every=every)
        assert again is not None and again.folder == made.folder
    assert find_pages(fitted, CONFIG, [other]) is find_pages(fitted, CONFIG, every=True) is find_pages(fitted, replace(CONFIG, window=9)) is None
    every = make_pages(fitted, CONFIG, every=True)
    assert every.folder != made.folder and set(every) >= set(made)
    found = find_pages(fitted, CONFIG, [other])
    assert found is not None and found.folder == every.folder and make_pages(fitted, CONFIG, [other]).folder == every.folder
    copy = tmp_path / "copy"
    copy.symlink_to(model)
    assert find_pages(ModelFolder(copy, Store(tmp_path)), CONFIG, every=True) is not None, "the fit's folder is not what names them"


def test_finding_loads_no_engine(model: Path, tmp_path: Path, offline: None) -> None:
    made = make_pages(ModelFolder(model, Store(tmp_path)), CONFIG)
    code = (
        "import sys\nfrom pathlib import Path\nfrom core.config import LatentsConfig\n"
        "from core.latents.find_pages import find_pages, selected_latents\n"
        "from core.reward.folder import ModelFolder\n"
        f"from core.runs.store import Store\nfolder = ModelFolder({str(model)!r}, Store(Path({str(tmp_path)!r})))\n"
        f"found = find_pages(folder, {CONFIG!r})\nfound.page(selected_latents(folder)[0])\n"
        "print(found.folder, sorted(set(sys.modules) & {'torch', 'sklearn', 'transformers', 'sae_lens'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == f"{made.folder} []"


def test_a_selected_latent_among_all_live_ones_gets_a_page(model: Path, tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = ModelFolder(model, Store(tmp_path))
    few = replace(CONFIG, tokens=1, corpus="pairs")  # one dialogue: most latents are silent
    every = make_pages(fitted, few, every=True)
    dead = next(latent for latent in range(256) if latent not in every)
    monkeypatch.setattr("core.latents.find_pages.selected_latents", lambda _folder: [dead])
    made = make_pages(fitted, few)
    assert list(made) == [dead] and made[dead]["frac_nonzero"] == 0 and made[dead]["activations"] == []
    assert len(made[dead]["pos_str"]) == 10 and made[dead]["maxActApprox"] == 0


def test_corpora_that_are_named(model: Path, tmp_path: Path, offline: None) -> None:
    fitted = ModelFolder(model, Store(tmp_path))
    file = tmp_path / "texts.jsonl"
    row = {"messages": [{"role": "user", "content": "Is it hard?"}, {"role": "assistant", "content": "Ask someone, friend"}]}
    file.write_text(json.dumps(row) + "\n")
    named = replace(CONFIG, corpus=f"pairs, {file}")
    made = make_pages(fitted, named)
    assert [source["name"] for source in made.corpus["sources"]] == ["pairs", "texts.jsonl"] and find_pages(fitted, named) is not None
    file.write_text(json.dumps(row).replace("hard", "soft") + "\n")
    assert find_pages(fitted, named) is None, "a file is named by its content"
    with pytest.raises(BackboneError, match="chitchat can't be fetched"):
        make_pages(fitted, replace(CONFIG, corpus="pairs,chitchat"))
    with pytest.raises(DataError, match="no corpus file"):
        make_pages(fitted, replace(CONFIG, corpus="/nowhere.jsonl"))
    with pytest.raises(ConfigError, match="no latent 256"):
        make_pages(fitted, CONFIG, [256])


def test_a_model_without_latents_and_one_without_texts(model: Path, tmp_path: Path, offline: None) -> None:
    with pytest.raises(ConfigError, match="has no latents"):
        make_pages(ModelFolder(model / "controls/dense", Store(tmp_path)), CONFIG)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors", "heads.safetensors", "selection.jsonl"):
        (bare / name).write_bytes((model / name).read_bytes())
    record_files(bare)
    with pytest.raises(MissingError, match="not kept beside it"):
        make_pages(ModelFolder(bare, Store(tmp_path)), replace(CONFIG, corpus="pairs"))
    with pytest.raises(MissingError, match="no text"):
        make_pages(ModelFolder(bare, Store(tmp_path)), CONFIG)


WORDS = ["--corpus", "pairs", "--tokens", "2000", "--window", "12"]


def test_the_command(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SPARSERM_CACHE", str(tmp_path))
    assert main(["latents", str(model), *WORDS, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] >= 2000 and load_pages(Path(found["artefact"])).folder.is_dir()
    assert main(["latents", str(model), *WORDS]) == 0
    said = capsys.readouterr().out
    selected = selected_latents(ModelFolder(model, Store(tmp_path)))
    assert all(f"latent {latent}" in said for latent in selected) and found["artefact"] in said
    assert main(["latents", str(model), *WORDS, "--latent", str(selected[0]), "--latent", str(selected[1])]) == 0
    said = capsys.readouterr().out
    assert f"latent {selected[1]}  (" in said and "promotes" in said and f"latent {selected[2]}  (" not in said
    assert main(["latents", "/nowhere"]) == StoreError.exit_code
    assert "to do" in capsys.readouterr().err


def test_killed_in_the_middle_and_begun_again(model: Path, tmp_path: Path, offline: None) -> None:
    """By SIGKILL, while the pages wait to be published: what stands when it was begun again is what an undisturbed run makes."""
    root = tmp_path / "killed"
    kill_inside(["latents", str(model), *WORDS, "--json"], root, "latents")
    assert list((root / "scratch").glob("latents-*/shard-*.safetensors"))
    config = LatentsConfig(corpus="pairs", tokens=2000, window=12)
    ours, theirs = (make_pages(ModelFolder(model, Store(tmp_path / name)), config).folder for name in ("killed", "undisturbed"))
    assert ours.name == theirs.name
    assert {**contents(ours), "manifest.json": b""} == {**contents(theirs), "manifest.json": b""}
