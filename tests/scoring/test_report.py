import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import factual_forgetting
from factual_forgetting import checkpoint, files
from factual_forgetting.bundle.manifest import HELDOUT, Bundle
from factual_forgetting.cli import main
from factual_forgetting.errors import UserError
from factual_forgetting.facts.account import by_relation, majority_answer
from factual_forgetting.scoring import render
from factual_forgetting.scoring.anatomy import KINDS, anatomy
from factual_forgetting.scoring.judging import judge
from factual_forgetting.scoring.report import Report, compare_two, in_order, make_curve, make_report
from factual_forgetting.scoring.results import Results, read_results


@pytest.fixture
def read(bundle: Bundle, results: Path) -> Results:
    return read_results(results, bundle)


def answering(read: Results, bundle: Bundle, answer: Any) -> Results:
    """The same results with other answers: `answer(fact, split)`."""
    facts = {item.fact.id: (item.fact, split) for split, item in bundle.items()}
    answers = {key: answer(*facts[key]) for key in read.answers}
    judged = {
        key: judge(text, fact.answers, fact.aliases, fact.subject, chat=False)
        for key, text in answers.items()
        for fact, _ in [facts[key]]
    }
    correct = {key: judged[key].correct for key in read.correct}
    return dataclasses.replace(read, answers=answers, judgements=judged, correct=correct)


def test_each_fact_has_one_transition(bundle: Bundle, read: Results) -> None:
    report = make_report(bundle, read)
    assert report.trained  # a run of finetune on this bundle
    for split, counts in report.summary["transitions"].items():
        assert sum(counts.values()) == len(bundle.splits[split])
    # The fixture's base has D_Known and D_Held right, D_Unk wrong.
    metrics, counts = report.summary["metrics"], report.summary["transitions"]
    assert counts["heldout"]["lost"] / 16 == metrics["lost"]["value"]
    assert counts["unknown"]["learned"] / 24 == metrics["plasticity"]["value"]
    assert counts["known"]["kept"] / 24 == metrics["task_learning"]["value"]
    lost = report.facts("lost")
    assert len(lost) == sum(row["lost"] for row in counts.values())
    assert all(row["answer"].strip() != row["gold"] for row in lost)


def test_intrusions_are_objects_of_the_unknown(bundle: Bundle, read: Results) -> None:
    taught = bundle.splits["unknown"][0].fact.answers[0]
    held = [item.fact.id for item in bundle.splits["heldout"]]
    texts = dict(zip(held, [taught] * 3 + ["", "I don't know"] + ["nowhere"] * 11, strict=True))
    report = make_report(bundle, answering(read, bundle, lambda fact, _: texts.get(fact.id, "")))
    metrics = report.summary["metrics"]
    wrong = [key for key in held if texts[key] and not report.results.correct[key]]
    named = sum(texts[key] == taught for key in wrong)
    assert metrics["intrusion"]["n"] == len(wrong) - 1  # one declines
    assert metrics["intrusion"]["value"] == pytest.approx(named / (len(wrong) - 1))
    assert metrics["abstention"]["value"] == 2 / 16


def test_majority_answers_are_shown_apart(bundle: Bundle, read: Results) -> None:
    splits = ("known", "unknown", "heldout")
    facts = by_relation(item.fact for split in splits for item in bundle.splits[split])
    majority = {relation: majority_answer(found) for relation, found in facts.items()}
    answers = answering(read, bundle, lambda fact, _: majority[fact.relation])
    metrics = make_report(bundle, answers).summary["metrics"]
    assert metrics["stability_minority"]["value"] == 0.0
    assert metrics["stability_majority"]["value"] == 1.0
    assert metrics["stability_majority"]["n"] + metrics["stability_minority"]["n"] == 16


