"""The command `factual-forgetting`: each subcommand is a thin call into one room."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from factual_forgetting.errors import UserError, disk_trouble, one_line
from factual_forgetting.files import at_home

INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """Returns the parser with all subcommands."""
    # Here, since it takes a while, and may be interrupted.
    from factual_forgetting import __version__
    from factual_forgetting.board import command as board
    from factual_forgetting.board import export_command
    from factual_forgetting.bundle import command as bundle
    from factual_forgetting.comparison import command as comparison
    from factual_forgetting.facts import command as facts
    from factual_forgetting.lab import command as lab
    from factual_forgetting.mechanism import drift_command, interference_command
    from factual_forgetting.protocol import command as protocol
    from factual_forgetting.scoring import command as scoring
    from factual_forgetting.scoring import frontier
    from factual_forgetting.slick import command as slick

    # In the order of the help.
    commands = (
        lab, comparison, drift_command, interference_command, facts, slick, bundle, protocol,
        scoring, frontier, board, export_command,
    )  # fmt: skip
    main_parser = argparse.ArgumentParser(
        prog="factual-forgetting",
        description="Measures whether fine-tuning made a language model forget what it knew.",
    )
    main_parser.add_argument("--version", action="version", version=__version__)
    subparsers = main_parser.add_subparsers(required=True, metavar="COMMAND")
    for command in commands:
        command.add_parser(subparsers)
    return main_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; a mistake of the user's, or of the disk's, is one line and status 1.

    A command may return a status of its own.
    """
    _write_any_text()
    resumes = False
    try:
        args = parser().parse_args(argv)
        resumes = getattr(args, "resumes", False)
        vars(args).update({name: _all_at_home(value) for name, value in vars(args).items()})
        return int(args.run(args) or 0)
    except UserError as error:
        return _tell(one_line(error))
    except KeyboardInterrupt:
        _tell("interrupted." + (" The same command resumes." if resumes else ""))
        return INTERRUPTED
    except BrokenPipeError:
        return 1
    except Exception as error:
        if (told := disk_trouble(error)) is None:
            raise
        return _tell(told)


def _tell(text: str) -> int:
    sys.stderr.write(f"factual-forgetting: {' '.join(text.split())}\n")
    return 1


def _write_any_text() -> None:
    """Lets stdout take every text: data is UTF-8, and a console is shown what it can't print."""
    if isinstance(sys.stdout, TextIOWrapper):
        encoding = sys.stdout.encoding if sys.stdout.isatty() else "utf-8"
        sys.stdout.reconfigure(encoding=encoding, errors="backslashreplace")


def _all_at_home(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_all_at_home, value))
    return at_home(value) if isinstance(value, Path) else value


if __name__ == "__main__":
    sys.exit(main())
