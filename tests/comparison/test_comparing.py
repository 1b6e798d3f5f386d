from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from factual_forgetting import files
from factual_forgetting.bundle.manifest import HELDOUT, Bundle
from factual_forgetting.comparison import comparing
from factual_forgetting.comparison.comparing import (
    compare,
    compare_models,
    default_facts,
    next_size,
)
from factual_forgetting.comparison.contestants import read_contestants
from factual_forgetting.comparison.interview import Interview, Opening
from factual_forgetting.comparison.questions import COMPARED
from factual_forgetting.comparison.result import Comparison
from factual_forgetting.errors import InputError, PackageError, UserError
from factual_forgetting.scoring.results import read_results
from stage import Stage, files_of, models, questions, some_facts

FACTS = some_facts()


def run(folder: Path, *forgets: float, quick: bool = False, **settings: Any) -> Comparison:
    asked = questions(FACTS, **settings)
    return compare_models(models(*forgets), asked, Opening(), folder, quick=quick)


def test_what_is_known_is_right_in_all_prompts_and_lost_is_what_the_checkpoint_forgot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage = Stage(monkeypatch)
    found = run(tmp_path, 0.3)
    pairs = found.outcomes["tuned-0.3"]
    known = [pair for pair in pairs if pair.known]
    assert 80 < len(known) < 130
    # Exemplars are asked nowhere, and the compared prompt is none of the choosing ones.
    asked = questions(FACTS)
    exemplars = {key for drawn in asked.drawn.values() for key in drawn.ids}
    assert not exemplars & {pair.fact.id for pair in pairs}
    counts = Counter(stage.asked["base"])
    assert set(counts.values()) == {1}
    assert set(stage.asked["tuned-0.3"]) <= set(counts)
    row = found.summary["checkpoints"][0]["measures"]
    lost = sum(pair.base.right and not pair.reply.right for pair in known)
    assert row["fates"]["lost"] == lost
    assert row["lost"]["value"] == lost / sum(pair.base.right for pair in known)
    assert row["net"]["value"] == pytest.approx(
        found.summary["floor"]["stability"]["value"] - row["stability"]["value"]
    )
    assert 0.2 < row["lost"]["value"] < 0.4


def test_the_floor_is_what_another_prompt_alone_loses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Stage(monkeypatch)
    found = run(tmp_path, 0.0, runs=1)
    floor, row = found.summary["floor"], found.summary["checkpoints"][0]["measures"]
    assert floor["lost"]["value"] > 0.05
    assert row["lost"]["value"] == row["net"]["value"] == 0
    assert row["net"]["low"] < 0 < row["net"]["high"]
    assert "tuned-0.0 is the base itself" in str(found)


