"""The house: one word means one thing, and the public interface stays as it is."""

import ast
import inspect
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import factual_forgetting

PACKAGE = Path(factual_forgetting.__file__).parent
# The same thing in each room: what adds its commands to the command line.
SHARED = {"add_parser", "command"}


def public_names(path: Path) -> Iterator[str]:
    """Names that a module defines at its top level, its own included."""
    yield path.stem
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))


def test_no_two_public_things_share_a_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for name in set(public_names(path)):
            if not name.startswith("_") and name not in SHARED:
                places[name].append(str(path.relative_to(PACKAGE)))
    shared = {name: found for name, found in places.items() if len(found) > 1}
    modules_named_for_their_function = {
        name: found
        for name, found in shared.items()
        if len(found) == 2 and found[0].endswith(f"{name}.py") == found[1].endswith(f"{name}.py")
    }
    assert modules_named_for_their_function == {}
