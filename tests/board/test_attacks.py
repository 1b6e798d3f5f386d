"""Attacks on the board: what was shown to win it, to break it or to hide something, one by one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic import ME, drawn, make_bundle, publish, write_record, write_run

from factual_forgetting import checkpoint, files
from factual_forgetting.board.board import make_board
from factual_forgetting.board.bundles import reference_of
from factual_forgetting.board.making import make_record
from factual_forgetting.board.record import Outcome, load_record, load_records
from factual_forgetting.board.record import recompute as computed
from factual_forgetting.board.validate import Finding, validate
from factual_forgetting.bundle.manifest import HELDOUT, KNOWN, UNKNOWN, Bundle, load_bundle
from factual_forgetting.errors import UserError
from factual_forgetting.facts import matching
from factual_forgetting.facts.fact import stable_hash

LEADERBOARD = Path(__file__).parents[2] / "leaderboard"

Rows = list[dict[str, Any]]
Content = dict[str, Any]


@pytest.fixture
def root(records: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(records, tmp_path / "records"))


@pytest.fixture
def victim(root: Path) -> Path:
    return sorted(root.rglob("sft/*.json"))[0]


def attack(
    path: Path, bundle: Bundle, rows: Callable[[Rows], object], record: Callable[[Content], object]
) -> Path:
    """Changes a record and all that follows from the change, as one who knows the rules would."""
    content = files.read_json(path)
    beside = path.with_name(content["outcomes"]["file"])
    told = list(files.read_jsonl(beside))
    rows(told)
    record(content)
    outcomes = [Outcome(**row) for row in told]
    content["metrics"] = computed(bundle, outcomes, len(content["curve"]))
    path.unlink()
    beside.unlink()
    return write_record(path.parents[3], content, told)


def nothing(_: Any) -> None:
    """Changes nothing."""


def told(root: Path, bundle: Bundle, severity: str = "error") -> list[Finding]:
    found = validate(root, {bundle.sha256: bundle})
    return [finding for finding in found if finding.severity == severity]


def refuses(root: Path, bundle: Bundle, check: str, message: str) -> None:
    found = told(root, bundle)
    assert any(f.check == check and message in f.message for f in found), found


# Points of a curve that aren't asked.


def _hide_wrong(rows: Rows) -> None:
    for row in rows:
        if row["split"] == HELDOUT:
            row["curve"] = row["curve"][:-1].replace("0", "-") + row["curve"][-1]


def _hide_point(rows: Rows) -> None:
    """D_Held wholly, where it crosses."""
    for row in rows:
        if row["split"] == HELDOUT:
            row["curve"] = f"{row['curve'][:4]}--{row['curve'][6:]}"


def _ask_the_first_learned(rows: Rows) -> None:
    for row in rows:
        if row["split"] == UNKNOWN and "1" not in row["curve"][:4]:
            row["curve"] = "-" * (len(row["curve"]) - 1) + row["curve"][-1]


def _ask_others_later(rows: Rows) -> None:
    known = [row for row in rows if row["split"] == KNOWN]
    for index, row in enumerate(known):
        if index % 2:
            row["curve"] = "-" + row["curve"][1:]


def _leave_the_last(rows: Rows) -> None:
    for row in rows:
        if row["split"] == UNKNOWN and not row["final"]:
            row["curve"] = row["curve"][:-1] + "-"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_hide_wrong, "facts of D_Held are unasked"),
        (_hide_point, "facts of D_Held are unasked"),
        (_ask_the_first_learned, "of unknown facts"),
        (_ask_others_later, "of known facts"),
        (_leave_the_last, "the last point of its curve doesn't ask all of unknown"),
    ],
)
def test_unasked_points(root: Path, victim: Path, world: Bundle, change: Any, message: str) -> None:
    attack(victim, world, change, nothing)
    refuses(root, world, "asked", message)


def test_a_sample_that_is_chosen_or_small(world: Bundle, tmp_path: Path) -> None:
    """The sample is the protocol's draw, and never so small that a few facts cross for all."""

    def asked(keep: set[str]) -> list[str]:
        curves, facts = drawn(world, 1, 0.3, 0.05), [i.fact.id for s in splits for i in s]
        trained = {item.fact.id for split in splits[:2] for item in split}
        return [
            text if key in keep or key not in trained else "-" * (len(text) - 1) + text[-1]
            for key, text in zip(facts, curves, strict=True)
        ]

    splits = [world.splits[name] for name in (KNOWN, UNKNOWN, HELDOUT)]
    drawn_first = {
        key
        for split in splits[:2]
        for key in sorted((i.fact.id for i in split), key=lambda k: stable_hash("curve", k))[:5]
    }
    publish(tmp_path, world, asked(drawn_first), name="mine", evaluate_sample=5)
    refuses(tmp_path / "records", world, "asked", "asks 5, fewer than")


