import dataclasses
import json
import re
import shutil
from collections.abc import Callable
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
from factual_forgetting.scoring.results import asked_sha256, find_results, read_results
from factual_forgetting.scoring.score import run_lm_eval
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
    run_lm_eval(
        bundle, "hf", f"pretrained={output},dtype=float32", output / "results", batch_size="16"
    )
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


def test_what_a_killed_score_left_is_no_result(
    bundle: Bundle, sft: Path, results: Path, tmp_path: Path
) -> None:
    """Half of a file that lm-eval wrote is apart, and samples without results go."""
    copy = tmp_path / "out" / results.name
    shutil.copytree(results, copy)
    left = copy / "samples_factual_forgetting_learning_2020-01-01T00-00-00.123456.jsonl"
    left.write_text("{")
    apart = tmp_path / "out" / ".lm-eval.partial" / results.name
    apart.mkdir(parents=True)
    (apart / "results_2020-01-01T00-00-00.json").write_text("{")
    assert find_results([tmp_path / "out"]) == [copy]
    given = f"pretrained={sft},dtype=float32"
    assert run_lm_eval(bundle, "hf", given, tmp_path / "out", batch_size="16") == copy
    assert not left.exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [copy.name]
    assert len(list(copy.glob("results_*.json"))) == 2


