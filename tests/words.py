"""The command line, word by word: every subcommand with its options."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from factual_forgetting.cli import parser


def subcommands(
    of: argparse.ArgumentParser | None = None,
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yields each command that runs, as `bundle build`, with its parser."""
    of = of or parser()
    verbs = [a for a in of._actions if isinstance(a, argparse._SubParsersAction)]
    if not verbs:
        yield of.prog.partition(" ")[2], of
    for action in verbs:
        for verb in action.choices.values():
            yield from subcommands(verb)
