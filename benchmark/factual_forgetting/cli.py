"""The command `factual-forgetting`: each subcommand is a thin call into one room."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from factual_forgetting import __version__
from factual_forgetting.board import command as board
from factual_forgetting.bundle import command as bundle
from factual_forgetting.comparison import command as comparison
from factual_forgetting.errors import UserError
from factual_forgetting.facts import command as facts
from factual_forgetting.lab import command as lab
from factual_forgetting.mechanism import drift_command, interference_command
from factual_forgetting.protocol import command as protocol
from factual_forgetting.scoring import command as scoring
from factual_forgetting.scoring import frontier
from factual_forgetting.slick import command as slick

INTERRUPTED = 130
# In the order of the help.
_COMMANDS = (
    lab, comparison, drift_command, interference_command, facts, slick, bundle, protocol, scoring,
    frontier, board,
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """Returns the parser with all subcommands."""
    main_parser = argparse.ArgumentParser(
        prog="factual-forgetting",
        description="Measures whether fine-tuning made a language model forget what it knew.",
    )
    main_parser.add_argument("--version", action="version", version=__version__)
    subparsers = main_parser.add_subparsers(required=True, metavar="COMMAND")
    for commands in _COMMANDS:
        commands.add_parser(subparsers)
    return main_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; a user's mistake is one line on stderr and status 1.

    A command may return a status of its own.
    """
    args = parser().parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except UserError as error:
        sys.stderr.write(f"factual-forgetting: {' '.join(str(error).split())}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("factual-forgetting: interrupted. The same command resumes.\n")
        return INTERRUPTED
    except BrokenPipeError:
        return 1


if __name__ == "__main__":
    sys.exit(main())