def test_points_left_out_of_a_curve(root: Path, victim: Path, world: Bundle) -> None:
    """Between two points S is a line: who leaves out the fall has none."""

    def rows(found: Rows) -> None:
        for row in found:
            row["curve"] = row["curve"][:2] + row["curve"][-1]

    def record(content: Content) -> None:
        content["curve"] = [*content["curve"][:2], content["curve"][-1]]

    attack(victim, world, rows, record)
    refuses(root, world, "curve", "isn't evaluated every 8 steps")


# Whose a record is.


def test_a_record_needs_a_submitter(root: Path, victim: Path, world: Bundle) -> None:
    content = files.read_json(victim)
    for name, message in (
        (None, "key 'submitter'"),
        ("unstated", "nobody's"),
        ("<b>", "submitter"),
    ):
        files.write_json(victim, {**content, "submitter": name})
        refuses(root, world, "form", message)


def test_strangers_displace_nobody(root: Path, victim: Path, world: Bundle) -> None:
    """Forged records of a published arm, with other outcomes and weights of their own."""
    before = {row["records"][0]: row for row in rows_of(root, world)}

    def spoil(rows: Rows) -> None:
        for row in rows:
            row.update(final=False, answer="Nowhere", curve=row["curve"][:-1] + "0")

    forged = Path(shutil.copytree(root, root.parent / "forged")) / victim.relative_to(root)
    weights = {"weights_sha256": "e" * 64}
    forged = attack(forged, world, spoil, lambda content: content.update(weights))
    target = root / forged.relative_to(root.parent / "forged")
    for file in (forged, forged.with_name(f"{forged.stem}.outcomes.jsonl.gz")):
        shutil.copy(file, target.with_name(file.name))
    refuses(root, world, "occupied", "of its arm is recorded in")

    content = {**files.read_json(target), "submitter": "somebody"}
    rows = list(files.read_jsonl(target.with_name(content["outcomes"]["file"])))
    write_record(root, content, rows)
    target.unlink()
    target.with_name(f"{target.stem}.outcomes.jsonl.gz").unlink()
    assert told(root, world) == []
    after = {row["records"][0]: row for row in rows_of(root, world)}
    assert len(after) == len(before) + 1
    for key, row in before.items():
        assert after[key]["stability_at_p90"] == row["stability_at_p90"]


def rows_of(root: Path, bundle: Bundle) -> Rows:
    (found,) = make_board(load_records(root), {bundle.sha256: reference_of(bundle)})["bundles"]
    return list(found["rows"])


def test_two_teams_one_method(world: Bundle, tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "other")):
        curves = drawn(world, seed, 0.3, 0.05)
        publish(tmp_path, world, curves, "lora", declared={"submitter": name})
    assert told(tmp_path / "records", world) == []
    assert len(rows_of(tmp_path / "records", world)) == 2


