"""Tampering: each kind is refused, or made harmless where no arithmetic can see it."""

import gzip
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from synthetic import drawn, make_bundle, publish, write_record

from factual_forgetting import files
from factual_forgetting.board import record as record_module
from factual_forgetting.board.record import Outcome, load_record, recompute
from factual_forgetting.board.validate import CHECKS, Finding, render_findings, validate
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.cli import main
from factual_forgetting.protocol.settings import SETTINGS


@pytest.fixture
def root(records: Path, tmp_path: Path) -> Path:
    """A leaderboard of twelve records, to be tampered with."""
    return Path(shutil.copytree(records, tmp_path / "records"))


@pytest.fixture
def victim(root: Path) -> Path:
    return sorted(root.rglob("sft/*.json"))[0]


Content = dict[str, Any]
Rows = list[dict[str, Any]]


def outcomes_of(record: Path) -> Path:
    return record.with_name(f"{record.stem}.outcomes.jsonl.gz")


def rewrite(path: Path, change: Callable[[Content], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def read_rows(record: Path) -> Rows:
    return list(files.read_jsonl(outcomes_of(record)))


def forge(path: Path, bundle: Bundle, change: Callable[[Rows], object]) -> Path:
    """Edits outcomes and makes all that follows from them consistent again."""
    content, rows = files.read_json(path), read_rows(path)
    change(rows)
    with suppress(KeyError, IndexError, ValueError):  # Nothing can be computed from them.
        outcomes = [Outcome(**row) for row in rows]
        content["metrics"] = recompute(bundle, outcomes, len(content["curve"]))
    for file in (path, outcomes_of(path)):
        file.unlink()
    return write_record(path.parents[3], content, rows)


def errors(root: Path, bundle: Bundle) -> list[Finding]:
    found = validate(root, {bundle.sha256: bundle})
    return [finding for finding in found if finding.severity == "error"]


def refused(root: Path, bundle: Bundle, check: str, message: str) -> None:
    found = errors(root, bundle)
    assert any(f.check == check and message in f.message for f in found), found


def test_honest_records_pass(root: Path, world: Bundle) -> None:
    assert validate(root, {world.sha256: world}) == []


def _set(*keys: str, to: Any) -> Callable[[Content], None]:
    def change(content: Content) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "check", "message"),
    [
        (_set("metrics", "stability", "value", to=0.9999), "metrics", "stability is"),
        (_set("metrics", "stability_at_p90", to=None), "metrics", "stability_at_p90 is"),
        (_set("metrics", "charm", to=1.0), "metrics", "unknown metrics: charm"),
        (_set("metrics", "lost", "value", to=False), "metrics", "lost is"),
        (_set("metrics", "plasticity", "value", to=float("nan")), "form", "NaN is not JSON"),
        (_set("metrics", "plasticity", "value", to=float("inf")), "form", "Infinity is not JSON"),
        (_set("id", to="../../../../x"), "form", "key 'id'"),
        (_set("id", to="0" * 16), "id", "isn't the hash"),
        (_set("outcomes", "file", to="../../secret.gz"), "form", "key 'outcomes.file'"),
        (_set("outcomes", "sha256", to="0" * 64), "form", "was changed"),
        (_set("seed", to=7), "id", "isn't the hash"),
        (_set("weights_sha256", to="e" * 64), "id", "isn't the hash"),
        (_set("method", "name", to="<script>alert(1)</script>"), "form", "key 'method.name'"),
        (_set("method", "name", to="../up"), "form", "key 'method.name'"),
        (_set("bundle_sha256", to="0" * 64), "bundle", "not at hand"),
        (_set("base", "pretrained", to="<script>x</script>"), "base", "pretrained"),
        (_set("base", "weights_sha256", to="0" * 64), "base", "weights_sha256"),
        (_set("base", "pretrained", to="a\u001b[2Jb"), "form", "key 'base.pretrained'"),
        (_set("track", to="open"), "track", "its track is closed"),
        (_set("protocol", "sha256", to="0" * 64), "track", "its track is open"),
        (_set("level", to="rescored"), "form", "doesn't say its level"),
        (_set("extra", to=1), "form", "unknown key 'extra'"),
        (_set("note", to="x" * 5000), "form", "a text of more than 1000"),
        (_set("cost", "gpu_hours", to=-1.0), "form", "key 'cost.gpu_hours'"),
        (_set("cost", "steps", to=3), "curve", "but it has 3 steps"),
        (_set("repository", to="https://evil"), "form", "key 'repository'"),
        (lambda content: content["curve"].reverse(), "curve", "don't rise"),
        (lambda content: content["curve"].pop(), "form", "curve of"),
    ],
)
def test_a_tampered_record_is_refused(
    root: Path, victim: Path, world: Bundle, change: Any, check: str, message: str
) -> None:
    rewrite(victim, change)
    refused(root, world, check, message)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "null", "{" * 3, "[" * 100_000, '{"id": 1, "id": 2}', '{"seed": 1e999}',
        '{"seed": ' + "9" * 5000 + "}", '{"note": "\\ud800"}', "\ufeff{}",
    ],
)  # fmt: skip
def test_what_is_no_record_is_one_finding(
    root: Path, victim: Path, world: Bundle, text: str
) -> None:
    victim.write_text(text)
    assert [finding.check for finding in errors(root, world)] == ["form"]