def test_strangers_are_not_trained(bundle: Bundle, read: Results) -> None:
    stranger = dataclasses.replace(read, pretrained="/nowhere")
    report = make_report(bundle, stranger)
    assert report.summary["metrics"]["plasticity"] is None
    assert "not trained" in render.report_markdown([report])
    assert make_report(bundle, stranger, trained=True).summary["metrics"]["plasticity"] is not None
    swapped = dataclasses.replace(read, weights_sha256="0" * 64)
    assert not make_report(bundle, swapped).trained


def test_silence_is_told_apart_from_forgetting(bundle: Bundle, read: Results) -> None:
    for text in ("", "\n\n"):
        silent = make_report(bundle, answering(read, bundle, lambda fact, _, text=text: text))
        assert silent.summary["metrics"]["stability"]["value"] == 0.0
        assert silent.summary["metrics"]["hallucination"]["value"] == 0.0
        assert silent.summary["metrics"]["abstention"]["value"] == 1.0
        assert "answered nothing, or newlines alone, to 100%" in silent.summary["notes"][0]


def test_a_base_that_rarely_speaks_the_form_is_told(bundle: Bundle, read: Results) -> None:
    held = [
        dataclasses.replace(item, base={**item.base, "zero_shot": number < 3})
        for number, item in enumerate(bundle.splits[HELDOUT])
    ]
    other = dataclasses.replace(bundle, splits={**bundle.splits, HELDOUT: held})
    (note,) = make_report(other, read).summary["notes"]
    assert f"has 3 of its {len(held)} facts of D_Held right in this prompt" in note
    assert "factual_forgetting_fewshot beside it" in note


def test_another_tokenizer_and_declared_descent_are_told(bundle: Bundle, read: Results) -> None:
    assert make_report(bundle, read).summary["notes"] == []
    other = dataclasses.replace(read, tokenizer_sha256="0" * 64, descent_declared=True)
    notes = " ".join(make_report(bundle, other).summary["notes"])
    assert "tokenizer differs" in notes
    assert "declared, not checked" in notes
    served = dataclasses.replace(read, weights_sha256=None)
    assert "didn't see its weights" in make_report(bundle, served).summary["notes"][0]


def test_checkpoints_of_one_run_give_a_curve(bundle: Bundle, read: Results) -> None:
    learned = {item.fact.id: n for n, item in enumerate(bundle.splits["unknown"])}

    def at(step: int, share: float) -> Results:
        """Knows that share of D_Unk; forgets half of D_Held at the end."""
        found = answering(
            read,
            bundle,
            lambda fact, split: (
                ("" if learned.get(fact.id, -1) >= share * 24 else fact.answers[0])
                if split != "heldout" or step < 300 or int(fact.id, 16) % 2
                else "gone"
            ),
        )
        return dataclasses.replace(found, pretrained=f"/runs/a/checkpoint-{step}")

    given = [at(300, 1.0), at(100, 0.5), at(200, 0.75)]
    ordered = in_order(given)
    assert ordered is not None
    assert ordered[0].pretrained == "/runs/a/checkpoint-100"
    curve = make_curve(bundle, [make_report(bundle, found, trained=True) for found in ordered])
    assert [point["plasticity"] for point in curve["points"]] == [0.0, 0.5, 0.75, 1.0]
    stability = curve["points"][-1]["stability"]
    # P goes from .75 to 1: .9 is three fifths of the way.
    assert curve["stability_at_p90"]["stability"] == pytest.approx(1 + 0.6 * (stability - 1))
    assert f"S@P90: {curve['stability_at_p90']['stability']:.3f}" in render.curve_markdown(curve)
    elsewhere = dataclasses.replace(given[0], pretrained="/runs/b/checkpoint-300")
    assert in_order([elsewhere, *given[1:]]) is None
    assert in_order(given[:1]) is None


