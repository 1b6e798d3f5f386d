"""Records in the forms of other places: their fields, their bounds, and strangers' texts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from synthetic import any_record, drawn, publish, write_record

from factual_forgetting import files
from factual_forgetting.board.bundles import make_official
from factual_forgetting.board.record import MAINTAINERS, load_record
from factual_forgetting.bundle.manifest import Bundle, load_bundle, locate_bundle
from factual_forgetting.cli import main
from factual_forgetting.scoring.styles import CHAT, FEWSHOT

Export = Callable[..., dict[str, str]]
DATASET = f"me/facts@{'a' * 40}"
HOSTILE = "`x` | <b>https://evil.example</b> ![i](https://evil.example) --- {{ 7 * 7 }}: \\ *a*"
# Validates what the tests of the fast tier export; in an environment of its own.
EVERY_EVAL_EVER = os.environ.get("EVERY_EVAL_EVER")


@pytest.fixture
def export(world: Bundle, tmp_path: Path) -> Export:
    """Exports records, and tells the files by their path."""

    def run(*records: Path, to: str = "every_eval_ever", out: str = "out") -> dict[str, str]:
        output = tmp_path / out
        given = ["--to", to, "--bundle", str(world.path), "--output_path", str(output)]
        assert main(["export", *map(str, records), *given]) == 0
        there = sorted(path for path in output.rglob("*") if path.is_file())
        return {str(path.relative_to(output)): path.read_text("utf-8") for path in there}

    return run


@pytest.fixture
def one(world: Bundle, tmp_path: Path) -> Path:
    """A record whose plasticity reaches .90."""
    return publish(tmp_path / "one", world, drawn(world, 3, 0.5, 0.05))


@pytest.fixture
def never(world: Bundle, tmp_path: Path) -> Path:
    """A record without answers whose plasticity doesn't."""
    path = publish(tmp_path / "never", world, drawn(world, 3, 0.0, 0.05))
    content, (_, outcomes) = files.read_json(path), load_record(path)
    rows = [outcome.model_dump() | {"answer": None} for outcome in outcomes]
    path.unlink()
    return write_record(path.parents[3], content, rows)


def hostile(path: Path) -> Path:
    content = files.read_json(path)
    content |= {
        "url": "https://a.example/b?c=d",
        "note": HOSTILE,
        "training_data": {"description": HOSTILE, "heldout": "unknown"},
    }
    content["base"]["pretrained"] = HOSTILE
    rows = [row.model_dump() for row in load_record(path)[1]]
    rows[0] |= {"answer": "one\u2028two\x85three", "final": False}
    path.unlink()
    return write_record(path.parents[3], content, rows)


def logs(found: dict[str, str]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, json.loads(text)) for name, text in found.items() if name.endswith(".json")]


def check_log(path: str, log: dict[str, Any], found: dict[str, str]) -> None:
    """What their schema and validator ask for, of the fields that we write."""
    uuid = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    assert re.fullmatch(rf"data/factual-forgetting/[^/]+/[^/]+/{uuid}\.json", path)
    assert log["schema_version"] == "0.3.0"
    assert log["retrieved_timestamp"].isdigit()
    assert log["source_metadata"]["source_type"] == "evaluation_run"
    assert log["source_metadata"]["evaluator_relationship"] in {
        "first_party", "third_party", "collaborative", "other",
    }  # fmt: skip
    assert {"name", "version"} <= log["eval_library"].keys()
    assert path.split("/")[2:4] == log["model_info"]["id"].split("/")
    assert log["model_info"]["additional_details"].keys() >= {
        "deployment_type", "model_availability", "base", "method", "weights_sha256",
    }  # fmt: skip
    for result in log["evaluation_results"]:
        metric, score = result["metric_config"], result["score_details"]
        interval = score["uncertainty"]["confidence_interval"]
        least = -1.0 if "base" in result["evaluation_name"] else 0.0
        assert metric["score_type"] == "continuous"
        assert isinstance(metric["lower_is_better"], bool)
        assert (metric["min_score"], metric["max_score"]) == (least, 1.0)
        assert least <= interval["lower"] <= score["score"] <= interval["upper"] <= 1
        assert score["uncertainty"]["num_samples"] > 0
        assert result["source_data"]["source_type"] in {"hf_dataset", "other"}
        assert result["generation_config"]["generation_args"]["max_tokens"] in {16, 64}
    for details in additional(log):
        assert all(isinstance(value, str) for value in details.values())
    if beside := log.get("detailed_evaluation_results"):
        check_samples(beside, log, found[beside["file_path"]])


def additional(value: Any) -> list[dict[str, Any]]:
    parts = value if isinstance(value, list) else list(value.values())
    inner = [found for part in parts if isinstance(part, dict | list) for found in additional(part)]
    here = [value["additional_details"]] if "additional_details" in value else []
    return here + inner


