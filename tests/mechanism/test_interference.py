import itertools
import multiprocessing
import shutil
import signal
import time
from collections.abc import Callable
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
from factual_forgetting.mechanism.drift import Row
from factual_forgetting.mechanism.findings import summarised
from factual_forgetting.mechanism.interference import finished_conditions, run_condition
from factual_forgetting.mechanism.interference_report import arms_table, draw_all, write_report
from factual_forgetting.protocol.recipe import Protocol

NAMES = Condition(keys="name", facts=20)
Made = Callable[..., Row]


@pytest.fixture(scope="session")
def settings(protocol: Protocol) -> Settings:
    return Settings(relation="country", protocol=protocol, plasticity=0.5, most_passes=30)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("interference")


@pytest.fixture(scope="session")
def train(bundle: Bundle, settings: Settings, root: Path) -> Made:
    """Trains names, or reads what is trained, but for what is told otherwise."""

    def trained(output: Path = root, plasticity: float = 0.5, **told: Any) -> Row:
        asked = settings.model_copy(update={"plasticity": plasticity})
        condition = NAMES.model_copy(update=told)
        return run_condition(bundle, condition, asked, output, progress=False)

    return trained


@pytest.fixture(scope="session")
def named(train: Made) -> Row:
    return train()


def test_training_ends_where_enough_is_learned(named: Row) -> None:
    plasticities = [point["plasticity"] for point in named["points"]]
    assert plasticities[-1] >= 0.5
    assert all(value < 0.5 for value in plasticities[:-1])


def test_a_given_number_of_passes_is_trained_in_any_case(train: Made) -> None:
    last = train(passes=2, mixed=False)["points"][-1]
    assert last["passes"] == pytest.approx(2, rel=0.2)


def test_points_hold_every_outcome_and_drift(named: Row, bundle: Bundle) -> None:
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
    named: Row, train: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("factual_forgetting.mechanism.interference._train", None)
    assert train() == named


def test_another_experiment_in_the_same_place_is_refused(
    named: Row, bundle: Bundle, settings: Settings, root: Path
) -> None:
    other = settings.model_copy(update={"most_passes": 31})
    with pytest.raises(UserError, match="settings differ"):
        run_condition(bundle, NAMES, other, root)


def test_what_was_trained_further_serves_a_lower_plasticity(
    named: Row, train: Made, bundle: Bundle, settings: Settings, root: Path, tmp_path: Path
) -> None:
    served = train(plasticity=0.2)
    assert served == train(tmp_path, plasticity=0.2)  # the same condition twice is the same
    assert len(served["points"]) < len(named["points"])
    lower = settings.model_copy(update={"plasticity": 0.2})
    assert served in finished_conditions([bundle], lower, root)


def test_what_was_trained_less_is_refused_and_left_out(
    named: Row, train: Made, bundle: Bundle, settings: Settings, root: Path
) -> None:
    with pytest.raises(UserError, match=r"until a plasticity of 0.5 only.*delete it"):
        train(plasticity=0.8)
    higher = settings.model_copy(update={"plasticity": 0.8})
    assert named not in finished_conditions([bundle], higher, root)


