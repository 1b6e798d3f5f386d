from pathlib import Path
from typing import Any

import pytest

from factual_forgetting import checkpoint, files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.cli import main
from factual_forgetting.config import parse
from factual_forgetting.errors import UserError
from factual_forgetting.protocol import sweep as sweeps
from factual_forgetting.protocol.curve import CURVE
from factual_forgetting.protocol.recipe import Execution, Protocol
from factual_forgetting.protocol.sweep import Arm, Sweep, choose, plan_sweep, run_all, sweep_runs


@pytest.fixture
def sweep(bundle: Bundle, protocol: Protocol, tmp_path: Path) -> Sweep:
    small = protocol.model_dump(mode="json") | {"name": "small", "epochs": 1, "evaluate_every": 3}
    files.write_json(tmp_path / "small.yaml", small)
    return Sweep(
        bundle=str(bundle.path),
        protocol=str(tmp_path / "small.yaml"),
        learning_rates=(1e-3, 3e-3, 1e-2),
        strengths=(0.5, 1.0, 2.0),
        arms=(
            Arm(name="plain", method="sft"),
            Arm(name="held", method="self_distillation", settings={"tau": 1.0}),
        ),
        seeds=(0, 1),
    )


def test_runs_are_the_product_of_arms_trials_and_seeds(
    sweep: Sweep, bundle: Bundle, tmp_path: Path
) -> None:
    found = sweep_runs(sweep, bundle, tmp_path)
    assert len(found) == len({one.path for one in found}) == 2 * 3 * 2
    held = [one.run for one in found if one.arm == "held"]
    assert {run.settings.model_dump()["weight"] for run in held} == {0.5, 1.0, 2.0}
    assert {run.protocol.learning_rate for run in held} == {3e-3}
    assert [one.run.seed for one in found] == [0] * 6 + [1] * 6


def test_names_of_arms_are_their_own(sweep: Sweep, bundle: Bundle, tmp_path: Path) -> None:
    twice = sweep.model_copy(update={"arms": (sweep.arms[0], sweep.arms[0])})
    with pytest.raises(UserError, match="names of their own"):
        sweep_runs(twice, bundle, tmp_path)


def test_a_sweep_goes_on_where_it_was_stopped_and_skips_what_is_done(
    sweep: Sweep, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = sweep_runs(sweep.model_copy(update={"seeds": (0,)}), bundle, tmp_path / "out")
    trained: list[Path] = []
    original = sweeps.finetune

    def stop_after_two(run: Any, path: Path, **options: Any) -> Any:
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(path)
        return original(run, path, **options)

    monkeypatch.setattr(sweeps, "finetune", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        run_all(found, tmp_path / "out", Execution())
    rows = plan_sweep(found, Execution(), steps=2)
    assert [(row["arm"], row["runs"], row["done"]) for row in rows] == [
        ("plain", 3, 2),
        ("held", 3, 0),
    ]
    assert all(row["seconds"] > 0 for row in rows)
    assert not any(one.path.exists() for one in found if one.arm == "held")
    monkeypatch.setattr(
        sweeps, "finetune", lambda run, path, **o: trained.append(path) or original(run, path, **o)
    )
    chosen = run_all(found, tmp_path / "out", Execution())
    assert trained == [one.path for one in found]
    assert files.read_json(tmp_path / "out" / "chosen.json") == chosen
    assert plan_sweep(found, Execution())[0]["seconds"] == 0


def write_curve(run: Path, **last: float) -> None:
    points = [{"step": 0, "loss": None}, {"step": 1, "loss": 0.1, **last}]
    files.write_jsonl(run / CURVE, points)


def test_the_choice_is_made_on_validation_and_never_on_heldout(
    sweep: Sweep, bundle: Bundle, tmp_path: Path
) -> None:
    found = [one for one in sweep_runs(sweep, bundle, tmp_path) if one.arm == "plain"]
    scores = {1e-3: (0.9, 0.2), 3e-3: (0.8, 0.8), 1e-2: (0.3, 0.9)}
    seen = {}
    for one in found:
        validation, plasticity = scores[one.trial.learning_rate]
        seen[one.path] = {"validation_stability": validation, "plasticity": plasticity}
        # The best by the choice is the worst on D_Held and D_Known.
        others = dict.fromkeys(("stability", "task_learning"), 1 - validation * plasticity)
        write_curve(one.path, **seen[one.path], **others)
    chosen = choose(found, tmp_path)["plain"]
    assert chosen["learning_rate"] == 3e-3
    assert chosen["trials"] == 3
    assert chosen["score"] == pytest.approx(0.8)
    assert chosen["runs"] == [f"runs/plain/0.003-1-{seed}" for seed in (0, 1)]
    for path, values in seen.items():
        write_curve(path, **values)
    assert choose(found, tmp_path)["plain"] == chosen


def test_some_seeds_choose_and_the_others_train_the_chosen_trial_alone(
    sweep: Sweep, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {"arms": sweep.arms[:1], "choosing_seeds": (0,)}
    found = sweep_runs(sweep.model_copy(update=arms), bundle, tmp_path)
    scores = {1e-3: 0.1, 3e-3: 0.8, 1e-2: 0.3}
    trained = []

    def train(run: Any, path: Path, **_: Any) -> None:
        trained.append(path.name)
        score = scores[run.protocol.learning_rate]
        write_curve(path, validation_stability=score, plasticity=score)
        files.write_json(path / "run.json", {})

    monkeypatch.setattr(sweeps, "finetune", train)
    monkeypatch.setattr(sweeps, "rehearse", lambda *_: 1.0)
    (planned,) = plan_sweep(found, Execution())
    assert (planned["runs"], planned["done"], planned["seconds"]) == (4, 0, 4.0)
    chosen = run_all(found, tmp_path, Execution())["plain"]
    assert trained == ["0.001-1-0", "0.003-1-0", "0.01-1-0", "0.003-1-1"]
    assert (chosen["learning_rate"], chosen["trials"]) == (3e-3, 3)
    assert chosen["runs"] == [f"runs/plain/0.003-1-{seed}" for seed in (0, 1)]
    (planned,) = plan_sweep(found, Execution())
    assert (planned["runs"], planned["done"], planned["seconds"]) == (4, 4, 0.0)
    run_all(found, tmp_path, Execution())
    assert len(trained) == 4


def test_seeds_that_choose_are_seeds_of_the_sweep() -> None:
    told = {"bundle": "almanac", "protocol": "almanac-v2", "seeds": [0, 1], "choosing_seeds": [2]}
    with pytest.raises(UserError, match="choosing_seeds are none of seeds"):
        parse(Sweep, {**told, "arms": [{"name": "sft", "method": "sft"}]}, "sweep")


def test_a_file_is_hashed_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Path] = []
    original = files.sha256_file
    monkeypatch.setattr(files, "sha256_file", lambda p: hashed.append(p) or original(p))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"one")
    first = checkpoint.weights_sha256(tmp_path)
    assert checkpoint.weights_sha256(tmp_path) == first
    assert len(hashed) == 1
    other = tmp_path / "other"
    other.write_bytes(b"two")
    other.replace(weights)
    assert checkpoint.weights_sha256(tmp_path) != first


def test_an_unknown_key_of_a_sweep_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.yaml").write_text("bundle: almanac\nprotocol: almanac-v1\nseed: [0]\n")
    given = ["sweep", "plan", str(tmp_path / "sweep.yaml"), "--output_path", str(tmp_path / "o")]
    assert main(given) == 1
    assert "unknown key 'seed'" in capsys.readouterr().err
