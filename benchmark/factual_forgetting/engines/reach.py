"""Whether an unfinished answer can still become an accepted one."""

from __future__ import annotations

import re
from collections.abc import Iterable

from factual_forgetting.facts.matching import normalise

# A last word is free of accents, abbreviations and lookalikes as far as it is plain.
_PLAIN_START = re.compile(r"[A-Za-z0-9]*")
_DROPPED_WORDS = ("the", "a", "an")
# A word that normalisation keeps apart from any other, and that keeps others from being last.
_SENTINEL = "0"


def skeletons(answers: Iterable[str]) -> tuple[str, ...]:
    """Returns accepted answers as `reachable` compares them: normalised, without spaces."""
    return tuple({normalise(answer).replace(" ", "") for answer in answers})


def reachable(text: str, accepted: Iterable[str]) -> bool:
    """Tells whether some continuation of a text may be accepted.

    False is certain: no continuation, the empty one included, normalises to an accepted
    answer. True is a guess, because a last word may change its meaning as it grows (`The` is
    dropped, `Theodore` is not): whole words count once a space follows them, and the last
    word as far as it is plain letters and can't be a dropped word. Normalisation works word
    by word, but it may drop words and join initials, so texts are compared without spaces.

    Args:
        text: The text so far, one line, not yet ended.
        accepted: What `skeletons` gave for the accepted answers.
    """
    head, _, word = text.lstrip().rpartition(" ")
    begun = normalise(f"{head} {_SENTINEL}").replace(" ", "").removesuffix(_SENTINEL)
    plain = (_PLAIN_START.match(word) or [""])[0].lower()
    initial = len(plain) == 1 and head and not begun  # "a b" may be initials, "a" an article
    if not initial and not any(dropped.startswith(plain) for dropped in _DROPPED_WORDS):
        begun += plain
    return any(answer.startswith(begun) for answer in accepted)