def test_killed_and_started_again_it_gives_the_same_bytes_and_asks_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("factual_forgetting.comparison.interview._PIECE", 32)
    whole = Stage(monkeypatch)
    expected = run(tmp_path / "whole", 0.3, 0.1)
    for stop in (1, 2, whole.calls // 2, whole.calls):
        stage, folder = Stage(monkeypatch), tmp_path / str(stop)
        stage.stop_at = stop
        with pytest.raises(KeyboardInterrupt):
            run(folder, 0.3, 0.1)
        stage._last = None
        found = run(folder, 0.3, 0.1)
        assert files_of(folder) == files_of(tmp_path / "whole")
        assert found.summary == expected.summary
        assert stage.calls == whole.calls + 1


def test_one_more_checkpoint_asks_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage = Stage(monkeypatch)
    first = run(tmp_path, 0.3)
    stage.opened.clear()
    both = run(tmp_path, 0.3, 0.1)
    assert stage.opened == ["tuned-0.1"]
    assert both.summary["checkpoints"][0] == first.summary["checkpoints"][0]
    (test,) = both.summary["mcnemar"]
    assert test["checkpoints"] == ["tuned-0.3", "tuned-0.1"]
    assert test["only_first_right"] == 0 < test["only_second_right"]
    assert test["p_value"] < 0.05


@pytest.mark.parametrize(
    ("change", "told"),
    [({"runs": 4}, "settings.runs was 5, now 4"), ({"style": "zero_shot"}, "settings.style was")],
)
def test_answers_of_another_comparison_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    Stage(monkeypatch)
    run(tmp_path, 0.3)
    with pytest.raises(UserError, match=told):
        run(tmp_path, 0.3, **change)
    asked = questions(FACTS[:-1])
    with pytest.raises(UserError, match="facts_sha256 was"):
        compare_models(models(0.3), asked, Opening(), tmp_path, quick=False)
    other = models(0.3)[1:] * 2
    with pytest.raises(UserError, match=r"base\.weights_sha256 was"):
        compare_models(other, questions(FACTS), Opening(), tmp_path, quick=False)


def test_a_damaged_journal_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Stage(monkeypatch)
    run(tmp_path, 0.3)
    for journal in (tmp_path / "answers").iterdir():
        journal.write_text("{\n")
    with pytest.raises(InputError, match=r"is damaged\. Remove it"):
        run(tmp_path, 0.3)


def test_quick_stops_where_the_net_loss_is_known_within_three_points(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Stage(monkeypatch)
    asked = questions(some_facts(4000))
    found = compare_models(models(0.1), asked, Opening(), tmp_path, quick=True)
    portion = found.summary["portion"]
    assert comparing.FIRST_PORTION < portion["asked"] < portion["of"]
    assert found.half_width <= comparing.CLOSE_ENOUGH
    assert "Quick: stopped where the net loss is known within 2." in str(found)
    # It asked a beginning of the order, and the whole comparison goes on from there.
    ids = [pair.fact.id for pair in found.outcomes["tuned-0.1"]]
    assert set(ids) <= {fact.id for fact in asked.order[: portion["asked"]]}
    few = compare_models(models(0.1), questions(FACTS), Opening(), tmp_path / "few", quick=True)
    assert "Quick: all 204 facts were asked" in str(few)


def test_growth_follows_the_interval() -> None:
    assert next_size(400, 0.06) == 1600
    assert next_size(400, 0.04) == pytest.approx(400 * 1.1 * 16 / 9, abs=1)
    assert next_size(400, 0.0301) == 480
    assert next_size(400, float("inf")) == 1600


def test_any_beginning_of_the_order_has_all_relations_in_their_shares() -> None:
    facts = [*some_facts(400, 1), *(f for f in some_facts(1200) if f.relation == "R1")]
    order = questions(facts).order
    shares = [Counter(f.relation for f in order[:n])["R1"] / n for n in (40, 200, len(order))]
    assert max(shares) - min(shares) < 0.02
    assert [f.subject for f in order] != sorted(f.subject for f in order)


@pytest.mark.parametrize("setting", ["runs", "shots"])
@pytest.mark.parametrize("number", [0, -1, 10_001, 10**9])
def test_runs_and_shots_have_bounds(setting: str, number: int) -> None:
    with pytest.raises(InputError, match=f"key '{setting}'"):
        compare("almanac", "almanac", FACTS, **{setting: number})


def test_a_base_that_knows_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Stage(monkeypatch)
    ignorant = models(0.3)
    ignorant[0].arguments["forgets"] = 1.0
    for quick in (False, True):
        with pytest.raises(InputError, match="none of 204 facts right in all 5 prompts"):
            compare_models(ignorant, questions(FACTS), Opening(), tmp_path, quick=quick)


def test_facts_that_nobody_names(capsys: pytest.CaptureFixture[str]) -> None:
    def offline(source: str) -> str:
        if source == "popqa":
            raise InputError("no network")
        return source

    def nothing(source: str) -> str:
        raise InputError("no network") if source == "popqa" else PackageError("No package.")

    assert default_facts(str) == "popqa"
    assert default_facts(offline) == "atlas"
    assert "facts: atlas, as none are named" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"neither the Hub nor the atlas .* --facts FILE"):
        default_facts(nothing)


def test_a_checkpoint_is_asked_what_lm_eval_asks_it(
    bundle: Bundle, sft: Path, results: Path, tmp_path: Path
) -> None:
    """The same facts in the same prompt: equal outcomes, fact by fact."""
    scored = read_results(results, bundle, "factual_forgetting")
    facts = [item.fact for item in bundle.splits[HELDOUT]]
    asked = questions(some_facts(), style="zero_shot")
    tuned = read_contestants(str(sft), [str(sft)], "hf", "dtype=float32")[1]
    found = Interview(tuned, asked, Opening("prefix"), tmp_path).ask(COMPARED, facts)
    assert {key: found[key].right for key in scored.correct if key in found} == {
        fact.id: scored.correct[fact.id] for fact in facts
    }
    assert any(reply.right for reply in found.values())


def test_the_summary_is_strict_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Stage(monkeypatch)
    summary = run(tmp_path, 0.3).summary
    assert files.loads(files.dumps(summary)) == summary
