"""The house: one word means one thing, and the public interface stays as it is."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import factual_forgetting

PACKAGE = Path(factual_forgetting.__file__).parent
# The same thing in each room: what adds its commands to the command line.
SHARED = {"add_parser", "command", "__init__"}


def definitions(path: Path) -> Iterator[str]:
    """Names that a module defines at its top level."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name))


def test_no_two_public_things_share_a_name() -> None:
    places: dict[str, set[str]] = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        place = str(path.relative_to(PACKAGE))
        places[f"module {path.stem}"].add(place)
        for name in definitions(path):
            places[name].add(place)
    allowed = {f"module {name}" for name in SHARED} | SHARED
    shared = {n: found for n, found in places.items() if len(found) > 1 and n not in allowed}
    assert {n: found for n, found in shared.items() if not n.startswith("_")} == {}


def test_each_promise_of_security_names_a_test_that_is_there() -> None:
    tests = PACKAGE.parents[1] / "tests"
    there = {name for path in tests.rglob("test_*.py") for name in definitions(path)}
    told = (tests.parent / "SECURITY.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", told))
    assert len(named) > 20
    assert named - there == set()
    assert all((tests.parent / path).is_file() for path in re.findall(r"`(tests/\S+\.py)`", told))
