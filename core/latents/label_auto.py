"""Labels made without a language model: tokens and words typical of a latent's texts, and tokens it promotes.

They are marked as automatic wherever they are shown.

1. Tokens on which it is most active, against all tokens of texts in which it is silent.
2. Words of its texts, against those of the silent texts (a latent read at the end of a sentence is active on a full
stop, and the words of the
   text are then more typical). A word counts once for each text.
3. A token or word is distinctive if its log-odds ratio is high for its standard error, with a Dirichlet prior from both
sides together (Monroe, Colaresi and Quinn
   2008, Fightin' Words): rare and frequent ones then compare.
4. The tokens that its direction raises most in the language model's output, if they begin a word.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from core.latents.label_evidence import Feature, promoted, shown_windows, snippet_texts, strong_tokens, text_of
from core.latents.labels import AUTOMATIC, Label, one_line, today

METHOD = "sparserm-log-odds"
MOST = 4  # tokens, words or promoted tokens that a label names
SURE = 1.96  # standard errors that the log-odds ratio must lie above zero
TEXTS = 3  # texts in which a token or word must occur
PRIOR = 50.0  # tokens or words that the prior counts for (our choice)
WORD = re.compile(r"[^\W\d_][\w'’]+")


def automatic_label(feature: Feature, snippets: Sequence[Any]) -> Label | None:
    """A latent's label from its page and the silent texts (`LatentPages.snippets`); None if nothing is distinctive."""
    windows, silent = shown_windows(feature), [snippets[number] for number in feature["inactive"]]
    tokens = distinctive(
        [Counter(map(_token, strong_tokens(window))) for window in windows], [Counter(map(_token, snippet["tokens"])) for snippet in silent]
    )
    words = distinctive([_words(text_of(window)) for window in windows], [_words(text) for text in snippet_texts(feature, snippets)])
    named = {token.casefold() for token in tokens}
    parts = [
        ("active on", tokens),
        ("in texts with", [word for word in words if word not in named]),
        ("promotes", promoted(feature, MOST, words=True)),
    ]
    text = "; ".join(f"{what} {', '.join(map(_quoted, words_named[:MOST]))}" for what, words_named in parts if words_named)
    return Label(text=one_line(text), source=AUTOMATIC, index=int(feature["index"]), method=METHOD, date=today()) if tokens or words else None


def distinctive(texts: Sequence[Counter[str]], silent: Sequence[Counter[str]]) -> list[str]:
    """The distinctive tokens or words of these texts, the most distinctive first: at least `SURE` standard errors more
    often than in the silent ones, in `TEXTS` of them."""
    here, there = _sum(texts), _sum(silent)
    both, n_here, n_there = here + there, here.total(), there.total()
    if not n_there or len(both) < 2:
        return []
    spread = Counter(word for text in texts for word in text)
    scores = {}
    for word in here:
        prior = PRIOR * both[word] / both.total()
        times_here, times_there = here[word] + prior, there[word] + prior
        ratio = math.log(times_here / (n_here + PRIOR - times_here)) - math.log(times_there / (n_there + PRIOR - times_there))
        scores[word] = ratio / math.sqrt(1 / times_here + 1 / times_there)
    words = [word for word in here if word and spread[word] >= TEXTS and scores[word] > SURE]
    return sorted(words, key=lambda word: (-scores[word], word))[:MOST]


def _sum(counts: Iterable[Counter[str]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return total


def _token(token: str) -> str:
    return token.strip().casefold()


def _words(text: str) -> Counter[str]:
    """Each word of a text, once."""
    return Counter(set(WORD.findall(text.casefold())))


def _quoted(text: str) -> str:
    return f"“{text}”"
