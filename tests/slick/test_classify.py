from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from factual_forgetting import files
from factual_forgetting.errors import UserError
from factual_forgetting.slick.classify import CLASSIFY_LOG, begin, check_redraw, classify
from factual_forgetting.slick.labelling import Category, Label, SlickConfig, load_labels
from stub import BASE, StubEngine, contents, exemplars, many_facts

SMALL = SlickConfig(runs=10, shard_size=50)
HIGHLY_KNOWN, MAYBE_KNOWN, WEAKLY_KNOWN, UNKNOWN = Category


def label_all(output: Path, settings: SlickConfig = SMALL, engine: Any = None) -> list[Label]:
    classify(many_facts(), engine or StubEngine(), settings, BASE, output)
    return load_labels(output).labels


@pytest.mark.parametrize(
    ("correct", "sampled", "expected"),
    [
        ("111", None, HIGHLY_KNOWN),
        ("101", None, MAYBE_KNOWN),
        ("01-", None, MAYBE_KNOWN),
        ("000", None, UNKNOWN),
        ("000", (0, 16), UNKNOWN),
        ("000", (1, 16), WEAKLY_KNOWN),
    ],
)
def test_category(correct: str, sampled: tuple[int, int] | None, expected: str) -> None:
    assert Category.of(correct, sampled) == expected


def test_every_fact_beside_the_exemplars_is_labelled_once(tmp_path: Path) -> None:
    labels = label_all(tmp_path)
    ids = [label.fact.id for label in labels]
    ids += {fact["id"] for fact in exemplars(tmp_path)}
    assert sorted(ids) == sorted(fact.id for fact in many_facts())
    assert all(len(label.correct) == 10 for label in labels)
    assert all(set(label.base) == {"fresh", "zero_shot"} for label in labels)
    assert {label.category for label in labels} == {HIGHLY_KNOWN, MAYBE_KNOWN, UNKNOWN}