def _flip_last(victim: Path) -> None:
    rows = read_rows(victim)
    rows[-1]["final"] = not rows[-1]["final"]
    files.write_jsonl(outcomes_of(victim), rows)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda victim: victim.write_bytes(b"\xff\xfe{}"), "not readable JSON"),
        (lambda victim: os.truncate(victim, 3 * 2**20), "larger than 2 MB"),
        (lambda victim: os.truncate(outcomes_of(victim), 2**30), "larger than 32 MB"),
        (
            lambda victim: os.truncate(outcomes_of(victim), outcomes_of(victim).stat().st_size - 9),
            "not readable",
        ),
        (lambda victim: outcomes_of(victim).unlink(), "no plain file"),
        (_flip_last, "was changed"),
    ],
    ids=["no text", "giant", "giant outcomes", "truncated", "missing", "flipped"],
)
def test_a_damaged_file(
    root: Path, victim: Path, world: Bundle, damage: Callable[[Path], None], message: str
) -> None:
    damage(victim)
    refused(root, world, "form", message)


def test_a_zip_bomb_costs_its_bound(
    root: Path, victim: Path, world: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes_of(victim).write_bytes(gzip.compress(bytes(8 * 2**20)))
    monkeypatch.setattr(record_module, "MOST_UNPACKED", 2**20)
    refused(root, world, "form", "unpacks to more than 1 MB")


@pytest.mark.parametrize("of", ["record", "outcomes"])
def test_a_link_is_not_followed(
    root: Path, victim: Path, world: Bundle, tmp_path: Path, of: str
) -> None:
    target = victim if of == "record" else outcomes_of(victim)
    target.rename(tmp_path / "elsewhere")
    target.symlink_to(tmp_path / "elsewhere")
    refused(root, world, "files", "it is a link")


def _flatter(rows: Rows) -> None:
    for row in rows:
        row["final"] = True


def _end_right(rows: Rows, **more: str) -> None:
    for row in rows:
        row.update(final=True, curve=row["curve"][:-1] + "1", **more)


FACTS, OUTCOME = ("facts", "aren't those of the bundle's facts"), ("form", "not an outcome")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda rows: rows.append(rows[0]), FACTS),
        (lambda rows: rows.insert(1, rows[0]), FACTS),
        (lambda rows: rows.pop(), FACTS),
        (lambda rows: rows.clear(), FACTS),
        (lambda rows: rows.reverse(), FACTS),
        (lambda rows: rows[0].update(id="f" * 16), FACTS),
        (lambda rows: rows[0].update(split="unknown"), FACTS),
        (lambda rows: rows[0].update(relation="shelf"), FACTS),
        (lambda rows: rows[0].update(final=1), OUTCOME),
        (lambda rows: rows[0].update(extra=1), OUTCOME),
        (lambda rows: rows[0].update(answer="x" * 2000), ("form", "an answer of more than")),
        (lambda rows: rows[0].update(curve="2" * 12), ("form", "is malformed")),
        (lambda rows: rows[0].update(curve="1"), ("form", "is malformed")),
        (_flatter, ("curve", "differ from the last point")),
        (lambda rows: _end_right(rows, answer="Nowhere"), ("answers", "what their answers score")),
    ],
    ids=[
        "added", "twice", "missing", "none", "reordered", "invented", "moved", "renamed", "number",
        "key", "long", "signs", "short", "flattered", "unanswered",
    ],
)  # fmt: skip
def test_forged_outcomes(
    root: Path, victim: Path, world: Bundle, change: Any, found: tuple[str, str]
) -> None:
    """Whatever follows from the outcomes is consistent with them."""
    forge(victim, world, change)
    refused(root, world, *found)


def test_outcomes_invented_throughout_stay_self_reported(
    root: Path, victim: Path, world: Bundle
) -> None:
    """No arithmetic sees it: the level says so, and a record can't raise it."""
    gold = {item.fact.id: item.fact.answers[0] for _, item in world.items()}

    def invent(rows: Rows) -> None:
        _end_right(rows)
        for row in rows:
            row["answer"] = gold[row["id"]]

    forged = forge(victim, world, invent)
    assert errors(root, world) == []
    record, _ = load_record(forged)
    assert record.metrics["stability"]["value"] == 1.0  # type: ignore[index,call-overload]
    assert record.level == "self-reported"


