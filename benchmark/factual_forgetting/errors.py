"""What a user is meant to read. Each is the standard exception of its kind, too."""

from __future__ import annotations

import errno


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


def disk_is_full(error: BaseException) -> bool:
    """Tells a full disk from other faults, whichever library met it."""
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return True
    told = ("No space left on device", "file write failed", "database or disk is full")
    return any(words in str(error) for words in told)


def disk_trouble(error: BaseException) -> str | None:
    """Returns the line to tell of a fault of the disk; None of any other."""
    named = error.filename if isinstance(error, OSError) else None
    if disk_is_full(error):
        where = f" of {named}" if named else ""
        return f"No space is left on the disk{where}. Free some and run the same command again."
    if not isinstance(error, OSError):
        return None
    if not (named and error.strerror):
        return f"{reason_of(error)}. Check that path, and the disk."
    return f"{named}: {error.strerror}. Check that path, and what it allows."
