from pathlib import Path
from typing import Any

import pytest

from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.cli import main
from factual_forgetting.errors import UserError
from factual_forgetting.scoring.frontier import Trained, find_runs, frontier, frontier_markdown


def trained(
    bundle: Bundle, method: str, seed: int, points: list[tuple[float, float]], kept: bool = True
) -> Trained:
    curve: list[dict[str, Any]] = [
        {
            "step": step,
            "plasticity": plasticity,
            "stability": stability,
            "kl_to_base": 0.1,
            "tokens": 100,
            "teacher_tokens": 50,
        }
        for step, (plasticity, stability) in enumerate(points)
    ]
    correct = {item.fact.id: kept for _, item in bundle.items()}
    return Trained(method, "p", seed, curve, correct)


def test_readings_are_those_of_the_curve_by_hand(bundle: Bundle) -> None:
    first = trained(bundle, "a", 0, [(0.0, 1.0), (0.4, 0.9), (0.6, 0.8), (1.0, 0.6)])
    second = trained(bundle, "a", 1, [(0.0, 1.0), (0.4, 0.9), (0.6, 0.6), (1.0, 0.4)])
    (row,) = frontier([first, second], bundle)
    assert row["seeds"] == [0, 1]
    assert row["stability_at_p50"] == pytest.approx({"mean": 0.8, "low": 0.75, "high": 0.85})
    assert row["stability_at_p90"] == pytest.approx({"mean": 0.55, "low": 0.45, "high": 0.65})
    assert row["forgetting_from_peak"] == pytest.approx({"mean": 0.5, "low": 0.4, "high": 0.6})
    assert row["teacher_share"]["mean"] == 0.5
    levels = {point["plasticity"]: point for point in row["line"]}
    assert min(levels) == 0.4
    assert levels[0.5]["low"] == pytest.approx(0.75)
    assert levels[1.0]["high"] == pytest.approx(0.6)


def test_a_level_that_one_seed_never_reaches_is_null(bundle: Bundle) -> None:
    reaches = trained(bundle, "b", 0, [(0.0, 1.0), (1.0, 0.5)])
    stays = trained(bundle, "b", 1, [(0.0, 1.0), (0.7, 0.9)])
    other = trained(bundle, "a", 0, [(0.0, 1.0), (1.0, 0.1)])
    rows = frontier([reaches, stays, other], bundle)
    assert [row["method"] for row in rows] == ["a", "b"]
    assert rows[1]["stability_at_p90"] is None
    assert rows[1]["stability_at_p50"] is not None
    assert "-" in frontier_markdown(rows).splitlines()[-1]


def test_one_seed_given_twice_is_refused(bundle: Bundle) -> None:
    run = trained(bundle, "a", 0, [(0.0, 1.0), (1.0, 0.5)])
    with pytest.raises(UserError, match="two runs of one seed"):
        frontier([run, run], bundle)


def test_a_finished_run_gives_table_plot_and_json(
    bundle: Bundle, sft: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["frontier", str(sft), "--bundle", str(bundle.path)]
    assert main([*given, "--output_path", str(tmp_path / "frontier.png")]) == 0
    assert "| sft" in capsys.readouterr().out
    first = (tmp_path / "frontier.png").read_bytes()
    (row,) = files.read_json(tmp_path / "frontier.json")
    last = list(files.read_jsonl(sft / "curve.jsonl"))[-1]
    assert row["stability"]["mean"] == pytest.approx(last["stability"])
    assert main([*given, "--output_path", str(tmp_path / "again.png")]) == 0
    assert (tmp_path / "again.png").read_bytes() == first


def test_of_a_sweep_only_the_chosen_runs_are_read(
    bundle: Bundle, sft: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs").symlink_to(sft.parent)
    files.write_json(tmp_path / "chosen.json", {"plain": {"runs": [f"runs/{sft.name}"]}})
    (run,) = find_runs([tmp_path], bundle)
    assert run.method == "plain"
    with pytest.raises(UserError, match="neither a finished run"):
        find_runs([tmp_path / "runs"], bundle)
