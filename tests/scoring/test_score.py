import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from factual_forgetting import checkpoint, files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.errors import UserError
from factual_forgetting.protocol.curve import OUTCOMES
from factual_forgetting.protocol.recipe import Protocol
from factual_forgetting.protocol.run import Run
from factual_forgetting.protocol.settings import MethodSettings
from factual_forgetting.protocol.train import finetune
from factual_forgetting.scoring.results import read_results, styles_in
from factual_forgetting.scoring.score import score
from factual_forgetting.scoring.styles import (
    CHAT,
    FEWSHOT,
    SPLIT_OF_TASK,
    STYLES,
    TASK,
    TASK_VERSION,
    parse_task,
)
from factual_forgetting.scoring.task import load_split, process_results
from factual_forgetting.tasks import tasks_dir


@pytest.fixture(scope="module")
def halfway(bundle: Bundle, protocol: Protocol, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped with some facts learned and some not."""
    output = tmp_path_factory.mktemp("runs") / "halfway"
    short = protocol.model_copy(update={"epochs": 20})
    finetune(Run(bundle, short, "sft", MethodSettings(), seed=0), output, progress=False)
    score(bundle, "hf", f"pretrained={output},dtype=float32", output / "results", batch_size="16")
    return output


def test_the_last_point_of_the_curve_is_lm_evals_answer(bundle: Bundle, halfway: Path) -> None:
    scored = read_results(halfway / "results", bundle).correct
    curve = {row["id"]: row["correct"][-1] == "1" for row in files.read_jsonl(halfway / OUTCOMES)}
    assert scored == curve
    # Or the comparison would say little.
    assert 0.2 < sum(scored.values()) / len(scored) < 0.8


def test_what_lm_eval_prints_is_what_we_compute(bundle: Bundle, halfway: Path) -> None:
    read = read_results(halfway / "results", bundle)
    printed = json.loads(read.path.read_text())["results"]["factual_forgetting_learning"]
    right = [read.correct[item.fact.id] for item in bundle.splits["known"]]
    share, n = sum(right) / len(right), len(right)
    # The fixture's base has all of D_Known right, so the pairs differ where the answer is wrong.
    error = (share * (1 - share) / (n - 1)) ** 0.5
    assert error > 0
    assert printed["ff_accuracy,none"] == pytest.approx(share)
    assert printed["ff_lost,none"] == pytest.approx(1 - share)
    assert printed["ff_forgetting,none"] == pytest.approx(1 - share)
    assert printed["ff_forgetting_stderr,none"] == pytest.approx(error)


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
    with pytest.raises(UserError, match="13 answers where the bundle has 16"):
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


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("num_hidden_layers", "layers 3 instead of 2"),
        ("hidden_size", "hidden_size 3 instead of 64"),
        ("num_attention_heads", "heads 3 instead of 4"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused(
    bundle: Bundle, base: Path, tmp_path: Path, key: str, told: str
) -> None:
    other = copied(base, tmp_path / "other")
    files.write_json(other / "config.json", {**files.read_json(other / "config.json"), key: 3})
    with pytest.raises(UserError, match=f"{told}.*declare it"):
        score(bundle, "hf", str(other), tmp_path / "r")


@pytest.mark.parametrize(
    ("model", "args", "told"),
    [
        ("hfx", "{}", "'hfx'"),
        ("hf", "pretrained={},dtypo=float32", "'dtypo'"),
        ("local-completions", "model=x,base_url=http://127.0.0.1:1/v1,max_retries=1", "127.0.0.1"),
    ],
)
def test_a_model_that_fails_is_one_line(
    bundle: Bundle, sft: Path, tmp_path: Path, model: str, args: str, told: str
) -> None:
    if model.startswith("local-"):
        pytest.importorskip("tenacity", reason="lm-eval's API models need lm_eval[api]")
    with pytest.raises(UserError, match=f"can't be loaded or reached .*{told}"):
        score(bundle, model, args.format(sft), tmp_path / "r", batch_size="16", device="cpu")


def test_without_a_bundle_only_descendants_of_the_almanac_are_scored(base: Path) -> None:
    with pytest.raises(UserError, match="does not descend from the base"):
        load_split("heldout", TASK, pretrained=str(base))
    with pytest.raises(UserError, match="No bundle was given"):
        load_split("heldout", TASK, pretrained="somebody/model")


def test_the_expected_hash_is_checked(bundle: Bundle) -> None:
    with pytest.raises(UserError, match="has the hash"):
        load_split("heldout", TASK, ff_bundle=str(bundle.path), ff_bundle_sha256="0" * 64)
    loaded = load_split("heldout", TASK, ff_bundle=str(bundle.path), ff_bundle_sha256=bundle.sha256)
    assert len(loaded["test"]) == 16


def doc(**given: Any) -> dict[str, Any]:
    row = {"style": TASK, "answers": ["Paris"], "aliases": ["City of Light"], "subject": "France"}
    return {**row, "base_correct": True, **given}


@pytest.mark.parametrize(
    ("text", "base_correct", "expected"),
    [
        (" Paris", True, {"accuracy": 1, "strict": 1, "f1": 1, "lost": 0}),
        (" Rome", True, {"forgetting": 1, "hallucination": 1, "lost": 1}),
        (" paris.", False, {"accuracy": 1, "strict": 1, "f1": 1, "forgetting": -1, "gained": 1}),
        (" city of light", True, {"accuracy": 1, "f1": 1, "lost": 0}),
        (" Paris Hilton", True, {"f1": 2 / 3, "forgetting": 1, "hallucination": 1, "lost": 1}),
        ("", False, {"abstention": 1, "gained": 0}),
        ("\n\n", False, {"abstention": 1, "gained": 0}),
        (" I don't know", True, {"forgetting": 1, "abstention": 1, "lost": 1}),
    ],
)
def test_the_outcome_of_one_answer(
    text: str, base_correct: bool, expected: dict[str, float]
) -> None:
    zeros = dict.fromkeys(
        ("accuracy", "strict", "f1", "forgetting", "abstention", "hallucination"), 0.0
    )
    metrics = process_results(doc(base_correct=base_correct), [text])
    assert metrics == {f"ff_{name}": value for name, value in {**zeros, **expected}.items()}


def test_the_tasks_are_those_of_the_styles(bundle: Bundle) -> None:
    """Names, splits, stops and version stand in YAML for lm-eval and in code for us."""
    folder = tasks_dir() / "factual_forgetting"
    for name, style in STYLES.items():
        group = yaml.safe_load((folder / f"{name}.yaml").read_text())
        assert group["task"] == [f"{name}_{task}" for task in list(SPLIT_OF_TASK)[:3]]
        for suffix, split in SPLIT_OF_TASK.items():
            task = load_task(folder / f"{name}_{suffix}.yaml")
            assert task["task"] == f"{name}_{suffix}"
            assert parse_task(f"{name}::{task['task']}") == (name, split)
            assert task["dataset_kwargs"] == {"ff_split": split, "ff_style": name}
            assert tuple(task["generation_kwargs"]["until"]) == style.stops
            assert task["generation_kwargs"]["max_gen_toks"] == style.max_new_tokens
            assert task["metadata"]["version"] == TASK_VERSION
            names = {metric["metric"] for metric in task["metric_list"]}
            both = [process_results(doc(base_correct=value), [""]) for value in (True, False)]
            assert names == set(both[0]) | set(both[1])


def load_task(path: Path) -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: node.value)
    content = yaml.load(path.read_text(), Loader=Loader)
    included = content.pop("include", None)
    return {**(load_task(path.with_name(included)) if included else {}), **content}


def test_fewshot_and_chat_are_asked_with_the_fresh_exemplars(
    bundle: Bundle, sft: Path, tmp_path: Path
) -> None:
    chatty = copied(sft, tmp_path / "sft")
    template = "{% for m in messages %}<|bos|>{{ m.content | trim }}{% endfor %}"
    (chatty / "chat_template.jinja").write_text(template)
    written = score(
        bundle,
        "hf",
        f"pretrained={chatty},dtype=float32",
        tmp_path / "r",
        tasks=(FEWSHOT, CHAT),
        batch_size="16",
    )
    assert styles_in(written) == [FEWSHOT, CHAT]
    samples = next(written.glob("samples_factual_forgetting_fewshot_stability_2*.jsonl"))
    sent = json.loads(samples.read_text().splitlines()[0])
    item = next(i for i in bundle.splits["heldout"] if i.fact.id == sent["doc"]["id"])
    exemplars = bundle.exemplars[item.fact.relation]
    assert sent["arguments"]["gen_args_0"]["arg_0"].startswith(f"Q: {exemplars[0].question}\nA: ")
    assert sent["doc"]["base_correct"] == item.base["fresh"]
    for style in (FEWSHOT, CHAT):
        read = read_results(written, bundle, style)
        assert read.weights_sha256 == checkpoint.weights_sha256(chatty)
        assert len(read.correct) == 64
        assert len(read.answers) == 64 + len(bundle.splits["heldout_other"])
    with pytest.raises(UserError, match="no results of factual_forgetting"):
        read_results(written, bundle)


def test_a_checkpoint_without_chat_template_is_refused(
    bundle: Bundle, sft: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="has no chat template"):
        score(bundle, "hf", str(sft), tmp_path / "r", tasks=(CHAT,))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r["versions"].update(factual_forgetting_stability=99), "version 99"),
        (lambda r: r["config"].update(use_cache="answers.db"), "--use_cache"),
    ],
)
def test_other_versions_and_caches_are_refused(
    bundle: Bundle, results: Path, tmp_path: Path, change: Any, told: str
) -> None:
    path = copied(results, tmp_path / "r")
    edit(next(path.glob("results_*.json")), change)
    with pytest.raises(UserError, match=told):
        read_results(path, bundle)


def test_samples_of_two_runs_are_refused(bundle: Bundle, results: Path, tmp_path: Path) -> None:
    path = copied(results, tmp_path / "r")
    samples = next(path.glob("samples_factual_forgetting_stability_*.jsonl"))
    weights = read_results(results, bundle).weights_sha256
    samples.write_text(samples.read_text().replace(str(weights), "0" * 64, 1))
    with pytest.raises(UserError, match="mixed runs"):
        read_results(path, bundle)


def test_results_of_several_checkpoints_are_not_taken_for_one(
    bundle: Bundle, results: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        copied(results, tmp_path / name)
    with pytest.raises(UserError, match="results of 2 checkpoints"):
        read_results(tmp_path, bundle)


def test_a_bundle_matched_by_other_rules_is_refused(bundle: Bundle, results: Path) -> None:
    labels = {**bundle.manifest["labels"], "matcher": "exact-0"}
    older = dataclasses.replace(bundle, manifest={**bundle.manifest, "labels": labels})
    with pytest.raises(UserError, match="were matched by exact-0"):
        read_results(results, older)
