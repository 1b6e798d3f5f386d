import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from conftest import make_model
from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.errors import UserError
from factual_forgetting.facts.matching import is_correct
from factual_forgetting.protocol.curve import OUTCOMES
from factual_forgetting.scoring.results import read_results
from factual_forgetting.scoring.score import score
from factual_forgetting.scoring.task import load_split, process_results


def test_the_last_point_of_the_curve_is_lm_evals_answer(
    bundle: Bundle, sft: Path, results: Path
) -> None:
    scored = read_results(results, bundle).correct
    curve = {row["id"]: row["correct"][-1] == "1" for row in files.read_jsonl(sft / OUTCOMES)}
    assert scored == curve
    # Some learned by heart and some not, or the comparison would say little.
    assert 0.2 < sum(scored.values()) / len(scored) < 0.8


def test_what_lm_eval_prints_is_what_we_compute(bundle: Bundle, results: Path) -> None:
    read = read_results(results, bundle)
    printed = json.loads(read.path.read_text())["results"]["factual_forgetting_learning"]
    right = [read.correct[item.fact.id] for item in bundle.splits["known"]]
    assert printed["ff_accuracy,none"] == pytest.approx(sum(right) / len(right))
    assert printed["ff_lost,none"] == pytest.approx(1 - sum(right) / len(right))
    assert printed["ff_forgetting_stderr,none"] > 0


def copied(results: Path, target: Path) -> Path:
    shutil.copytree(results, target)
    return target


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_results_with_a_limit_are_refused(bundle: Bundle, results: Path, tmp_path: Path) -> None:
    path = copied(results, tmp_path / "r")
    edit(next(path.glob("results_*.json")), lambda content: content["config"].update(limit=3))
    with pytest.raises(UserError, match="made with --limit"):
        read_results(path, bundle)


def test_half_written_samples_are_refused(bundle: Bundle, results: Path, tmp_path: Path) -> None:
    path = copied(results, tmp_path / "r")
    samples = next(path.glob("samples_factual_forgetting_stability_*.jsonl"))
    lines = samples.read_text().splitlines(keepends=True)
    samples.write_text("".join(lines[:-3]))
    with pytest.raises(UserError, match="13 answers where the bundle has 16 facts"):
        read_results(path, bundle)
    samples.write_text("".join(lines[:-1]) + lines[-1][:40])
    with pytest.raises(UserError, match="line 16: not JSON"):
        read_results(path, bundle)


def test_results_of_another_bundle_are_refused(
    bundle: Bundle, results: Path, tmp_path: Path
) -> None:
    path = copied(results, tmp_path / "r")
    for samples in path.glob("samples_*.jsonl"):
        samples.write_text(samples.read_text().replace(bundle.sha256, "0" * 64))
    with pytest.raises(UserError, match="another bundle"):
        read_results(path, bundle)


def test_missing_samples_are_refused(bundle: Bundle, results: Path, tmp_path: Path) -> None:
    path = copied(results, tmp_path / "r")
    next(path.glob("samples_*.jsonl")).unlink()
    with pytest.raises(UserError, match="Score again with --log_samples"):
        read_results(path, bundle)


def test_other_generation_settings_are_refused(
    bundle: Bundle, results: Path, tmp_path: Path
) -> None:
    path = copied(results, tmp_path / "r")
    for samples in path.glob("samples_*.jsonl"):
        samples.write_text(samples.read_text().replace('"max_gen_toks": 16', '"max_gen_toks": 4'))
    with pytest.raises(UserError, match="other generation settings"):
        read_results(path, bundle)


def test_group_names_of_lm_eval_05_are_read(bundle: Bundle, results: Path, tmp_path: Path) -> None:
    path = copied(results, tmp_path / "r")
    newer = "factual_forgetting::factual_forgetting_stability"

    def rename(content: Any) -> None:
        content["results"] = {newer: content["results"]["factual_forgetting_stability"]}

    edit(next(path.glob("results_*.json")), rename)
    samples = next(path.glob("samples_factual_forgetting_stability_*.jsonl"))
    samples.rename(samples.with_name(samples.name.replace("factual_forgetting_stability", newer)))
    held = {item.fact.id for item in bundle.splits["heldout"]}
    assert set(read_results(path, bundle).correct) == held


def test_a_checkpoint_of_another_shape_is_refused(
    bundle: Bundle, tokenizer: Any, tmp_path: Path
) -> None:
    make_model("gpt2", len(tokenizer)).save_pretrained(tmp_path / "other")
    files.write_json(
        tmp_path / "other" / "config.json",
        {**files.read_json(tmp_path / "other" / "config.json"), "n_layer": 3},
    )
    with pytest.raises(UserError, match="layers 3 instead of 2"):
        score(bundle, "hf", str(tmp_path / "other"), tmp_path / "r")


def test_without_a_bundle_only_descendants_of_the_almanac_are_scored(base: Path) -> None:
    with pytest.raises(UserError, match="does not descend from the base"):
        load_split("heldout", pretrained=str(base))
    with pytest.raises(UserError, match="No bundle was given"):
        load_split("heldout", pretrained="somebody/model")


def test_the_expected_hash_is_checked(bundle: Bundle) -> None:
    with pytest.raises(UserError, match="has the hash"):
        load_split("heldout", ff_bundle=str(bundle.path), ff_bundle_sha256="0" * 64)
    loaded = load_split("heldout", ff_bundle=str(bundle.path), ff_bundle_sha256=bundle.sha256)
    assert len(loaded["test"]) == 16


@pytest.mark.parametrize(
    ("text", "base_correct", "expected"),
    [
        (" Paris", True, {"accuracy": 1.0, "forgetting": 0.0, "hallucination": 0.0, "lost": 0.0}),
        (" Rome", True, {"accuracy": 0.0, "forgetting": 1.0, "hallucination": 1.0, "lost": 1.0}),
        (" paris.", False, {"accuracy": 1.0, "forgetting": -1, "hallucination": 0, "gained": 1.0}),
        ("", False, {"accuracy": 0.0, "forgetting": 0.0, "hallucination": 0.0, "gained": 0.0}),
        (" I don't know", True, {"accuracy": 0, "forgetting": 1, "hallucination": 0, "lost": 1}),
    ],
)
def test_the_outcome_of_one_answer(
    text: str, base_correct: bool, expected: dict[str, float]
) -> None:
    doc = {"answers": ["Paris"], "base_correct": base_correct}
    metrics = process_results(doc, [text])
    assert metrics == {f"ff_{name}": value for name, value in expected.items()}
    assert is_correct(text, doc["answers"]) == bool(metrics["ff_accuracy"])