def test_a_swapped_bundle(root: Path, victim: Path, world: Bundle, tmp_path: Path) -> None:
    other = make_bundle(tmp_path / "other", heldout=18)
    rewrite(victim, _set("bundle_sha256", to=other.sha256))
    found = validate(root, {world.sha256: world, other.sha256: other})
    assert {"facts"} <= {f.check for f in found if f.severity == "error"}


def test_a_bundle_that_is_not_official(root: Path, world: Bundle) -> None:
    found = validate(root, {world.sha256: world}, official=[])
    assert {(f.check, f.severity) for f in found} == {("official", "warning")}


def test_a_record_elsewhere(root: Path, victim: Path, world: Bundle) -> None:
    for file in (victim, outcomes_of(victim)):
        file.rename(root / file.name)
    refused(root, world, "place", "it belongs in almanac/")


@pytest.mark.parametrize(("method", "refused_as_copy"), [("early_stop", False), ("idk", True)])
def test_one_checkpoint_under_two_methods(
    root: Path, victim: Path, world: Bundle, method: str, refused_as_copy: bool
) -> None:
    """A method that chooses among trained checkpoints may choose plain training's."""
    settings = SETTINGS[method]().model_dump(mode="json")
    content = {**files.read_json(victim), "method": {"name": method, "settings": settings}}
    write_record(root, content, read_rows(victim))
    found = validate(root, {world.sha256: world})
    assert any(finding.check == "duplicates" for finding in found) is refused_as_copy


def test_one_checkpoint_as_two_seeds(root: Path, victim: Path, world: Bundle) -> None:
    """The same weights and outcomes under another seed, with all hashes right."""
    content = {**files.read_json(victim), "seed": 99}
    copy = write_record(root, content, read_rows(victim))
    refused(root, world, "duplicates", "the same weights")
    rewrite(copy, _set("weights_sha256", to="1" * 64))
    refused(root, world, "id", "isn't the hash")
    found = validate(root, {world.sha256: world})
    assert any(f.check == "duplicates" and "same outcomes" in f.message for f in found)


@pytest.mark.parametrize("name", ["notes.txt", "run.sh", "x.pkl", "page.html"])
def test_a_stray_file(root: Path, victim: Path, world: Bundle, name: str) -> None:
    victim.with_name(name).write_text("x")
    refused(root, world, "files", "no file of a record")


def test_what_an_interrupted_write_leaves_is_a_warning(
    root: Path, victim: Path, world: Bundle
) -> None:
    victim.with_name(".x.json.abc").write_text("{")
    victim.unlink()
    found = validate(root, {world.sha256: world})
    assert {(f.check, f.severity) for f in found} == {("files", "warning"), ("seeds", "warning")}


def test_missing_seeds_and_declarations_are_warnings(world: Bundle, tmp_path: Path) -> None:
    declared = {"heldout": "included", "training_data": "all of it"}
    publish(tmp_path, world, drawn(world, 1, 0.3, 0.1), declared=declared)
    found = validate(tmp_path / "records", {world.sha256: world})
    assert {(f.check, f.severity) for f in found} == {
        ("declared", "warning"),
        ("seeds", "warning"),
    }


def test_the_names_of_the_checks() -> None:
    # Beside `steps`, which is left out for drawn runs.
    errors = "facts answers id place base protocol track metrics curve style start asked"
    warnings = "agreement before answered origin official seed declared environment"
    assert list(CHECKS) == f"{errors} {warnings}".split()


HOSTILE = Finding("form", "error", "a,b:c\n.json", "x\n::error::forged \x1b[2J <b>")


def test_reports_can_t_be_forged() -> None:
    assert len(render_findings([HOSTILE], "rich").splitlines()) == 1
    assert "\x1b" not in render_findings([HOSTILE], "rich")
    colored = render_findings([HOSTILE], "rich", color=True)
    assert "\x1b[1;31merror" in colored
    assert "[2J" in colored
    assert "\x1b[2J" not in colored
    annotation = render_findings([HOSTILE], "github")
    assert len(annotation.splitlines()) == 1
    assert annotation.startswith("::error file=a%2Cb%3Ac%0A.json,title=form::x%0A")
    assert json.loads(render_findings([HOSTILE], "json"))[0]["message"] == HOSTILE.message


@pytest.mark.parametrize("style", ["rich", "json", "github"])
def test_exit_codes(
    root: Path, victim: Path, world: Bundle, capsys: pytest.CaptureFixture[str], style: str
) -> None:
    command = ["validate", str(root), "--bundle", str(world.path), "--format", style]
    assert main(command) == 0
    victim.unlink()
    assert main(command) == 3
    victim.write_text("{}")
    assert main(command) == 1
    assert "Traceback" not in capsys.readouterr().err
