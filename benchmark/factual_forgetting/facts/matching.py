"""Answer matching: one normalisation for labels, curves and scores alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache

MATCHER_VERSION = "exact-2"
_CACHED_TEXTS = 1 << 16  # a model repeats itself over runs, and golds repeat over facts

# Dropped without leaving a space: apostrophes and their lookalikes, and the full stop.
_GLUED = "'‘’‚‛`´ʹʻʼʽʾʿˈˊˋ′＇."
# Letters that Unicode doesn't decompose, by the spelling that plain keyboards give them, and the
# signs that say something.
_SPELT = {
    "æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ð": "d", "þ": "th", "ł": "l", "ħ": "h",
    "ı": "i", "ŋ": "n", "ŧ": "t", "ƒ": "f", "ǥ": "g", "ɨ": "i", "ƀ": "b",
    "&": " and ", "+": "+", "#": "#",
}  # fmt: skip
# Cyrillic and Greek letters that look Latin, for words that mix scripts by a slip.
_LOOKALIKES = str.maketrans("асеорхуіјѕԁοανικρτυχ", "aceopxyijsdoavikptux")
# Nonspacing marks that readers leave out: Latin, Greek and Cyrillic diacritics, Hebrew and
# Arabic points, the Arabic tatweel. Marks of other scripts spell vowels and stay.
_MARKS = re.compile(
    "[\u0300-\u036f\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670]"
)
_INITIAL = re.compile(r"(?<![^\W_])([^\W\d_])\.")
_SPACED_INITIALS = re.compile(r"(?<!\S)([^\W\d_]) (?=[^\W\d_](?: |$))")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_DECIMAL = re.compile(r"(?<=\d)[.,](?=\d)")
_LOOSE_SIGN = re.compile(r"(?<![\w+#])[+#]+|[+#]+(?=\w)")
_LEADING_ARTICLE = re.compile(r"^(?:an? )+(?=\S)")
_MIXED_WORD = re.compile(r"\S*[a-z]\S*")


class _Plain(dict[int, str]):
    """What each character of a folded text turns into, worked out when first met."""

    def __missing__(self, code: int) -> str:
        char, category = chr(code), unicodedata.category(chr(code))
        if char in _SPELT:
            plain = _SPELT[char]
        elif char in _GLUED or category == "Cf":
            plain = ""
        elif category == "Nd":
            plain = str(unicodedata.digit(char))
        else:
            plain = " " if category[0] in "PSZC" else char
        return self.setdefault(code, plain)


_PLAIN = _Plain()


@lru_cache(maxsize=_CACHED_TEXTS)
def normalise(text: str) -> str:
    """Reduces a text to what two writings of one name share.

    Lower case, no accents, no punctuation, digits in ASCII, `&` as "and", initials joined
    ("J. R. R." and "JRR"), no "the", no leading "a" or "an", single spaces. A text that would
    lose everything ("!!!", "The The") keeps what it has. `C++` and `C#` stay themselves.
    It extends SQuAD's normalisation (Rajpurkar et al. 2016), which drops "A. A." as articles,
    makes 1.5 of 15 and knows ASCII only. Applying it twice changes nothing more.
    """
    folded = text.lower() if text.isascii() else _fold(text)
    words = folded
    if "." in words or "," in words:
        words = _INITIAL.sub(r"\1 ", words)
        words = _DECIMAL.sub(" ", _THOUSANDS.sub("", words))
    words = words.translate(_PLAIN)
    if "+" in words or "#" in words:
        words = _LOOSE_SIGN.sub(" ", words)
    parts = words.split()
    bare = " ".join([part for part in parts if part != "the"] or parts[:1])
    bare = _SPACED_INITIALS.sub(r"\1", bare)
    return _LEADING_ARTICLE.sub("", bare) or " ".join(folded.split())


def _fold(text: str) -> str:
    """Case, compatibility forms and diacritics of a text that isn't plain ASCII."""
    unmarked = text.translate({0x2122: None, 0x2120: None})  # NFKC would spell out TM and SM
    folded = unicodedata.normalize("NFKC", unmarked).casefold()
    bare = _MARKS.sub("", unicodedata.normalize("NFKD", folded))
    composed = unicodedata.normalize("NFKC", bare)
    return _MIXED_WORD.sub(lambda word: word.group().translate(_LOOKALIKES), composed)


def first_line(text: str) -> str:
    """Returns the text up to the first newline, stripped: where generation stops."""
    return text.split("\n", 1)[0].strip()


# What two writings of one name share, by the version that says so. A change of `normalise` is a
# new version, and the old function stays here under its own: bundles, results and records are
# judged by the version that they were made with.
MATCHERS: dict[str, Callable[[str], str]] = {MATCHER_VERSION: normalise}


class AnswerKey:
    """The accepted answers of one question, normalised once for many generations."""

    __slots__ = ("_accepted", "_normalise")

    def __init__(self, answers: Iterable[str], version: str = MATCHER_VERSION) -> None:
        """Takes `fact.answers` for strict accuracy, `fact.accepted` for alias accuracy.

        `version` is a key of `MATCHERS`.
        """
        self._normalise = MATCHERS[version]
        self._accepted = frozenset(map(self._normalise, answers)) - {""}

    def accepts(self, text: str) -> bool:
        """Tells whether the first line of a generated text is an accepted answer."""
        return self._normalise(first_line(text)) in self._accepted


def is_correct(text: str, answers: Iterable[str], version: str = MATCHER_VERSION) -> bool:
    """Tells whether a generated text exactly matches any accepted answer, once normalised."""
    return AnswerKey(answers, version).accepts(text)