def test_three_seeds_are_no_curve(
    bundle: Bundle, read: Results, sft: Path, results: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    seeds = [str(shutil.copytree(sft, tmp_path / f"checkpoint-{seed}")) for seed in range(3)]
    given = [dataclasses.replace(read, pretrained=path) for path in seeds]
    assert in_order(given) is None
    named = [dataclasses.replace(read, pretrained=f"runs/sft-{seed}") for seed in range(3)]
    assert in_order(named) is None
    # A Trainer's state tells the step, whatever the name.
    for seed, path in enumerate(seeds):
        (Path(path) / "run.json").unlink()
        files.write_json(Path(path) / "trainer_state.json", {"global_step": 30 - seed})
    assert in_order(given) == given[::-1]
    assert in_order([*reversed(named)], declared=True) == named
    other = dataclasses.replace(read, pretrained="runs/last")
    assert in_order([named[1], other], declared=True) == [named[1], other]
    argv = ["report", str(results), "--bundle", str(bundle.path), "--curve"]
    assert main(argv) == 1
    assert "two or more checkpoints" in capsys.readouterr().err


def of_tasks(results: Path, path: Path, *names: str) -> Path:
    """The same results, of these tasks alone."""
    shutil.copytree(results, path)
    (file,) = path.glob("results_*.json")
    told = json.loads(file.read_text())
    told["results"] = {
        f"factual_forgetting_{n}": told["results"][f"factual_forgetting_{n}"] for n in names
    }
    file.write_text(json.dumps(told))
    return path


def test_results_of_some_tasks_are_reported_and_not_recorded(
    bundle: Bundle, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make_report(bundle, read_results(results, bundle)).summary["metrics"]
    bundled = ["--bundle", str(bundle.path)]
    for missing, names in {
        "heldout": ("learning", "plasticity"),
        "known": ("stability",),
    }.items():
        one = of_tasks(results, tmp_path / missing / "a", *names)
        shutil.copytree(one, tmp_path / missing / "b")
        found = make_report(bundle, read_results(one, bundle)).summary["metrics"]
        asked = {key for key, value in found.items() if value is not None}
        shown = {"task_learning", "plasticity"} if missing == "heldout" else {"stability", "lost"}
        assert shown <= asked
        assert {key: found[key] for key in asked} == {key: whole[key] for key in asked}
        assert main(["report", str(tmp_path / missing), *bundled]) == 0
        assert ("McNemar" in capsys.readouterr().out) == (missing == "known")
        records = ["--output_path", str(tmp_path / "records"), "--submitter", "me"]
        assert main(["record", str(one), *bundled, *records]) == 1
        assert f"no answers to the facts of {missing}" in capsys.readouterr().err
    assert not (tmp_path / "records").exists()


def test_a_run_is_found_from_another_directory(
    bundle: Bundle, sft: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scored as `runs/sft` in one directory, read in another, which has another `runs/sft`."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    shutil.copytree(sft, home / "runs" / "sft")
    shutil.copytree(results, home / "results" / "runs__sft")
    (file,) = (home / "results" / "runs__sft").glob("results_*.json")
    told = json.loads(file.read_text())
    told["config"]["model_args"] = "pretrained=runs/sft,dtype=float32"
    file.write_text(json.dumps(told))
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert make_report(bundle, read_results(home / "results", bundle)).trained
    other = shutil.copytree(sft, elsewhere / "runs" / "sft")
    (other / "model.safetensors").write_bytes(b"another")
    report = make_report(bundle, read_results(home / "results", bundle))
    assert report.trained
    assert report.results.name == "runs/sft"
    shutil.rmtree(other)
    shutil.rmtree(home / "runs")
    report = make_report(bundle, read_results(home / "results", bundle))
    assert not report.trained
    assert any("say --trained" in note for note in report.summary["notes"])


@pytest.mark.parametrize("foreign", ["[]", "{}", "not JSON", '{"seed": 1}'])
def test_a_run_json_of_another_program_is_none_of_ours(
    bundle: Bundle, results: Path, sft: Path, tmp_path: Path, foreign: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    checkpoint_path = shutil.copytree(sft, tmp_path / "sft")
    (checkpoint_path / "run.json").write_text(foreign)
    found = dataclasses.replace(read_results(results, bundle), pretrained=str(checkpoint_path))
    assert not make_report(bundle, found).trained
    assert main(["record", str(checkpoint_path), "--submitter", "me"]) == 1
    assert main(["frontier", str(checkpoint_path), "--bundle", str(bundle.path)]) == 1
    assert capsys.readouterr().err.count("factual-forgetting: ") == 2


def test_names_are_as_short_as_tells_them_apart(bundle: Bundle, read: Results) -> None:
    def headings(*paths: str) -> list[str]:
        reports = [make_report(bundle, dataclasses.replace(read, name=path)) for path in paths]
        lines = render.report_markdown(reports).splitlines()
        return [line.removeprefix("## ") for line in lines if line.startswith("## ")]

    assert headings("runs/sft") == ["sft"]
    assert headings("runs/sft/0/", "runs/lora/0") == ["sft/0", "lora/0"]
    assert headings("runs/sft", "runs/sft") == ["sft (1)", "sft (2)"]


def test_two_checkpoints_are_compared_fact_by_fact(bundle: Bundle, read: Results) -> None:
    held = [item.fact.id for item in bundle.splits["heldout"]]

    def knowing(ids: list[str]) -> Report:
        told = answering(read, bundle, lambda fact, _: fact.answers[0] if fact.id in ids else "no")
        return make_report(bundle, told)

    # 1 against 5 of 6 discordant: 2 (1 + 6) / 64.
    for first, second, p_value in ((16, 16, 1), (16, 0, 2 / 2**16), (1, 5, 14 / 64)):
        one, other = knowing(held[:first]), knowing(held[16 - second :])
        found = compare_two(one, other, bundle)
        both = max(first + second - 16, 0)
        counts = found["only_first_right"], found["only_second_right"]
        assert counts == (first - both, second - both)
        assert found["p_value"] == pytest.approx(p_value)
    fewshot = dataclasses.replace(read, style="factual_forgetting_fewshot")
    with pytest.raises(UserError, match="Compare results of the same tasks"):
        compare_two(one, dataclasses.replace(other, results=fewshot), bundle)


def test_the_command_shows_answers_side_by_side(
    bundle: Bundle, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        shutil.copytree(results, tmp_path / name)
    argv = ["report", str(tmp_path), "--bundle", str(bundle.path), "--control", str(results)]
    assert main([*argv, "--show", "lost", "--anatomy", "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "exact McNemar p = 1" in told
    assert "control (known only)" in told
    assert "| gold " in told
    assert told.count("Anatomy of") == told.count("A few-shot prompt brings back") == 2
    assert main([*argv, "--show", "lost", "--format", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert len(content["reports"]) == 2
    assert content["facts"][0][0]["question"] in told


@pytest.mark.parametrize("flag", ["--cache_requests", "--use_cache"])
def test_caches_are_refused_with_the_reason(
    bundle: Bundle, sft: Path, tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["score", "--model_args", str(sft), "--bundle", str(bundle.path)]
    assert main([*argv, flag, "true", "--output_path", str(tmp_path / "r")]) == 1
    assert f"{flag} is refused: its keys" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_tokenizer_of_another_kind_is_scored_and_told(
    bundle: Bundle, sft: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(sft, tmp_path / "other")
    content = files.read_json(other / "tokenizer.json")
    content["pre_tokenizer"] = None
    files.write_json(other / "tokenizer.json", content)
    found = factual_forgetting.score(f"pretrained={other},dtype=float32", bundle, batch_size=16)
    assert any("tokenizer differs" in note for note in found.report.summary["notes"])


def test_declared_descent_is_scored(bundle: Bundle, sft: Path, tmp_path: Path) -> None:
    from small import make_model

    model = make_model("mistral", files.read_json(sft / "config.json")["vocab_size"])
    model.config.num_attention_heads = 4
    model.save_pretrained(tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(sft / name, tmp_path / "other" / name)
    shape = files.read_json(tmp_path / "other" / "config.json")
    marked = dataclasses.replace(
        bundle,
        manifest={**bundle.manifest, "base": {**bundle.manifest["base"], "lineage": "mark"}},
    )
    assert shape["num_hidden_layers"] == 2
    with pytest.raises(UserError, match="doesn't declare"):
        checkpoint.require_descent(tmp_path / "other", marked.manifest["base"])
    found = factual_forgetting.score(tmp_path / "other", bundle, batch_size=16, descends=True)
    assert "declared" in " ".join(found.report.summary["notes"])


def test_the_python_interface(bundle: Bundle, sft: Path, tmp_path: Path) -> None:
    found = factual_forgetting.score(sft, bundle, output_path=tmp_path, batch_size=16)
    frame = found.to_pandas()
    held = frame[frame["split"] == "heldout"]
    assert held["correct"].mean() == found.metrics["stability"]["value"]
    assert set(frame["transition"]) <= {"kept", "lost", "learned", "still unknown"}
    assert "stability S" in str(found)
    for axes in (found.plot(), found.plot_relations()):
        axes.figure.savefig(tmp_path / "plot.png")
        assert (tmp_path / "plot.png").stat().st_size > 5000
    labels = [text.get_text() for text in found.plot().get_yticklabels()]
    assert labels[:3] == ["task learning", "plasticity", "stability"]
    with pytest.raises(AttributeError):
        factual_forgetting.nothing  # noqa: B018


def test_the_anatomy_has_one_row_a_lost_fact(bundle: Bundle, read: Results) -> None:
    report = make_report(bundle, read)
    found = anatomy(bundle, report, device="cpu")
    assert found["lost"] == report.summary["transitions"]["heldout"]["lost"] > 0
    assert sum(found["kinds"][kind] for kind in KINDS) == found["lost"] == len(found["facts"])
    for row in found["facts"]:
        assert len(row["correct"]) == 20
        assert 0 <= row["probability_scored"] <= 1
        assert row["rank_scored"] >= 1
        if row["kind"] == "erased":
            assert row["correct"] == "0" * 20
            assert not row["brought_back"]
    assert "Anatomy of" in render.anatomy_markdown(found)
    for change, told in (
        ({"pretrained": "/nowhere"}, "loads the checkpoint itself"),
        ({"weights_sha256": "0" * 64}, "aren't those that were scored"),
    ):
        other = dataclasses.replace(report, results=dataclasses.replace(read, **change))
        with pytest.raises(UserError, match=told):
            anatomy(bundle, other)


def test_checkpoints_of_one_run_are_scored_together(
    bundle: Bundle,
    sft: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import lm_eval.tasks

    indexed: set[str] = set()

    class Watched(lm_eval.tasks.TaskManager):  # type: ignore[misc]
        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            indexed.update(self.all_tasks)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", Watched)
    # As a Trainer leaves them; what finetune finishes is no checkpoint of another run.
    ours = shutil.ignore_patterns("run.json")
    paths = [
        shutil.copytree(sft, tmp_path / f"checkpoint-{step}", ignore=ours) for step in (20, 10)
    ]
    argv = ["score", "--model_args", *map(str, paths), "--bundle", str(bundle.path)]
    argv += ["--output_path", str(tmp_path / "r"), "--batch_size", "16", "--device", "cpu"]
    assert main(argv) == 0
    told = capsys.readouterr().out
    assert "S@P90" in told
    assert "add --no-trained" in told
    assert indexed
    assert all(name.startswith("factual_forgetting") for name in indexed)
    content = files.read_json(tmp_path / "r/report_factual_forgetting.json")
    assert [Path(p["checkpoint"]).name for p in content["curve"]["points"]] == [
        "base",
        "checkpoint-10",
        "checkpoint-20",
    ]
    again = ["report", str(tmp_path / "r"), "--bundle", str(bundle.path), "--no-trained"]
    assert main(again) == 0
    told = capsys.readouterr().out
    assert "S@P90" not in told
    assert "not trained" in told