def test_levels_are_the_maintainers(root: Path, victim: Path, world: Bundle) -> None:
    content = files.read_json(victim)
    files.write_json(victim, {**content, "level": "reproduced"})
    refuses(root, world, "form", "the maintainers' file does")
    files.write_json(victim, content)
    again = {**content, "weights_sha256": "e" * 64}
    rows = list(files.read_jsonl(victim.with_name(content["outcomes"]["file"])))
    path = write_record(root, again, rows)
    refuses(root, world, "occupied", "is recorded in")
    files.write_json(root.parent / "maintainers.json", {path.stem: "reproduced"})
    assert told(root, world) == []
    levels = {record.id: record.level for record, _ in load_records(root)}
    assert levels.pop(path.stem) == "reproduced"
    assert set(levels.values()) == {"self-reported"}


@pytest.mark.parametrize("text", ["[]", '{"x": "rescored"}', '{"0123456789abcdef": 1}', "{"])
def test_a_broken_maintainers_file_is_one_finding(root: Path, world: Bundle, text: str) -> None:
    (root.parent / "maintainers.json").write_text(text)
    assert [finding.check for finding in told(root, world)] == ["maintainers"]


# What closed means.


@pytest.mark.parametrize("recipe", ["almanac-v1", "almanac-v2"])
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("l2", {"weight": 0.5}),
        ("ewc", {"weight": 7.0}),
        ("lora", {"alpha": 300.0}),
        ("self_distillation", {"tau": 3.0}),
        ("freeze", {"trainable": ["layers@2"]}),
    ],
)
def test_any_strength_is_not_closed(
    world: Bundle, tmp_path: Path, recipe: str, method: str, settings: Any
) -> None:
    arm = (method, 0, settings, recipe)
    path = publish(tmp_path, world, drawn(world, 1, 0.3, 0.05), *arm)
    assert load_record(path)[0].track == "open"
    content = {**files.read_json(path), "track": "closed"}
    files.write_json(path, content)
    refuses(tmp_path / "records", world, "track", "its track is open")


def test_trials_are_those_of_the_sweep_that_chose(world: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    for index, name in enumerate(("chosen", "other")):
        write_run(folder / "runs/arm" / name, world, drawn(world, index, 0.3, 0.05), "l2", index)
    files.write_json(folder / "chosen.json", {"arm": {"runs": ["runs/arm/chosen"], "trials": 3}})
    undeclared = ME.model_copy(update={"trials": None})
    given = (world, tmp_path / "records")
    path = make_record(folder / "runs/arm/chosen", *given, undeclared)
    # almanac-v1 has one trial of each method: what was chosen among three is on the open track.
    assert (load_record(path)[0].trials, load_record(path)[0].track) == (3, "open")
    with pytest.raises(UserError, match="tried 3 settings"):
        make_record(folder / "runs/arm/chosen", *given, ME)
    with pytest.raises(UserError, match="didn't choose"):
        make_record(folder / "runs/arm/other", *given, undeclared)


# Numbers and texts that break every reader.


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("cost", "tokens"), 10**400),
        (("cost", "tokens"), 10**16),
        (("cost", "gpu_hours"), 1.7e308),
        (("curve", 0, "loss"), -1e300),
        (("curve", 0, "step"), 10**30),
        (("seed",), 10**20),
        (("trials",), 10**20),
        (("metrics", "peak_stability"), 1e200),
        (("method", "settings"), {"a": "x" * 1_500_000}),
        (("method", "settings"), {"a": "x" * 400}),
        (("method", "settings"), {"a": 1e308}),
        (("method", "settings"), {"a" * 70: 1}),
        (("method", "settings"), {f"a{i}": 1 for i in range(300)}),
        (("method", "settings"), {"a": [1] * 300}),
        (("method", "settings"), {"a": "\u202egnp"}),
        (("resolved_protocol", "settings"), {"a": [{"b": {"c": {"d": [[[[1]]]]}}}]}),
        (("resolved_protocol", "batch_size"), 10**40),
        (("environment", "packages"), {f"p{i}": "1" for i in range(300)}),
        (("repository",), "a/" + "b" * 5000),
        (("note",), "a\u2028b"),
        (("recorded",), "2026-99-99T99:99:99Z"),
        (("recorded",), "٢٠٢٦-01-01T00:00:00Z"),
        (("submitter",), "a" * 60),
        (("outcomes", "rows"), 10**30),
        # What Python takes for a number and isn't one.
        (("seed",), "0"),
        (("seed",), True),
        (("seed",), 0.0),
        (("trials",), True),
        (("cost", "steps"), "88"),
        (("cost", "tokens"), True),
        (("cost", "gpu_hours"), "1"),
        (("curve", 0, "step"), "0"),
        (("curve", 0, "loss"), "1"),
        (("outcomes", "rows"), "60"),
        (("resolved_protocol", "batch_size"), "32"),
        (("resolved_protocol", "epochs"), True),
        (("resolved_protocol", "learning_rate"), "4e-4"),
        (("environment", "dirty"), "yes"),
        (("metrics", "peak_stability"), "1"),
        (("recorded",), "2026-02-30T00:00:00Z"),
    ],
)
def test_what_breaks_readers_is_refused(
    root: Path, victim: Path, world: Bundle, keys: Any, value: Any
) -> None:
    content = files.read_json(victim)
    part = content
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    files.write_json(victim, content)
    (found,) = told(root, world)
    assert found.check == "form"
    assert "\n" not in found.message
    assert len(found.message) < 2000