def check_samples(beside: dict[str, Any], log: dict[str, Any], text: str) -> None:
    rows = [json.loads(line) for line in text.splitlines()]
    assert beside["total_rows"] == len(rows)
    assert beside["checksum"] == hashlib.sha256(text.encode()).hexdigest()
    results = {one["evaluation_result_id"]: one for one in log["evaluation_results"]}
    for row in rows:
        assert row["evaluation_id"] == log["evaluation_id"]
        assert row["model_id"] == log["model_info"]["id"]
        assert results[row["evaluation_result_id"]]["evaluation_name"] == row["evaluation_name"]
        assert row["output"]["raw"]
        assert row["input"]["reference"]
        assert row["evaluation"]["score"] == float(row["evaluation"]["is_correct"])
    for key, result in results.items():
        own = [row["evaluation"]["score"] for row in rows if row["evaluation_result_id"] == key]
        if own:
            assert sum(own) / len(own) == pytest.approx(result["score_details"]["score"])


def test_every_field_that_every_eval_ever_asks_for(
    export: Export, one: Path, never: Path, world: Bundle
) -> None:
    found = export(one, never)
    assert len(logs(found)) == 2
    for path, log in logs(found):
        check_log(path, log, found)
    by_id = {log["evaluation_id"].split("/")[-1]: log for _, log in logs(found)}
    names = {
        key: {result["evaluation_name"] for result in log["evaluation_results"]}
        for key, log in by_id.items()
    }
    assert "factual_forgetting_stability_at_p90" in names[one.stem]
    assert "factual_forgetting_stability_at_p90" not in names[never.stem]
    # Nobody can check outcomes that have no answers.
    assert "detailed_evaluation_results" in by_id[one.stem]
    assert "detailed_evaluation_results" not in by_id[never.stem]
    told = by_id[one.stem]
    (source,) = {
        result["source_data"]["additional_details"]["bundle_sha256"]
        for result in told["evaluation_results"]
    }
    assert source == world.sha256
    assert told["source_metadata"]["additional_details"]["level"] == "self-reported"
    assert told["model_info"]["additional_details"]["protocol"] == "almanac-v1"


@pytest.mark.parametrize(("style", "most"), [(FEWSHOT, 16), (CHAT, 64)])
def test_what_never_trained_has_what_it_was_asked(
    export: Export, tmp_path: Path, style: str, most: int
) -> None:
    almanac = load_bundle(locate_bundle("almanac"))
    path = any_record(tmp_path / "any/records", almanac, 400, style=style)
    found = export(path)
    ((name, log),) = logs(found)
    check_log(name, log, found)
    names = {result["evaluation_name"] for result in log["evaluation_results"]}
    assert f"{style}_stability" in names
    assert not names & {f"{style}_task_learning", f"{style}_plasticity"}
    told = log["evaluation_results"][0]["generation_config"]["generation_args"]
    assert told["max_tokens"] == most
    assert told["prompt_template"].startswith("{exemplars}")
    samples = found[name.replace(".json", "_samples.jsonl")]
    rows = [json.loads(line) for line in samples.splitlines()]
    assert {row["metadata"]["split"] for row in rows} == {"heldout"}
    assert all(row["input"]["raw"] in row["input"]["formatted"] for row in rows)
    assert log["model_info"]["additional_details"]["trained_on_d_train"] == "false"


def test_the_same_record_is_the_same_files(export: Export, one: Path) -> None:
    assert export(one) == export(one) == export(one.parents[3], out="other")


def test_numbers_are_computed_and_never_taken(export: Export, one: Path) -> None:
    before = export(one)
    content = files.read_json(one)
    content["metrics"]["stability"]["value"] = 1.0
    files.write_json(one, content)
    assert export(one, out="forged") == before


def test_a_level_is_the_maintainers(export: Export, one: Path) -> None:
    files.write_json(one.parents[4] / MAINTAINERS, {one.stem: "rescored"})
    ((_, log),) = logs(export(one))
    assert log["source_metadata"]["additional_details"]["level"] == "rescored"
    assert log["source_metadata"]["evaluator_relationship"] == "third_party"


def test_where_the_weights_are_is_the_name_of_the_model(
    export: Export, world: Bundle, tmp_path: Path
) -> None:
    told = {"repository": "lab/model-1"}
    path = publish(tmp_path / "public", world, drawn(world, 3, 0.5, 0.05), declared=told)
    ((name, log),) = logs(export(path))
    assert name.startswith("data/factual-forgetting/lab/model-1/")
    assert log["model_info"]["additional_details"]["model_availability"] == "open_weights"
    assert log["source_metadata"]["evaluator_relationship"] == "other"


