"""What a user is meant to read. Each is the standard exception of its kind, too."""

from __future__ import annotations

import json
import unicodedata

# Longer than a path that somebody typed.
_LONGEST_WORD = 1000

# Controls, what hides or turns text, halves of pairs, and separators of lines.
_UNPRINTED = {"Cc", "Cf", "Cs", "Zl", "Zp"}


class UserError(Exception):
    """A mistake in the input or the environment that the user can mend.

    The command line prints the message as one line and exits with status 1, so the message
    states the cause and the way out.
    """


class InputError(UserError, ValueError):
    """Something that was given is not what it should be."""


class NotFoundError(UserError, FileNotFoundError):
    """Something that was named isn't there."""


class PackageError(UserError, ImportError):
    """A package that this needs isn't installed."""


def reason_of(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type where there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def visible(text: str) -> str:
    """Writes out what would move a cursor, forge a line, or hide or turn letters, as JSON does."""
    if text.isprintable():
        return text
    return "".join(
        json.dumps(letter)[1:-1] if unicodedata.category(letter) in _UNPRINTED else letter
        for letter in text
    )


def one_line(error: BaseException) -> str:
    """Returns an error's message as one line that a terminal shows as it is, and a person reads."""
    return visible(" ".join(map(_shortened, str(error).split())))


def _shortened(word: str) -> str:
    return word if len(word) <= _LONGEST_WORD else f"{word[:100]}…{word[-100:]}"
