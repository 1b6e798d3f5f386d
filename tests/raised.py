"""Which of the errors that users read were raised in the tests: `python tests/raised.py SEEN`.

Each `raise` of a UserError in the package is a site. Where RAISED names a file, a run of the tests
adds to it the sites that it saw, those in forked processes too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from factual_forgetting import errors

PACKAGE = Path(errors.__file__).parent
KINDS = {"UserError", "InputError", "NotFoundError", "PackageError"}


def sites() -> Iterator[tuple[str, range]]:
    """Yields the file and the lines of each statement that raises an error for users."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and _named(node.exc) in KINDS:
                name = str(path.relative_to(PACKAGE))
                yield name, range(node.lineno, (node.end_lineno or node.lineno) + 1)


def _named(raised: ast.expr | None) -> str | None:
    made = raised.func if isinstance(raised, ast.Call) else None
    return made.id if isinstance(made, ast.Name) else None


def watch(output: Path) -> None:
    """Has each such error note where it is made."""
    seen: set[str] = set()
    before = errors.UserError.__init__

    def note(self: errors.UserError, *given: Any) -> None:
        before(self, *given)
        frame = sys._getframe(1)
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE):
            place = f"{path.relative_to(PACKAGE)}:{frame.f_lineno}\n"
            if place not in seen:
                seen.add(place)
                with output.open("a") as stream:
                    stream.write(place)

    errors.UserError.__init__ = note  # type: ignore[method-assign]


def unseen(seen: set[str]) -> list[str]:
    """Lists the sites of which no line was seen."""
    return [
        f"{name}:{lines[0]}"
        for name, lines in sites()
        if not any(f"{name}:{line}" in seen for line in lines)
    ]


if __name__ == "__main__":
    missing = unseen(set(Path(sys.argv[1]).read_text().split()))
    sys.stdout.write("".join(f"{place}\n" for place in missing))
    sys.stderr.write(f"{len(missing)} errors raised in no test, of {len(list(sites()))}\n")
    sys.exit(bool(missing))