@pytest.mark.parametrize("fault", ["save_results_samples", "save_results_aggregated"])
def test_results_that_lm_eval_could_not_write_are_told(
    fault: str, bundle: Bundle, sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It warns of a full disk, and goes on."""
    from lm_eval.loggers import EvaluationTracker

    monkeypatch.setattr(EvaluationTracker, fault, lambda *given, **named: None)
    with pytest.raises(UserError, match="no whole results"):
        run_lm_eval(bundle, "hf", f"pretrained={sft},dtype=float32", tmp_path, batch_size="16")


Spoil = Callable[[Path], None]


def edit(change: Callable[[Any], Any]) -> Spoil:
    """Changes what lm-eval wrote of its results."""

    def spoil(path: Path) -> None:
        file = next(path.glob("results_*.json"))
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return spoil


def samples_of(path: Path, style: str = TASK) -> Path:
    return next(path.glob(f"samples_{style}_stability_2*.jsonl"))


def rewrite(change: Callable[[str], str]) -> Spoil:
    """Changes the samples of D_Held."""

    def spoil(path: Path) -> None:
        file = samples_of(path)
        file.write_text(change(file.read_text()))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (edit(lambda found: found["config"].update(limit=3)), "made with --limit"),
        (edit(lambda found: found["config"].update(use_cache="answers.db")), "--use_cache"),
        (edit(lambda found: found["versions"].update({f"{TASK}_stability": 99})), "version 99"),
        (rewrite(lambda text: text.replace('toks": 16', 'toks": 4')), "generation settings"),
        (rewrite(lambda text: text.replace('"max_gen', '"num_beams": 4, "max_gen')), "generation"),
        (rewrite(lambda text: re.sub(r'(bundle_sha256": ")\w', r"\1x", text)), "another bundle"),
        (rewrite(lambda text: re.sub(r'(weights_sha256": ")\w', r"\1x", text, count=1)), "mixed"),
        (rewrite(lambda text: "".join(text.splitlines(True)[:-3])), "13 answers where .* has 16"),
        (rewrite(lambda text: text[:-100]), "line 16: not JSON"),
        (rewrite(lambda text: '{"doc": 1}\n'), "line 1: not a sample"),
        (lambda path: samples_of(path).unlink(), "Score again with --log_samples"),
        (lambda path: shutil.copytree(path, path / "b"), "results of 2 checkpoints"),
    ],
)
def test_spoiled_results_are_refused(
    bundle: Bundle, results: Path, tmp_path: Path, spoil: Spoil, told: str
) -> None:
    path = shutil.copytree(results, tmp_path / "r")
    spoil(path)
    with pytest.raises(UserError, match=told):
        read_results(path, bundle)


def test_a_bundle_matched_by_other_rules_is_refused(bundle: Bundle, results: Path) -> None:
    labels = {**bundle.manifest["labels"], "matcher": "exact-0"}
    older = dataclasses.replace(bundle, manifest={**bundle.manifest, "labels": labels})
    with pytest.raises(UserError, match="were matched by exact-0"):
        read_results(results, older)


def test_group_names_of_lm_eval_05_are_read(bundle: Bundle, results: Path, tmp_path: Path) -> None:
    path = shutil.copytree(results, tmp_path / "r")
    plain, newer = f"{TASK}_stability", f"{TASK}::{TASK}_stability"
    edit(lambda found: found.update(results={newer: found["results"][plain]}))(path)
    samples = samples_of(path)
    samples.rename(samples.with_name(samples.name.replace(plain, newer)))
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
    other = shutil.copytree(base, tmp_path / "other")
    files.write_json(other / "config.json", {**files.read_json(other / "config.json"), key: 3})
    with pytest.raises(UserError, match=f"{told}.*declare it"):
        run_lm_eval(bundle, "hf", str(other), tmp_path / "r")


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
        run_lm_eval(bundle, model, args.format(sft), tmp_path / "r", batch_size="16", device="cpu")


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
    chatty = shutil.copytree(sft, tmp_path / "sft")
    template = "{% for m in messages %}<|bos|>{{ m.content | trim }}{% endfor %}"
    (chatty / "chat_template.jinja").write_text(template)
    args, styles = f"pretrained={chatty},dtype=float32", (FEWSHOT, CHAT)
    written = run_lm_eval(bundle, "hf", args, tmp_path / "r", tasks=styles, batch_size="16")
    samples = samples_of(written, FEWSHOT)
    sent = json.loads(samples.read_text().splitlines()[0])
    item = next(i for i in bundle.splits["heldout"] if i.fact.id == sent["doc"]["id"])
    exemplars = bundle.exemplars[item.fact.relation]
    assert sent["arguments"]["gen_args_0"]["arg_0"].startswith(f"Q: {exemplars[0].question}\nA: ")
    assert sent["doc"]["base_correct"] == item.base["fresh"]
    for style in styles:
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
        run_lm_eval(bundle, "hf", str(sft), tmp_path / "r", tasks=(CHAT,))


def test_names_that_meet_do_not_share_a_folder(
    bundle: Bundle, sft: Path, base: Path, tmp_path: Path
) -> None:
    ours, theirs = tmp_path / "x" / "y", tmp_path / "x__y"
    shutil.copytree(base, ours)
    shutil.copytree(sft, theirs)
    output = tmp_path / "r"
    asked = [str(ours), f"pretrained={theirs}", f"pretrained={theirs},dtype=float32", str(ours)]
    folders = [run_lm_eval(bundle, "hf", given, output, batch_size="16") for given in asked]
    # lm-eval's name for all of them; asked again, a checkpoint finds its own.
    assert folders[0] == folders[3] == output / re.sub("/+", "__", str(ours))
    assert len(set(folders)) == 3
    weights = [read_results(folder, bundle).weights_sha256 for folder in folders[:3]]
    assert weights == [checkpoint.weights_sha256(path) for path in (ours, theirs, theirs)]
    assert len(find_results([output])) == 3


def test_a_folder_of_several_checkpoints_is_refused(
    bundle: Bundle, results: Path, tmp_path: Path
) -> None:
    """The bare lm_eval names folders as it does."""
    path = shutil.copytree(results, tmp_path / "r")
    file = next(path.glob("results_*.json"))
    content = files.read_json(file)
    content["config"]["model_args"] |= {"batch_size": 4}  # how a machine runs it
    files.write_json(path / "results_2000.json", content)
    assert read_results(path, bundle).path == file
    content["config"]["model_args"] |= {"dtype": "bfloat16"}
    files.write_json(path / "results_2000.json", content)
    with pytest.raises(UserError, match="several checkpoints, or of one with other --model_args"):
        read_results(path, bundle)
    assert read_results(file, bundle).path == file


def test_two_servers_of_one_model_are_two() -> None:
    def at(port: int) -> dict[str, Any]:
        args = f"model=m,base_url=http://127.0.0.1:{port}/v1/completions"
        return {"config": {"model": "local-completions", "model_args": args}}

    assert asked_sha256(at(1)) == asked_sha256(at(1)) != asked_sha256(at(2))


def test_a_checkpoints_own_decoding_changes_no_score(
    bundle: Bundle, sft: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asking = Path(shutil.copytree(sft, tmp_path / "asking"))
    file = asking / "generation_config.json"
    asked = {"suppress_tokens": list(range(3, 300)), "repetition_penalty": 3.0}
    file.write_text(json.dumps(json.loads(file.read_text()) | asked))
    arguments = f"pretrained={asking},dtype=float32"
    written = run_lm_eval(bundle, "hf", arguments, tmp_path / "results", batch_size="16")
    assert read_results(written, bundle).answers == read_results(results, bundle).answers
    assert "ask for (repetition_penalty 3.0, suppress_tokens)" in capsys.readouterr().err
    told = json.loads(next(written.rglob("results_*.json")).read_text())
    assert (told["config"]["model"], told["model_source"]) == ("hf", "hf")
    # The bare command can't but follow the file.
    with pytest.raises(UserError, match="Score it with factual-forgetting score"):
        load_split("heldout", TASK, str(bundle.path), pretrained=str(asking))
