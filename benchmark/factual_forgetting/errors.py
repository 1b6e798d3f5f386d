"""The one exception that a user is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in the input or the environment that the user can mend.

    The command line prints the message as one line and exits with status 1, so the message
    states the cause and the way out.
    """


def reason_of(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type where there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
