import itertools
import multiprocessing
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factual_forgetting import files
from factual_forgetting.bundle.manifest import HELDOUT, Bundle
from factual_forgetting.cli import main
from factual_forgetting.errors import UserError
from factual_forgetting.mechanism.conditions import Condition, Experiment, Settings, held_facts
from factual_forgetting.mechanism.findings import findings
from factual_forgetting.mechanism.interference import finished_conditions, run_condition
from factual_forgetting.mechanism.interference_report import arms_table, draw_all, write_report
from factual_forgetting.protocol.recipe import Protocol

NAMES = Condition(keys="name", facts=20)


@pytest.fixture(scope="session")
def settings(protocol: Protocol) -> Settings:
    return Settings(relation="country", protocol=protocol, plasticity=0.5, most_passes=30)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("interference")


@pytest.fixture(scope="session")
def named(bundle: Bundle, settings: Settings, root: Path) -> dict[str, Any]:
    return run_condition(bundle, NAMES, settings, root, progress=False)


def test_training_ends_where_enough_is_learned(named: dict[str, Any]) -> None:
    plasticities = [point["plasticity"] for point in named["points"]]
    assert plasticities[-1] >= 0.5
    assert all(value < 0.5 for value in plasticities[:-1])


def test_a_given_number_of_passes_is_trained_in_any_case(
    bundle: Bundle, settings: Settings, root: Path
) -> None:
    brief = NAMES.model_copy(update={"passes": 2, "mixed": False})
    points = run_condition(bundle, brief, settings, root, progress=False)["points"]
    assert points[-1]["passes"] == pytest.approx(2, rel=0.2)


def test_points_hold_every_outcome_and_drift(named: dict[str, Any], bundle: Bundle) -> None:
    held = bundle.splits[HELDOUT]
    same = sum(item.fact.relation == "country" for item in held)
    for point in named["points"]:
        assert len(point["outcomes"]["same"]) == same
        assert len(point["outcomes"]["other"]) == len(held) - same
        assert point["stability"] == point["outcomes"]["same"].count("1") / same
        assert len(point["drift"]["same"]["cosine"]) == named["layers"] == 3
    assert named["points"][0]["drift"]["same"]["cosine"] == [0, 0, 0]
    assert named["points"][-1]["drift"]["same"]["cosine"][-1] > 0
    assert len(named["held"]) == same


