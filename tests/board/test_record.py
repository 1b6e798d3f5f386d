import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import ME, drawn, publish

from factual_forgetting import files
from factual_forgetting.board.bundles import make_official, official, reference_of
from factual_forgetting.board.form import IDENTITY, Record, record_id, slug
from factual_forgetting.board.making import Declared, make_record
from factual_forgetting.board.record import find_records, load_record
from factual_forgetting.board.validate import Finding, validate
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.cli import main
from factual_forgetting.errors import UserError

LEADERBOARD = Path(__file__).parents[2] / "leaderboard"

# Fields that describe a result without making it another one.
DESCRIPTION = {
    "format", "id", "base", "resolved_protocol", "track", "trials", "level", "repository",
    "metrics", "curve", "cost", "environment", "origin", "training_data", "note", "recorded", "url",
}  # fmt: skip


def errors(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == "error"]


def test_every_field_is_identity_or_declared_outside_it() -> None:
    assert set(IDENTITY) | DESCRIPTION == set(Record.model_fields)
    assert not set(IDENTITY) & DESCRIPTION


GOLDEN = {
    "bundle_sha256": "a" * 64,
    "weights_sha256": "b" * 64,
    "method": {"name": "sft", "settings": {"tau": 0.5}},
    "protocol": {"name": "paper-v1", "sha256": "c" * 64},
    "seed": 3,
    "outcomes": {"file": "x", "sha256": "d" * 64, "rows": 5},
}
NOW = {"submitter": "me", "matcher_version": "exact-2"}


@pytest.mark.parametrize(
    ("change", "identifier"),
    [
        ({}, "a546b98fd34caa45"),
        ({"seed": None}, "37161b38d4ff0fdb"),
        ({"protocol": None, "weights_sha256": None}, "2c869ccb64b5fe6c"),
        ({"method": {"name": "sft", "settings": {}}}, "85595488224099d1"),
        (NOW, "12a709797ac714de"),
        ({**NOW, "submitter": "other"}, "aedf342ee6be83f3"),
        ({**NOW, "matcher_version": "exact-3"}, "356c78572365c891"),
        ({**NOW, "style": "factual_forgetting", "trained": True}, "12a709797ac714de"),
        ({**NOW, "style": "factual_forgetting_chat"}, "110345a9e29cb774"),
        ({**NOW, "trained": False}, "a8d0366f56190075"),
    ],
)
def test_identity_is_golden(change: dict[str, Any], identifier: str) -> None:
    assert record_id({**GOLDEN, **change}) == identifier


def test_dates_rows_and_names_are_outside_the_identity() -> None:
    other = {**GOLDEN, "outcomes": {**GOLDEN["outcomes"], "file": "y"}, "recorded": "later"}
    assert record_id(other) == record_id(GOLDEN)


def test_the_schema_is_the_form_s() -> None:
    assert files.read_json(LEADERBOARD / "schema.json") == Record.model_json_schema()


@pytest.mark.parametrize("name", ["../../etc", "a/b/..", "<script>", "", "/", "x\n y", "é"])
def test_a_slug_is_a_plain_folder(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]+", slug(name))


def test_results_and_run_give_the_same_metrics(
    bundle: Bundle, results: Path, sft: Path, tmp_path: Path
) -> None:
    of_run, of_results = (
        make_record(one, bundle, tmp_path / one.name, ME) for one in (sft, results)
    )
    run, scored = files.read_json(of_run), files.read_json(of_results)
    assert run["metrics"] == scored["metrics"]
    assert run["weights_sha256"] == scored["weights_sha256"]
    assert scored["environment"]["packages"]["lm_eval"]
    assert [row.final for row in load_record(of_run)[1]] == [
        row.final for row in load_record(of_results)[1]
    ]


def test_answers_travel_with_a_scored_record(bundle: Bundle, results: Path, tmp_path: Path) -> None:
    path = make_record(results, bundle, tmp_path / "records", ME)
    assert all(row.answer is not None for row in load_record(path)[1])
    found = errors(validate(tmp_path / "records", {bundle.sha256: bundle}))
    # What the fixture's base knows was drawn at random.
    assert [one.check for one in found] == ["start"]