@pytest.mark.parametrize("name", ["../..", "./a", "con/model", "a/nul.txt", "data/a", "a/b."])
def test_no_name_leads_out_of_the_folder(
    world: Bundle, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = publish(tmp_path / "one", world, drawn(world, 3, 0.5, 0.05))
    files.write_json(path, {**files.read_json(path), "repository": name})
    given = ["--bundle", str(world.path), "--output_path", str(tmp_path / "out")]
    assert main(["export", str(path), "--to", "every_eval_ever", *given]) == 1
    assert f"{name} can't be the name of a folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_stranger_s_text_is_one_line_of_samples(export: Export, one: Path) -> None:
    found = export(hostile(one))
    for path, log in logs(found):
        check_log(path, log, found)
        assert log["source_metadata"]["additional_details"]["note"] == HOSTILE


def official_on_the_hub(path: Path, world: Bundle) -> None:
    make_official(world, path.parents[4] / "bundles", "v1", DATASET)


def test_results_of_the_hub_are_what_its_library_reads(
    export: Export, world: Bundle, one: Path, never: Path
) -> None:
    official_on_the_hub(one, world)
    official_on_the_hub(never, world)
    for path, reaches in ((one, True), (never, False)):
        found = export(path, to="eval_results", out=path.stem)
        ((name, text),) = found.items()
        assert name.endswith(f"/.eval_results/{path.stem}.yaml")
        entries = {
            entry.task_id: entry for entry in parse_eval_result_entries(yaml.safe_load(text))
        }
        assert ("stability_at_p90" in entries) == reaches
        told = entries["stability"]
        assert told.dataset_id == "me/facts"
        assert told.dataset_revision == "a" * 40
        assert told.value == files.read_json(path)["metrics"]["stability"]["value"]
        assert re.search(r"95 % interval \[0\.\d+, [01]\.\d+\], n = 20 facts", told.notes or "")
        assert told.date == files.read_json(path)["recorded"]


def test_results_of_the_hub_need_a_dataset_there(
    one: Path, world: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--bundle", str(world.path), "--output_path", str(tmp_path / "out")]
    assert main(["export", str(one), "--to", "eval_results", *given]) == 1
    assert "give --bundle OWNER/DATASET@COMMIT" in capsys.readouterr().err


def test_a_card_is_what_the_hub_s_library_reads(export: Export, one: Path, world: Bundle) -> None:
    official_on_the_hub(one, world)
    ((name, text),) = export(one, to="model_card").items()
    assert name.endswith("/README.md")
    card = ModelCard(text)
    values = {result.metric_type: result.metric_value for result in card.data.eval_results or []}
    metrics = files.read_json(one)["metrics"]
    assert values["stability"] == metrics["stability"]["value"]
    assert values["stability_at_p90"] == metrics["stability_at_p90"]["stability"]
    assert card.data.datasets == ["me/facts"]
    assert "factual-forgetting finetune" in card.text


def test_a_stranger_s_text_is_no_markup_of_a_card(export: Export, one: Path) -> None:
    from markdown_it import MarkdownIt

    ((_, text),) = export(hostile(one), to="model_card").items()
    card = ModelCard(text)
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    tokens = [
        part for token in parser.parse(card.text) for part in (token, *(token.children or []))
    ]
    kinds = {token.type for token in tokens}
    assert not kinds & {"html_block", "html_inline", "image", "em_open", "hr"}
    links = [token.attrs["href"] for token in tokens if token.type == "link_open"]
    assert links == ["https://a.example/b?c=d"]
    assert HOSTILE in {token.content for token in tokens if token.type == "code_inline"}
    assert card.data.base_model is None


def test_an_edited_card_stays(
    export: Export, one: Path, world: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ((name, _),) = export(one, to="model_card").items()
    export(one, to="model_card")
    with (tmp_path / "out" / name).open("a") as stream:
        stream.write("mine")
    given = ["--bundle", str(world.path), "--output_path", str(tmp_path / "out")]
    assert main(["export", str(one), "--to", "model_card", *given]) == 1
    assert "this command didn't write it" in capsys.readouterr().err
    assert (tmp_path / "out" / name).read_text().endswith("mine")


def test_two_records_of_one_model_are_no_one_card(
    world: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curves = [drawn(world, seed, 0.5, 0.05) for seed in range(2)]
    paths = [
        publish(tmp_path / "both", world, curve, "sft", seed, declared={"repository": "lab/one"})
        for seed, curve in enumerate(curves)
    ]
    given = ["--bundle", str(world.path), "--output_path", str(tmp_path / "out")]
    assert main(["export", *map(str, paths), "--to", "model_card", *given]) == 1
    assert "Export them one by one" in capsys.readouterr().err


def test_a_bundle_that_is_not_at_hand_is_asked_for(
    one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--to", "every_eval_ever", "--output_path", str(tmp_path / "out")]
    assert main(["export", str(one), *given]) == 1
    assert "Give it with --bundle" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none"), *given]) == 1
    assert "holds no records" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not EVERY_EVAL_EVER, reason="scripts/test_every_eval_ever.sh")
def test_their_validator_takes_it(export: Export, one: Path, never: Path, tmp_path: Path) -> None:
    found = export(one, hostile(never))
    check = [str(EVERY_EVAL_EVER), "-m", "every_eval_ever", "validate", *found]
    ran = subprocess.run(check, cwd=tmp_path / "out", capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    # And it would tell: a score beyond its bounds, a sample too few.
    (name, log), *_ = (pair for pair in logs(found) if "detailed_evaluation_results" in pair[1])
    log["evaluation_results"][0]["score_details"]["score"] = 2.0
    log["detailed_evaluation_results"]["total_rows"] -= 1
    files.write_json(tmp_path / "out" / name, log)
    ran = subprocess.run(check, cwd=tmp_path / "out", capture_output=True, text=True, check=False)
    assert ran.returncode == 1