def test_a_finished_condition_trains_no_more(
    named: dict[str, Any],
    bundle: Bundle,
    settings: Settings,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("factual_forgetting.mechanism.interference._train", None)
    assert run_condition(bundle, NAMES, settings, root) == named


def test_another_experiment_in_the_same_place_is_refused(
    named: dict[str, Any], bundle: Bundle, settings: Settings, root: Path
) -> None:
    other = settings.model_copy(update={"most_passes": 31})
    with pytest.raises(UserError, match="settings differ"):
        run_condition(bundle, NAMES, other, root)


def test_what_was_trained_further_serves_a_lower_plasticity(
    named: dict[str, Any], bundle: Bundle, settings: Settings, root: Path, tmp_path: Path
) -> None:
    lower = settings.model_copy(update={"plasticity": 0.2})
    served = run_condition(bundle, NAMES, lower, root)
    assert served == run_condition(bundle, NAMES, lower, tmp_path, progress=False)
    assert len(served["points"]) < len(named["points"])
    assert served in finished_conditions([bundle], lower, root)


def test_what_was_trained_less_is_refused_and_left_out(
    named: dict[str, Any], bundle: Bundle, settings: Settings, root: Path
) -> None:
    higher = settings.model_copy(update={"plasticity": 0.8})
    with pytest.raises(UserError, match=r"until a plasticity of 0.5 only.*delete it"):
        run_condition(bundle, NAMES, higher, root)
    assert named not in finished_conditions([bundle], higher, root)


def test_finished_conditions_come_in_the_order_of_the_tables(
    named: dict[str, Any], bundle: Bundle, settings: Settings, tmp_path: Path
) -> None:
    varied: list[dict[str, Any]] = [
        {"keys": "name"},
        {"keys": "name", "seed": 1},
        {"keys": "identifier"},
        {"keys": "name", "method": "self_distillation"},
        {"keys": "name", "facts": 1000},
        {"keys": "name", "values": "new", "facts": 5},
        {"keys": "name", "mixed": False, "facts": 5},
        {"keys": "name", "passes": 2, "facts": 5},
    ]
    conditions = [Condition(**{"facts": 20, **told}) for told in varied]
    for condition in reversed(conditions):
        name = f"{condition.arm}-{condition.seed}.json"
        row = {**named, "condition": condition.model_dump(mode="json")}
        files.write_json(tmp_path / "conditions" / name, row)
    found = finished_conditions([bundle], settings, tmp_path)
    assert [Condition(**result["condition"]) for result in found] == conditions
    other = replace(bundle, manifest={**bundle.manifest, "sha256": "f" * 64})
    assert finished_conditions([other], settings, tmp_path) == []


def test_the_same_condition_twice_is_the_same(
    named: dict[str, Any], bundle: Bundle, settings: Settings, tmp_path: Path
) -> None:
    assert run_condition(bundle, NAMES, settings, tmp_path, progress=False) == named


def test_killed_and_resumed_it_is_the_same(
    named: dict[str, Any], bundle: Bundle, settings: Settings, tmp_path: Path
) -> None:
    points = tmp_path / "work" / Experiment(bundle, NAMES, settings).name / "points.jsonl"
    worker = multiprocessing.get_context("spawn").Process(
        target=run_condition, args=(bundle, NAMES, settings, tmp_path)
    )
    worker.start()
    while worker.is_alive() and not (points.exists() and len(list(files.read_jsonl(points))) > 2):
        time.sleep(0.01)
    worker.kill()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    assert run_condition(bundle, NAMES, settings, tmp_path, progress=False) == named


def test_distillation_keeps_the_states_nearer(
    named: dict[str, Any], bundle: Bundle, settings: Settings, root: Path
) -> None:
    condition = NAMES.model_copy(update={"method": "self_distillation"})
    distilled = run_condition(bundle, condition, settings, root, progress=False)
    drifts = [result["points"][3]["drift"]["same"]["cosine"][-1] for result in (distilled, named)]
    assert drifts[0] < drifts[1]


def made(
    bundle: Bundle, settings: Settings, keys: str, seed: int, curve: list[str], **told: Any
) -> Any:
    """A result with given outcomes of the same relation; half is learned at each point."""
    held = held_facts(bundle, "country")
    rng = np.random.default_rng(seed)
    return {
        "bundle_sha256": bundle.sha256,
        "condition": Condition(keys=keys, facts=8, seed=seed, **told).model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
        "parameters": 1000,
        "layers": 3,
        "middle": 1,
        "bits": 40.0,
        "keys": {"tokens": 3.0, "rank": 9.0, "dropped": 1},
        "held": [{"id": f.id, "tokens": 3, "nearness": float(rng.random())} for f in held["same"]],
        "points": [
            {
                "step": index,
                "passes": index / 2,
                "plasticity": 0.25 * index,
                "outcomes": {"same": text, "other": "1" * len(held["other"])},
                "drift": {
                    name: {"cosine": [0.0, 0.1 * index, 0.2 * index], "cka": [1, 1, 1]}
                    for name in ("same", "other")
                },
            }
            for index, text in enumerate(curve)
        ],
    }


def test_forgetting_is_counted_from_the_peak_at_equal_plasticity(
    bundle: Bundle, settings: Settings
) -> None:
    n = len(held_facts(bundle, "country")["same"])
    half = n // 2
    curve = ["0" + "1" * (n - 1), "1" * n, "0" * half + "1" * (n - half), "0" * n]
    results = [made(bundle, settings, "name", seed, curve) for seed in (0, 1)]
    flat = [made(bundle, settings, "identifier", seed, ["1" * n] * 4) for seed in (0, 1)]
    found = findings([*results, *flat], {bundle.sha256: bundle}, 0.625)
    name, identifier = found["arms"]
    # P is .625 half way between the points 2 and 3; the peak is at the point 1.
    expected = (half / n + 1.0) / 2
    assert name["at_level"]["same"]["value"] == pytest.approx(expected)
    assert name["at_level"]["same"]["seeds"] == pytest.approx([expected, expected])
    assert name["at_level"]["other"]["value"] == 0
    assert name["at_level"]["passes"] == 1.25
    assert name["at_level"]["drift"]["same"] == pytest.approx(0.25)
    assert name["share_of_capacity"] == 40 / 2000
    assert identifier["at_level"]["same"]["value"] == 0
    (contrast,) = found["contrasts"]
    told = [contrast[name] for name in ("differing", "more", "than")]
    assert told == ["keys", "name", "identifier"]
    assert contrast["value"] == pytest.approx(expected)
    assert contrast["low"] > 0


def test_contrasts_are_of_conditions_that_differ_in_one_thing_over_common_seeds(
    bundle: Bundle, settings: Settings
) -> None:
    n = len(held_facts(bundle, "country")["same"])
    kept, lost = ["1" * n] * 4, ["1" * n, "1" * n, "0" * n, "0" * n]
    results = [
        made(bundle, settings, "name", 0, lost),
        made(bundle, settings, "name", 1, kept),
        made(bundle, settings, "name", 0, kept, method="self_distillation"),
        made(bundle, settings, "name", 0, kept, values="new"),
        made(bundle, settings, "identifier", 0, kept, values="new"),
        made(bundle, settings, "name", 0, kept, passes=3),
    ]
    contrasts = findings(results, {bundle.sha256: bundle}, 0.5)["contrasts"]
    told = [[row[name] for name in ("differing", "more", "than", "value")] for row in contrasts]
    assert told == [
        ["method", "sft", "self_distillation", 1.0],
        ["values", "real", "new", 1.0],
        ["keys", "name", "identifier", 0.0],
    ]
    assert all(row["seeds"] == [0] for row in contrasts)


def test_abstentions_are_told_apart(bundle: Bundle, settings: Settings) -> None:
    n = len(held_facts(bundle, "country")["same"])
    curve = ["1" * n, "1" * n, "0" * (n // 2) + "a" * (n - n // 2)]
    results = [made(bundle, settings, "name", 0, curve, passes=1)]
    (arm,) = findings(results, {bundle.sha256: bundle}, 0.5)["arms"]
    assert arm["at_end"]["same"]["value"] == 1
    assert arm["at_end"]["abstained"]["same"] == pytest.approx((n - n // 2) / n)
    assert arm["at_end"]["abstained"]["other"] == 0


def test_an_answered_abstention_is_marked(bundle: Bundle, settings: Settings, root: Path) -> None:
    declining = NAMES.model_copy(update={"values": "abstention", "passes": 30, "mixed": False})
    last = run_condition(bundle, declining, settings, root, progress=False)["points"][-1]
    assert last["plasticity"] == 1  # half of the passes are too few on some processors
    assert "a" in last["outcomes"]["same"]


def test_a_level_that_a_seed_never_reaches_is_missing(bundle: Bundle, settings: Settings) -> None:
    n = len(held_facts(bundle, "country")["same"])
    results = [
        made(bundle, settings, "name", 0, ["1" * n] * 4),
        made(bundle, settings, "name", 1, ["1" * n] * 2),
    ]
    (arm,) = findings(results, {bundle.sha256: bundle}, 0.5)["arms"]
    assert arm["at_level"] is None
    assert arm["overlap"] is None
    assert arm["at_end"]["plasticity"] == pytest.approx((0.75 + 0.25) / 2)


def test_bases_of_several_sizes_are_compared_by_share_of_capacity(
    bundle: Bundle, settings: Settings, tmp_path: Path
) -> None:
    larger = replace(bundle, manifest={**bundle.manifest, "sha256": "f" * 64})
    n = len(held_facts(bundle, "country")["same"])
    curves = {"name": ["1" * n, "1" * n, "0" * n], "identifier": ["1" * n] * 3}
    results = [made(bundle, settings, keys, 0, curve) for keys, curve in curves.items()]
    results.append({**made(larger, settings, "name", 0, curves["name"]), "parameters": 4_000})
    found = findings(results, {b.sha256: b for b in (bundle, larger)}, 0.5)
    draw_all(found, tmp_path)
    write_report(found, [bundle, larger], settings, tmp_path)
    assert {path.stem for path in tmp_path.glob("c*.png")} == {"capacity"}
    assert arms_table(found["arms"], 0.5).splitlines()[-1].split("|")[1].strip() == "0.00 M"
    text = (tmp_path / "report.md").read_text()
    assert "at most 2.00% of capacity" in text
    assert "differ by up to 1.000" in text
    assert "5.00e-03" in text


@pytest.fixture(scope="session")
def reported(
    bundle: Bundle, protocol: Protocol, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], Path]:
    folder = tmp_path_factory.mktemp("reported")
    recipe = folder / "test.yaml"
    recipe.write_text(files.dumps(protocol.model_dump(mode="json")))
    shorter = shutil.copytree(bundle.path, folder / "bundle")
    asked = f"--bundle {shorter} --protocol {recipe} --plasticity 0.3 --most_passes 20 --rivals"
    asked += " --facts 10 20 --keys name identifier --values real new --report"
    return f"{asked} --output_path {folder / 'out'}".split(), folder / "out"


def test_the_command_writes_table_figures_and_report(
    reported: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    arguments, output = reported
    assert main(["interference", *arguments]) == 0
    table = capsys.readouterr().out
    assert table.count("\n") == 2 + 8 + 4
    output = output / "at-0.3"
    drawn = {path.name for path in output.glob("*.png")}
    assert drawn == {"forgetting.png", "drift.png", "overlap.png", "cloning.png"}
    for name in drawn:
        with Image.open(output / name) as image:
            assert min(image.size) > 300
    text = (output / "report.md").read_text()
    assert "38-41 %" in text
    assert "real minus new" in text
    for cells in table.splitlines()[2:]:
        assert cells.split("|")[8].strip() in text
    first = {path.name: path.read_bytes() for path in output.iterdir()}
    assert main(["interference", *arguments, "--facts", "10"]) == 0
    assert first == {path.name: path.read_bytes() for path in output.iterdir()}


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ("--relation spouse", "It has|--relation: country, place_of_birth"),
        ("--facts 100000000 --keys identifier", "can be formed"),
        ("--keys known --facts 500", "can be formed"),
        ("--plasticity 1.5", "plasticity"),
        ("--facts 0", "facts"),
    ],
)
def test_mistakes_are_told_in_one_line(
    extra: str, told: str, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = f"--bundle {bundle.path} --output_path {tmp_path} {extra}".split()
    assert main(["interference", *arguments]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert any(part in message for part in told.split("|"))


def test_kinds_of_keys_are_named_in_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["interference", "--help"])
    shown = capsys.readouterr().out
    assert all(word in shown for word in itertools.chain(("name", "matched"), ("--report",)))