def test_a_record_says_how_it_was_made(world: Bundle, runs: list[Path], tmp_path: Path) -> None:
    declared = Declared(submitter="me", note="first", trials=4)
    content = files.read_json(make_record(runs[-1], world, tmp_path, declared))
    assert content["method"] == {"name": "self_distillation", "settings": {"tau": 1.0}}
    assert content["seed"] == 2
    assert (content["track"], content["trials"], content["note"]) == ("open", 4, "first")
    assert content["cost"] == {
        "steps": 88, "tokens": 99, "extra_tokens": 11, "extra_data": 0, "gpu_hours": None,
    }  # fmt: skip
    assert content["environment"]["dtype"] == "bfloat16"
    assert content["training_data"]["heldout"] == "excluded"
    assert [point["step"] for point in content["curve"]] == [*range(0, 89, 8)]


def test_a_declaration_is_written_or_refused(
    world: Bundle, runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs[1]  # sft, seed 1

    def record(**declared: Any) -> dict[str, Any]:
        told = Declared(submitter="me", **declared)
        return dict(files.read_json(make_record(run, world, tmp_path, told)))

    assert record(heldout="included")["training_data"]["heldout"] == "included"
    assert record(heldout="unknown")["training_data"]["heldout"] == "unknown"
    assert record()["training_data"]["heldout"] == "excluded"
    assert record(training_data="more")["training_data"]["heldout"] == "unknown"
    assert record(method="sft", seed=1)["seed"] == 1
    for declared in ({"method": "lora"}, {"seed": 2}, {"trained": False}):
        with pytest.raises(UserError, match="Leave out --"):
            record(**declared)
    argv = ["record", *map(str, runs[:2]), "--bundle", str(world.path), "--submitter", "me"]
    assert main([*argv, "--seed", "1", "--output_path", str(tmp_path)]) == 1
    assert "one by one" in capsys.readouterr().err


def test_recording_twice_writes_the_same_bytes_whenever(
    world: Bundle, runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_record(runs[0], world, tmp_path, ME)
    beside = path.with_name(files.read_json(path)["outcomes"]["file"])
    before = path.read_bytes(), beside.read_bytes()
    monkeypatch.setattr("time.gmtime", lambda: (2030, 1, 1, 0, 0, 0, 0, 1, 0))
    assert make_record(runs[0], world, tmp_path, ME) == path
    assert (path.read_bytes(), beside.read_bytes()) == before
    assert find_records(tmp_path) == [path]


def test_a_broken_record_is_written_again(world: Bundle, runs: list[Path], tmp_path: Path) -> None:
    path = make_record(runs[0], world, tmp_path, ME)
    path.write_text("{")
    make_record(runs[0], world, tmp_path, ME)
    assert load_record(path)[0].seed == 0


def test_an_empty_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no records"):
        find_records(tmp_path)


def test_changed_weights_are_not_recorded(world: Bundle, runs: list[Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(runs[0], tmp_path / "run"))
    (copy / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="changed after training"):
        make_record(copy, world, tmp_path / "records", ME)


def test_a_run_from_another_base_is_not_recorded(
    world: Bundle, runs: list[Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(runs[0], tmp_path / "run"))
    content = {**files.read_json(copy / "run.json"), "foreign_base": {"pretrained": "other"}}
    files.write_json(copy / "run.json", content)
    with pytest.raises(UserError, match="another base than the bundle's"):
        make_record(copy, world, tmp_path / "records", ME)


def test_results_that_nothing_explains_need_a_method(
    bundle: Bundle, results: Path, tmp_path: Path
) -> None:
    elsewhere = Path(shutil.copytree(results, tmp_path / "results"))
    (path,) = elsewhere.glob("results_*")
    content = files.read_json(path)
    content["config"]["model_args"] = {"pretrained": "somebody/model"}
    files.write_json(path, content)
    with pytest.raises(UserError, match="Say how it was made with --method"):
        make_record(elsewhere, bundle, tmp_path / "records", ME)
    declared = Declared(submitter="me", method="my_method", seed=3)
    with pytest.raises(UserError, match="whether it trained on D_train: --trained, --no-trained"):
        make_record(elsewhere, bundle, tmp_path / "records", declared)
    declared = declared.model_copy(update={"trained": True})
    path = make_record(elsewhere, bundle, tmp_path / "records", declared)
    found = validate(tmp_path / "records", {bundle.sha256: bundle})
    assert errors(found) == []
    told = {finding.check for finding in found}
    # Whether the checkout is clean decides about one more warning, `environment`.
    assert "declared" in told
    assert files.read_json(path)["training_data"]["heldout"] == "unknown"


def test_an_official_bundle_is_never_edited(world: Bundle, bundle: Bundle, tmp_path: Path) -> None:
    path = make_official(world, tmp_path, "v1")
    assert path == tmp_path / "almanac" / "v1" / "manifest.json"
    assert official(tmp_path) == {world.sha256: reference_of(world, "almanac/v1")}
    make_official(world, tmp_path, "v1")
    changed = {**files.read_json(path), "sha256": "0" * 64}
    files.write_json(path, changed)
    with pytest.raises(UserError, match="names another bundle"):
        make_official(world, tmp_path, "v1")
    with pytest.raises(UserError, match="not of the bundle"):
        official(tmp_path)


def test_reference_rows_by_hand(world: Bundle) -> None:
    # Answers are Answer 0..4 in turn, relations alternate: with 20 + 20 training facts each
    # relation has each answer 4 times; the tie goes to Answer 0, which 2 of the 10 held-out
    # facts of each relation have. The base answers all of D_Held.
    reference = reference_of(world)
    assert (reference.majority_micro, reference.majority_macro) == (0.2, 0.2)
    assert reference.base_stability["value"] == reference.base_macro == 1.0


@pytest.mark.parametrize(
    ("method", "settings", "changed", "track", "trials"),
    [
        ("sft", {}, {}, "closed", None),
        ("sft", {}, {"learning_rate": 1e-4}, "closed", 9),
        ("sft", {}, {"learning_rate": 1e-4}, "open", 10),
        (
            "sft",
            {},
            {"name": "mine", "learning_rate": 3e-4, "learning_rates": (3e-4,)},
            "open",
            None,
        ),
        ("sft", {}, {"name": "mine", "epochs": 31}, "open", None),
        ("self_distillation", {"weight": 5.0}, {"learning_rate": 1e-4}, "open", None),
        ("self_distillation", {"weight": 5.0}, {"learning_rate": 5e-5}, "closed", None),
        ("self_distillation", {"weight": 4.0}, {"learning_rate": 5e-5}, "open", None),
        ("self_distillation", {"tau": 2.0}, {"learning_rate": 5e-5}, "open", None),
        ("magic", {}, {}, "open", None),
    ],
)
def test_the_closed_track_is_a_recipe_at_one_of_its_trials(
    world: Bundle, tmp_path: Path, method: str, settings: Any, changed: Any, track: str, trials: Any
) -> None:
    arm = (method, 0, settings, "standard-v1")
    curves, declared = drawn(world, 1, 0.3, 0.1), {"trials": trials}
    record, _ = load_record(publish(tmp_path, world, curves, *arm, declared=declared, **changed))
    assert (record.track, record.trials) == (track, trials)
    assert errors(validate(tmp_path / "records", {world.sha256: world})) == []


def test_checkpoints_of_any_trainer_are_one_curve(
    bundle: Bundle, results: Path, sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from factual_forgetting.board import making as module

    def read(path: Path, *_: Any) -> Any:
        """The same answers, as of a checkpoint that no run tells of."""
        return replace(found, path=path, pretrained=f"/nowhere/{path.name}")

    found = module.read_results(results, bundle)
    monkeypatch.setattr(module, "read_results", read)
    declared = Declared(submitter="me", method="own", method_args={"rank": 8}, seed=1, trials=1)
    sources = [tmp_path / f"step-{step}" for step in (20, 9)]
    path = module.record_curve(sources, bundle, tmp_path / "records", declared)
    content = files.read_json(path)
    assert [point["step"] for point in content["curve"]] == [0, 9, 20]
    assert content["method"] == {"name": "own", "settings": {"rank": 8}}
    assert content["metrics"]["plasticity"] is not None
    assert errors(validate(tmp_path / "records", {bundle.sha256: bundle})) == []
    with pytest.raises(UserError, match="two or more"):
        module.record_curve(sources[:1], bundle, tmp_path / "records", declared)