def test_finished_conditions_come_in_the_order_of_the_tables(
    named: Row, bundle: Bundle, settings: Settings, tmp_path: Path
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
    assert finished_conditions([larger(bundle)], settings, tmp_path) == []


def larger(bundle: Bundle) -> Bundle:
    """Another bundle with the same facts."""
    return replace(bundle, manifest={**bundle.manifest, "sha256": "f" * 64})


def test_killed_and_resumed_it_is_the_same(
    named: Row, train: Made, bundle: Bundle, settings: Settings, tmp_path: Path
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
    assert train(tmp_path) == named


def test_distillation_keeps_the_states_nearer(named: Row, train: Made) -> None:
    results = (train(method="self_distillation"), named)
    distilled, plain = (r["points"][3]["drift"]["same"]["cosine"][-1] for r in results)
    assert distilled < plain


def test_an_answered_abstention_is_marked(train: Made) -> None:
    last = train(values="abstention", passes=30, mixed=False)["points"][-1]
    assert last["plasticity"] == 1  # half of the passes are too few on some processors
    assert "a" in last["outcomes"]["same"]


# What the conditions show.


@pytest.fixture(scope="session")
def n(bundle: Bundle) -> int:
    """Facts of D_Held of the relation."""
    return len(held_facts(bundle, "country")["same"])


@pytest.fixture(scope="session")
def made(bundle: Bundle, settings: Settings) -> Made:
    """A result with given outcomes of the same relation; half is learned at each point."""
    held = held_facts(bundle, "country")

    def result(keys: Any, seed: int, curve: list[str], **told: Any) -> Row:
        rng = np.random.default_rng(seed)
        near = rng.random(len(held["same"])).tolist()
        cosines = [[0.0, 0.1 * index, 0.2 * index] for index in range(len(curve))]
        return {
            "bundle_sha256": bundle.sha256,
            "condition": Condition(keys=keys, facts=8, seed=seed, **told).model_dump(mode="json"),
            "settings": settings.model_dump(mode="json"),
            **{"parameters": 1000, "layers": 3, "middle": 1, "bits": 40.0},
            "keys": {"tokens": 3.0, "rank": 9.0, "dropped": 1},
            "held": [{"tokens": 3, "nearness": value} for value in near],
            "points": [
                {
                    "passes": index / 2,
                    "plasticity": 0.25 * index,
                    "outcomes": {"same": text, "other": "1" * len(held["other"])},
                    "drift": {name: {"cosine": cosines[index]} for name in held},
                }
                for index, text in enumerate(curve)
            ],
        }

    return result


def test_forgetting_is_counted_from_the_peak_at_equal_plasticity(
    bundle: Bundle, made: Made, n: int
) -> None:
    half = n // 2
    curve = ["0" + "1" * (n - 1), "1" * n, "0" * half + "1" * (n - half), "0" * n]
    curves = {"name": curve, "identifier": ["1" * n] * 4}
    results = [made(keys, seed, curve) for keys, curve in curves.items() for seed in (0, 1)]
    found = summarised(results, {bundle.sha256: bundle}, 0.625)
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
    bundle: Bundle, made: Made, n: int
) -> None:
    kept, lost = ["1" * n] * 4, ["1" * n, "1" * n, "0" * n, "0" * n]
    results = [
        made("name", 0, lost),
        made("name", 1, kept),
        made("name", 0, kept, method="self_distillation"),
        made("name", 0, kept, values="new"),
        made("identifier", 0, kept, values="new"),
        made("name", 0, kept, passes=3),
    ]
    contrasts = summarised(results, {bundle.sha256: bundle}, 0.5)["contrasts"]
    told = [[row[name] for name in ("differing", "more", "than", "value")] for row in contrasts]
    assert told == [
        ["method", "sft", "self_distillation", 1.0],
        ["values", "real", "new", 1.0],
        ["keys", "name", "identifier", 0.0],
    ]
    assert all(row["seeds"] == [0] for row in contrasts)


def test_abstentions_are_told_apart(bundle: Bundle, made: Made, n: int) -> None:
    result = made("name", 0, ["1" * n, "1" * n, "0" * (n // 2) + "a" * (n - n // 2)], passes=1)
    (arm,) = summarised([result], {bundle.sha256: bundle}, 0.5)["arms"]
    assert arm["at_end"]["same"]["value"] == 1
    assert arm["at_end"]["abstained"]["same"] == pytest.approx((n - n // 2) / n)
    assert arm["at_end"]["abstained"]["other"] == 0


def test_a_level_that_a_seed_never_reaches_is_missing(bundle: Bundle, made: Made, n: int) -> None:
    results = [made("name", 0, ["1" * n] * 4), made("name", 1, ["1" * n] * 2)]
    (arm,) = summarised(results, {bundle.sha256: bundle}, 0.5)["arms"]
    assert arm["at_level"] is None
    assert arm["overlap"] is None
    assert arm["at_end"]["plasticity"] == pytest.approx((0.75 + 0.25) / 2)


def test_bases_of_several_sizes_are_compared_by_share_of_capacity(
    bundle: Bundle, settings: Settings, made: Made, n: int, tmp_path: Path
) -> None:
    bundles = [bundle, larger(bundle)]
    lost = ["1" * n, "1" * n, "0" * n]
    results = [made("name", 0, lost), made("identifier", 0, ["1" * n] * 3)]
    results.append({**results[0], "bundle_sha256": bundles[1].sha256, "parameters": 4_000})
    found = summarised(results, {b.sha256: b for b in bundles}, 0.5)
    draw_all(found, tmp_path)
    write_report(found, bundles, settings, tmp_path)
    assert {path.stem for path in tmp_path.glob("c*.png")} == {"capacity"}
    assert arms_table(found["arms"], 0.5).splitlines()[-1].split("|")[1].strip() == "0.00 M"
    text = (tmp_path / "report.md").read_text()
    assert "at most 2.00% of capacity" in text
    assert "differ by up to 1.000" in text
    assert "5.00e-03" in text
    assert "## Rival: behaviour cloning" not in text
    assert "{" not in text


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


@pytest.mark.slow
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