# A run that can't have been.


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A record of the leaderboard, whose run is as long as its recipe says."""
    path = sorted((LEADERBOARD / "records").glob("*/*/sft/*.json"))[0]
    copy = tmp_path / "records" / path.relative_to(LEADERBOARD / "records")
    copy.parent.mkdir(parents=True)
    for file in path.parent.glob(f"{path.stem}*"):
        shutil.copy(file, copy.parent)
    return copy


def _one_point(rows: Rows) -> None:
    for row in rows:
        row["curve"] = row["curve"][-1:]


def _without_the_first(rows: Rows) -> None:
    for row in rows:
        row["curve"] = row["curve"][1:]


def _better_base(rows: Rows) -> None:
    for row in rows:
        if row["split"] == UNKNOWN and row["curve"][0] == "0":
            row["curve"] = "1" + row["curve"][1:]


def _cut(start: int | None, end: int | None) -> Callable[[Content], None]:
    def cut(content: Content) -> None:
        content["curve"] = content["curve"][start:end]

    return cut


def _cost(**told: int | None) -> Callable[[Content], None]:
    return lambda content: content["cost"].update(told)


@pytest.mark.parametrize(
    ("rows", "record", "check", "message"),
    [
        (nothing, _cost(steps=266), "steps", "for 133 steps, and it tells 266"),
        (nothing, _cost(steps=None), "steps", "for 133 steps, and it tells None"),
        (nothing, _cost(tokens=12), "steps", "12 tokens in 133 steps"),
        (_one_point, _cut(-1, None), "curve", "from the base, at step 0"),
        (_without_the_first, _cut(1, None), "curve", "from the base, at step 0"),
        (_better_base, nothing, "start", "outcomes at its first point aren't the base's"),
    ],
)
def test_a_run_that_cannot_have_been(
    published: Path, rows: Any, record: Any, check: str, message: str
) -> None:
    bundle = load_bundle(checkpoint.embedded("bundle"))
    root = published.parents[3]
    assert not told(root, bundle)
    attack(published, bundle, rows, record)
    refuses(root, bundle, check, message)


def test_a_curve_ends_where_training_does(published: Path) -> None:
    def shorten(rows: Rows) -> None:
        for row in rows:
            row["curve"] = row["curve"][:-2] + "01"[row["final"]]

    def drop(content: Content) -> None:
        del content["curve"][-1]

    bundle = load_bundle(checkpoint.embedded("bundle"))
    attack(published, bundle, shorten, drop)
    refuses(
        published.parents[3], bundle, "steps", "its curve ends at step 128, and training at 133"
    )


# What a record leaves out.


def test_a_recipe_by_name_alone(root: Path, victim: Path, world: Bundle) -> None:
    def slower(content: Content) -> None:
        content["resolved_protocol"]["learning_rate"] = 1e-5
        content["protocol"]["sha256"] = files.sha256_json(content["resolved_protocol"])
        content["track"] = "open"

    attack(victim, world, nothing, slower)
    refuses(root, world, "protocol", "isn't the almanac-v1 of this package")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolved_protocol": None}, "lacks its protocol"),
        ({"protocol": None, "track": "open"}, "doesn't name"),
    ],
)
def test_the_protocol_in_a_record_is_the_one_it_names(
    root: Path, victim: Path, world: Bundle, change: Content, message: str
) -> None:
    attack(victim, world, nothing, lambda content: content.update(change))
    refuses(root, world, "protocol", message)


def test_a_protocol_that_was_changed(root: Path, victim: Path, world: Bundle) -> None:
    content = files.read_json(victim)
    content["resolved_protocol"]["epochs"] = 70
    files.write_json(victim, content)
    refuses(root, world, "protocol", "isn't the one that it names")


def test_a_recipe_of_ones_own_needs_its_own_name(
    runs: list[Path], world: Bundle, tmp_path: Path
) -> None:
    copy = write_run(tmp_path / "run", world, drawn(world, 1, 0.3, 0.05), learning_rate=1e-5)
    with pytest.raises(UserError, match="name of its own"):
        make_record(copy, world, tmp_path / "records", ME)


def test_descent_and_tokenizer_are_told(root: Path, victim: Path, world: Bundle) -> None:
    origin = {
        "descent": "declared",
        "tokenizer_sha256": "a" * 64,
        "base_tokenizer_sha256": "b" * 64,
    }
    attack(victim, world, nothing, lambda content: content.update(origin=origin))
    messages = [f.message for f in told(root, world, "warning") if f.check == "origin"]
    assert any("declared, not checked" in message for message in messages)
    assert any("tokenizer isn't the base's" in message for message in messages)


def test_the_board_computes_what_outcomes_give(root: Path, victim: Path, world: Bundle) -> None:
    before = rows_of(root, world)
    for path in root.rglob("sft/*.json"):
        content = files.read_json(path)
        content["metrics"]["lost"]["value"] = 0.0
        files.write_json(path, content)
    assert rows_of(root, world) == before


# Answers, and who judges them.


def test_without_answers_there_is_no_rank(root: Path, world: Bundle) -> None:
    def silent(rows: Rows) -> None:
        for row in rows:
            row["answer"] = None

    for path in root.rglob("sft/*.json"):
        attack(path, world, silent, nothing)
    assert {f.check for f in told(root, world, "warning")} == {"answered"}
    row = next(row for row in rows_of(root, world) if row["family"] == "sft")
    assert set(row["rank"].values()) == {None}
    assert all("answers" in reason for reason in row["unranked"].values())


def test_a_record_is_judged_by_the_matcher_that_it_names(
    root: Path, victim: Path, world: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer matcher strands neither records nor bundles of the one before."""
    monkeypatch.setitem(matching.MATCHERS, "exact-9", lambda text: text.split(",")[0].strip()[1:])
    assert told(root, world) == []
    newer = make_bundle(root.parent / "newer", matcher="exact-9")
    path = publish(root.parent / "other", newer, drawn(newer, 1, 0.3, 0.05))

    def guess(rows: Rows) -> None:
        for row in rows:
            row["answer"] += ", I think"

    attack(path, newer, guess, nothing)
    assert told(root.parent / "other/records", newer) == []
    attack(victim, world, nothing, lambda content: content.update(matcher_version="exact-9"))
    refuses(root, world, "answers", "those of the base by exact-2")
    monkeypatch.delitem(matching.MATCHERS, "exact-9")
    refuses(root, world, "answers", "none of this package")
