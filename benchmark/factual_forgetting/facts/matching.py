"""Answer matching: one normalisation for labels, curves and scores alike."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable

MATCHER_VERSION = "squad-1"

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


def normalise(text: str) -> str:
    """Applies SQuAD normalisation: lower case, no punctuation, no articles, single spaces.

    Source: Rajpurkar et al. 2016 (SQuAD's evaluation), after Unicode NFKC.
    """
    folded = unicodedata.normalize("NFKC", text).lower()
    bare = "".join(" " if char in "-‐‑–—/" else char for char in folded)
    bare = "".join(char for char in bare if char not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def first_line(text: str) -> str:
    """Returns the text up to the first newline, stripped: where generation stops."""
    return text.split("\n", 1)[0].strip()


def is_correct(text: str, answers: Iterable[str]) -> bool:
    """Tells whether a generated text exactly matches any accepted answer, once normalised."""
    given = normalise(first_line(text))
    return bool(given) and any(given == normalise(answer) for answer in answers)