@pytest.mark.parametrize("killed_at", [1, 2, 5, 9])
def test_a_killed_labelling_resumes_and_ends_in_the_same_bytes(
    tmp_path: Path, killed_at: int
) -> None:
    whole = StubEngine()
    label_all(tmp_path / "whole", engine=whole)

    def kill(call: int) -> None:
        if call == killed_at:
            raise KeyboardInterrupt

    first = StubEngine(kill)
    with pytest.raises(KeyboardInterrupt):
        label_all(tmp_path / "killed", engine=first)
    second = StubEngine()
    label_all(tmp_path / "killed", engine=second)
    assert sorted(first.asked + second.asked) == sorted(whole.asked)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_line_cut_off_by_a_kill_is_asked_again(tmp_path: Path) -> None:
    label_all(tmp_path / "whole")
    cut = begin(many_facts(), "stub", SMALL, BASE, tmp_path / "cut")
    cut.ask(StubEngine(), cut.shards[:1])
    journal = cut.shards[0].journal(cut.parts)
    journal.write_bytes(journal.read_bytes()[:-7])
    label_all(tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_finished_labelling_asks_nothing(tmp_path: Path) -> None:
    label_all(tmp_path)
    engine = StubEngine()
    label_all(tmp_path, engine=engine)
    assert engine.calls == 0


def test_other_settings_are_refused_with_the_difference(tmp_path: Path) -> None:
    label_all(tmp_path)
    with pytest.raises(UserError, match=r"settings.runs was 10, now 11. Use another directory"):
        label_all(tmp_path, SlickConfig(runs=11, shard_size=50))


def test_shards_asked_apart_and_merged_give_the_same_bytes(tmp_path: Path) -> None:
    label_all(tmp_path / "whole")
    for index in (2, 0, 1):
        part = begin(many_facts(), "stub", SMALL, BASE, tmp_path / "parts")
        with pytest.raises(UserError, match=r"unfinished: shard .* of \d+"):
            part.merge()
        part.ask(StubEngine(), part.shards[index::3])
    begin(many_facts(), None, SMALL, BASE, tmp_path / "parts").merge()
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_retirement_asks_less_and_changes_no_category(tmp_path: Path) -> None:
    graded, retiring = StubEngine(), StubEngine()
    whole = label_all(tmp_path / "graded", engine=graded)
    settings = SMALL.model_copy(update={"retire": True})
    retired = label_all(tmp_path / "retired", settings, retiring)
    assert [(p.fact.id, p.category) for p in retired] == [(p.fact.id, p.category) for p in whole]
    assert len(retiring.asked) < 0.9 * len(graded.asked)
    for label, full in zip(retired, whole, strict=True):
        if label.category == MAYBE_KNOWN:
            assert full.correct.startswith(label.correct.rstrip("-"))
        else:
            assert (label.correct, label.base) == (full.correct, full.base)


def test_a_quota_is_filled_in_the_random_order_and_is_a_fair_sample(tmp_path: Path) -> None:
    quota = {"known": 20, "unknown": 25, "heldout": 5}
    whole = label_all(tmp_path / "whole", SMALL.model_copy(update={"retire": True}))
    settings = SMALL.model_copy(update={"retire": True, "quota": quota, "shard_size": 10})
    engine = StubEngine()
    found = label_all(tmp_path / "quota", settings, engine)
    counts = Counter((label.category, label.fact.split) for label in found)
    assert counts[HIGHLY_KNOWN, "train"] >= 20
    assert counts[UNKNOWN, "train"] >= 25
    assert counts[HIGHLY_KNOWN, "dev"] >= 5
    # The last label filled the quota, and the labels are the head of the full labelling.
    assert found == whole[: len(found)]
    before = Counter((label.category, label.fact.split) for label in found[:-1])
    wanted = {(HIGHLY_KNOWN, "train"): 20, (UNKNOWN, "train"): 25, (HIGHLY_KNOWN, "dev"): 5}
    assert any(before[key] < number for key, number in wanted.items())
    share = Counter(label.category for label in found)[HIGHLY_KNOWN] / len(found)
    expected = Counter(label.category for label in whole)[HIGHLY_KNOWN] / len(whole)
    assert abs(share - expected) < 4 * (expected * (1 - expected) / len(found)) ** 0.5


def test_a_quota_does_not_depend_on_who_finished_first(tmp_path: Path) -> None:
    settings = SMALL.model_copy(
        update={"retire": True, "quota": {"known": 30, "unknown": 20}, "shard_size": 10}
    )
    alone = StubEngine()
    label_all(tmp_path / "alone", settings, alone)
    backwards = begin(many_facts(), "stub", settings, BASE, tmp_path / "all")
    for shard in reversed(backwards.shards):
        backwards.ask(StubEngine(), [shard])
    backwards.merge()
    assert contents(tmp_path / "all") == contents(tmp_path / "alone")
    assert len(alone.asked) < len(many_facts()) * 12


def test_a_quota_that_cannot_be_met_tells_what_there_is(tmp_path: Path) -> None:
    settings = SMALL.model_copy(update={"retire": True, "quota": {"known": 5000}})
    with pytest.raises(UserError, match=r"known \d+ of 5,000. Lower --quota"):
        label_all(tmp_path, settings)
    engine = StubEngine()
    lower = SMALL.model_copy(update={"retire": True, "quota": {"known": 20}})
    label_all(tmp_path, lower, engine)
    assert engine.calls == 0


def test_samples_separate_weakly_known_from_unknown(tmp_path: Path) -> None:
    plain = label_all(tmp_path / "plain")
    sampled = label_all(tmp_path / "sampled", SMALL.model_copy(update={"samples": 4}))
    for one, other in zip(plain, sampled, strict=True):
        if one.category == UNKNOWN:
            assert other.sampled is not None
            assert other.sampled[1] == 40
            assert other.category == (WEAKLY_KNOWN if other.sampled[0] else UNKNOWN)
        else:
            assert other.sampled is None
            assert other.category == one.category
    assert {WEAKLY_KNOWN, UNKNOWN} <= {label.category for label in sampled}


def test_nothing_is_sampled_where_every_question_has_a_right_answer(tmp_path: Path) -> None:
    class Sure(StubEngine):
        def chance(self, query: Any) -> float:
            return 1.0

    labels = label_all(tmp_path, SMALL.model_copy(update={"samples": 4}), Sure())
    assert {(label.category, label.sampled) for label in labels} == {(HIGHLY_KNOWN, None)}


def test_exemplars_of_its_own_for_every_question(tmp_path: Path) -> None:
    engine = StubEngine()
    settings = SMALL.model_copy(update={"exemplars": "question"})
    label_all(tmp_path, settings, engine)
    question = many_facts()[-1].question
    heads = {text.split(question)[0] for text in engine.asked if f"Q: {question}\nA:" in text}
    assert len(heads) >= 10
    drawn = {fact["question"] for fact in exemplars(tmp_path)}
    for text in engine.asked:
        *shots, _ = [line[3:] for line in text.splitlines() if line.startswith("Q: ")]
        assert len(shots) in (0, 3)
        assert set(shots) <= drawn


def test_redraw_reports_agreement_with_other_exemplars(tmp_path: Path) -> None:
    label_all(tmp_path)
    labels = load_labels(tmp_path)
    told = check_redraw(many_facts(), StubEngine(), tmp_path, 60)
    again = load_labels(tmp_path / "redraw")
    first = {label.fact.id: label.category for label in labels.labels}
    assert len(again.labels) == 60
    same = sum(first[label.fact.id] == label.category for label in again.labels)
    assert told["agreement"] == same / 60
    assert sum(sum(row.values()) for row in told["confusion"].values()) == 60
    before, used = (
        {fact["id"] for fact in exemplars(path)} for path in (tmp_path, tmp_path / "redraw")
    )
    assert not used & (before | {label.fact.id for label in again.labels})


def test_a_base_that_answers_nothing_is_refused(tmp_path: Path) -> None:
    class Mute(StubEngine):
        def chance(self, query: Any) -> float:
            return 0.0

    with pytest.raises(UserError, match="answers none of"):
        label_all(tmp_path, engine=Mute())


def test_labels_that_were_changed_are_refused(tmp_path: Path) -> None:
    label_all(tmp_path)
    path = tmp_path / "labels.jsonl"
    path.write_text(path.read_text().replace("HighlyKnown", "Unknown", 1))
    with pytest.raises(UserError, match="was changed after labelling"):
        load_labels(tmp_path)


def test_the_log_tells_queries_and_batch_size_of_every_shard(tmp_path: Path) -> None:
    engine = StubEngine()
    label_all(tmp_path, engine=engine)
    log = files.read_json(tmp_path / CLASSIFY_LOG)
    assert sum(row["queries"] for row in log) == len(engine.asked)
    assert all("batch_size" in row for row in log)
