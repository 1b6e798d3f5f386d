import csv
import io
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import ME, drawn, make_bundle, publish, write_run

from factual_forgetting import files
from factual_forgetting.board import ranking
from factual_forgetting.board.board import KEEPS, LEARNS, Entry, make_board
from factual_forgetting.board.bundles import reference_of
from factual_forgetting.board.making import make_record
from factual_forgetting.board.ranking import Ranked, ranks, resample_counts
from factual_forgetting.board.record import load_records
from factual_forgetting.board.tables import _HEADERS, diff, diff_text, latex, markdown, render_board
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.cli import main
from factual_forgetting.errors import UserError

GOLDEN = Path(__file__).with_name("golden_board.json")


def read(root: Path) -> list[Entry]:
    return list(load_records(root / "records"))


def rows_of(root: Path) -> list[dict[str, Any]]:
    (bundle,) = make_board(read(root))["bundles"]
    return list(bundle["rows"])


def curves(*points: tuple[int, int, int]) -> list[str]:
    """Curves of 20 + 20 + 20 facts of which so many are right at each point: T, P, S.

    The first ones in each split are; splits alternate between two relations.
    """
    return [
        "".join("01"[index < point[split]] for point in points)
        for split in range(3)
        for index in range(20)
    ]


START = (20, 0, 20)
# By hand, of 20 facts a split; points are (T, P, S) in facts, the first is the untrained model:
#   sft, seed 0:  P .8 -> 1.0 while S .7 -> .5: P = .9 is half-way, S@P90 = .6.
#   sft, seed 1:  P 1.0 at the first point after training began, so S there: .8.
#                 Mean .7, range .6 to .8; final S is 10 / 20 in both.
#   steady:       S never falls: S@P90 = 1, final S 1. Over sft at P90: 1 - .7 = .3.
#   twin:         one fact lost at the last point: half-way S = (1 + .95) / 2 = .975; a resample
#                 misses that one fact with probability .9^10 = .35, so it is tied with steady.
#   slow:         P ends at .8: never; T = 19/20 = .95 is enough for the other table; S = .75.
#   known_only:   learns nothing new, keeps everything: the reference.
# Ranks: each against the leader above it, at 99 % of the resamples; two seeds say nothing of
# others. Every other difference is of 5 facts or more, all in one direction: 3 of the ten of one
# relation and 2 of the other, which a resample misses with probability .7^10 x .8^10 = .003, less
# than the tail of .005. 1 + the number before it: sft has two above it (learns), three (keeps),
# slow two.
BY_HAND = {
    ("sft", 0): curves(START, (20, 16, 14), (20, 20, 10)),
    ("sft", 1): curves(START, (20, 20, 16), (20, 20, 10)),
    ("steady", 0): curves(START, (20, 16, 20), (20, 20, 20)),
    ("steady", 1): curves(START, (20, 16, 20), (20, 20, 20)),
    ("twin", 0): curves(START, (20, 16, 20), (20, 20, 19)),
    ("twin", 1): curves(START, (20, 16, 20), (20, 20, 19)),
    ("slow", 0): curves(START, (20, 10, 18), (19, 16, 15)),
    ("slow", 1): curves(START, (20, 10, 18), (19, 16, 15)),
    ("known_only", 0): curves(START, (20, 0, 20), (20, 0, 20)),
    ("known_only", 1): curves(START, (20, 0, 20), (20, 0, 20)),
}


@pytest.fixture(scope="module")
def by_hand(world: Bundle, tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    root = tmp_path_factory.mktemp("by-hand")
    for (method, seed), text in BY_HAND.items():
        publish(root, world, text, method, seed)
    return read(root)


def test_the_golden_board(by_hand: list[Entry], world: Bundle) -> None:
    golden = files.read_json(GOLDEN)
    (bundle,) = make_board(by_hand, {world.sha256: reference_of(world)})["bundles"]
    names = {row["id"]: row["method"] for row in bundle["rows"]}
    for table in ("learns", "keeps"):
        assert [names[key] for key in bundle["tables"][table]] == golden[table]
    for row in bundle["rows"]:
        assert _summary(row) == golden["rows"][row["method"]], row["method"]


def _summary(row: dict[str, Any]) -> dict[str, Any]:
    crossing, difference = row["stability_at_p90"], row["difference_at_p90"]["sft"]
    at_p90 = crossing and [crossing[key] for key in ("value", "lowest", "highest")]
    return {
        "rank": row["rank"],
        "unranked": row["unranked"],
        **{
            key: round(row[key]["value"], 9) for key in ("task_learning", "plasticity", "stability")
        },
        "lost": round(row["lost"]["value"], 9),
        "at_p90": at_p90 and [round(value, 9) for value in at_p90],
        "first_point": crossing and crossing["first_point"],
        "loss": round(row["loss_against"]["known_only"]["value"], 9),
        "difference": difference and round(difference["value"], 9),
    }


def test_the_order_of_records_does_not_matter(entries: list[Entry]) -> None:
    expected = make_board(entries)
    for seed in range(3):
        shuffled = random.Random(seed).sample(entries, len(entries))
        assert make_board(shuffled + shuffled[:2]) == expected


def test_a_new_record_moves_no_other_number(entries: list[Entry]) -> None:
    without = make_board([entry for entry in entries if entry[0].method.name != "freeze"])
    rows = {row["id"]: row for row in make_board(entries)["bundles"][0]["rows"]}
    for row in without["bundles"][0]["rows"]:
        for key in ("stability", "stability_at_p90", "difference_at_p90", "loss_against"):
            assert rows[row["id"]][key] == row[key]


def test_s_at_p90_is_the_mean_of_what_the_records_say(entries: list[Entry]) -> None:
    (bundle,) = make_board(entries)["bundles"]
    for row in bundle["rows"]:
        metrics = [r.metrics["stability_at_p90"] for r, _ in entries if r.id in row["records"]]
        if row["stability_at_p90"] is None:
            assert None in metrics
        else:
            mean = np.mean([m["stability"] for m in metrics])  # type: ignore[index,call-overload]
            assert row["stability_at_p90"]["value"] == pytest.approx(mean)
            crossing = row["stability_at_p90"]
            assert crossing["low"] <= crossing["value"] <= crossing["high"]
            assert crossing["high"] > crossing["low"]


def test_resamples_keep_the_relations() -> None:
    strata = ["a"] * 3 + ["b"] * 7
    counts = resample_counts(strata, 1)
    assert (counts[0] == 1).all()
    assert (counts[:, :3].sum(axis=1) == 3).all()
    assert (counts[:, 3:].sum(axis=1) == 7).all()
    assert (resample_counts(strata, 1) == counts).all()


def drawn_at(mean: float, spread: float = 0.01, seeds: Sequence[float] = ()) -> Ranked:
    """A method with that number and normal resamples; each call draws others."""
    noise = np.random.default_rng(round(1e6 * mean)).normal(0, spread, 4000)
    return Ranked(np.concatenate([[mean], mean + noise]), seeds or [mean], 500)


def test_ranks_by_hand() -> None:
    # 99 % of the difference of two with spread .01 lies within .036.
    assert ranks([drawn_at(value) for value in (0.1, 0.9, 0.5, 0.895)]) == [4, 1, 3, 1]
    assert ranks([]) == []
    assert ranks([drawn_at(0.4)]) == [1]


def test_ranks_never_fall_as_numbers_rise() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        methods = [drawn_at(rng.uniform(0.7, 0.9), rng.uniform(0.001, 0.05)) for _ in range(12)]
        found = ranks(methods)
        order = sorted(range(12), key=lambda index: -methods[index].drawn[0])
        inorder = [found[index] for index in order]
        assert inorder == sorted(inorder)
        assert all(rank in (before, place) for place, (before, rank) in
                   enumerate(pairwise(inorder), start=2))  # fmt: skip


def test_worse_methods_move_no_rank() -> None:
    good = [drawn_at(value) for value in (0.9, 0.85, 0.84, 0.8, 0.75)]
    junk = [drawn_at(0.3 + index / 1000) for index in range(100)]
    assert ranks([*good, *junk])[:5] == ranks(good) == [1, 2, 2, 4, 5]


def test_as_many_comparisons_as_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def count(method: Ranked, leader: Ranked) -> bool:
        compared.append(method)
        return bool(method.drawn[0] < leader.drawn[0] - 0.01)

    monkeypatch.setattr(ranking, "_worse", count)
    methods = [Ranked(np.full(2, value), [value], 500) for value in np.linspace(0.1, 0.9, 300)]
    ranks(methods)
    assert len(compared) < len(methods)


def test_seeds_that_differ_widely_tell_less() -> None:
    """The difference is ten spreads of the facts, and less than one of the seeds."""
    apart = [drawn_at(0.828, 0.003, [0.784, 0.828, 0.872]), drawn_at(0.79, 0.003, [0.79] * 3)]
    assert ranks(apart) == [1, 1]
    alike = [drawn_at(0.828, 0.003, [0.827, 0.828, 0.829]), drawn_at(0.79, 0.003, [0.79] * 3)]
    assert ranks(alike) == [1, 2]
    # A single seed is no way around that: it is taken to vary as the other method does.
    assert ranks([drawn_at(0.83, 0.003), drawn_at(0.79, 0.003, [0.75, 0.79, 0.83])]) == [1, 1]


def without(method: Ranked, resamples: int) -> Ranked:
    missing = method.drawn.copy()
    missing[1 : 1 + resamples] = np.nan
    return Ranked(missing, method.seeds, method.facts)


def test_what_some_resamples_never_reach_is_no_difference() -> None:
    first, second = drawn_at(0.9), drawn_at(0.5)
    assert ranks([first, second]) == [1, 2]
    assert ranks([first, without(second, 200)]) == [1, 1]


def test_a_method_that_mostly_misses_the_level_ties_nobody_with_it() -> None:
    methods = [drawn_at(0.87), drawn_at(0.86), drawn_at(0.80)]
    assert ranks([without(methods[0], 2500), *methods[1:]]) == [1, 1, 3]


def test_false_differences_are_rare() -> None:
    """Two equal methods are parted in one board of a hundred, ten in about one of five."""
    rng = np.random.default_rng(0)

    def parted(methods: int) -> int:
        values = 0.8 + rng.normal(0, 0.02, methods)
        drawn = values[:, None] + rng.normal(0, 0.02, (methods, 1000))
        told = [
            Ranked(np.append(v, d), [float(v)], 500) for v, d in zip(values, drawn, strict=True)
        ]
        return max(ranks(told)) > 1

    assert sum(parted(2) for _ in range(300)) <= 9
    assert sum(parted(10) for _ in range(100)) <= 35


def test_noise_on_the_base_does_not_win_what_need_not_learn(world: Bundle, tmp_path: Path) -> None:
    """What never saw D_Unk keeps most: the base with noise, D_Known alone under another name."""
    for name, points in {
        "noop": (START, (20, 0, 20)),
        "renamed": (START, (20, 1, 20)),
        "freeze": (START, (20, 8, 17)),
        "sft": (START, (20, 20, 12)),
    }.items():
        publish(tmp_path, world, curves(*points), name)
    rows = {row["family"]: row for row in rows_of(tmp_path)}
    ranked = {name: row["rank"]["keeps"] for name, row in rows.items()}
    assert ranked == {"noop": None, "renamed": None, "freeze": 1, "sft": 2}
    assert "as if never trained on D_Unk" in rows["noop"]["unranked"]["keeps"]
    assert rows["noop"]["unranked"]["keeps"] in markdown(make_board(read(tmp_path)))


def test_seeds_are_in_every_interval(world: Bundle, tmp_path: Path) -> None:
    """Three seeds far apart: S of 6, 12 and 18 of 20 facts, at every point."""
    for seed, kept in enumerate((6, 12, 18)):
        publish(tmp_path, world, curves(START, (20, 20, kept), (20, 20, kept)), "own", seed)
        publish(tmp_path, world, curves(START, (20, 20, 12), (20, 20, 12)), "sft", seed)
        publish(tmp_path, world, curves(START, (20, 0, 20), (20, 0, 20)), "known_only", seed)
    row = next(row for row in rows_of(tmp_path) if row["family"] == "own")
    # The standard error of the seeds alone is .3 / 3 ** .5, Student's t of two degrees 4.3.
    for interval in (
        row["stability"],
        row["stability_at_p90"],
        row["loss_against"]["known_only"],
        row["loss_against"]["sft"],
        row["difference_at_p90"]["sft"],
    ):
        assert interval["high"] - interval["low"] > 0.9


def test_training_on_heldout_facts_is_shown_and_not_ranked(world: Bundle, tmp_path: Path) -> None:
    declared = {"training_data": "everything", "heldout": "included"}
    publish(tmp_path, world, drawn(world, 0, 0.3, 0.1), declared=declared)
    (row,) = rows_of(tmp_path)
    assert row["heldout_in_training"] == "included"
    assert row["rank"] == {"learns": None, "keeps": None}
    assert row["unranked"]["learns"] == "trained on D_Held"


def test_the_best_verified_record_of_a_seed_counts(world: Bundle, tmp_path: Path) -> None:
    for seed in range(2):
        publish(tmp_path, world, drawn(world, seed, 0.3, 0.1), "sft", seed)
    (row,) = rows_of(tmp_path)
    publish(tmp_path, world, drawn(world, 7, 0.3, 0.1), declared={"level": "reproduced"})
    (now,) = rows_of(tmp_path)
    assert now["seeds"] == row["seeds"] == [0, 1]
    assert now["records"] != row["records"]
    assert now["level"] == "self-reported"


def test_a_record_without_answers_is_shown_and_not_ranked(world: Bundle, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", world, drawn(world, 0, 0.3, 0.1))
    make_record(run, world, tmp_path / "records", ME)
    (row,) = rows_of(tmp_path)
    assert row["rank"] == {"learns": None, "keeps": None}
    assert "Unranked: no answers (sft)" in markdown(make_board(read(tmp_path)))


def test_arms_of_two_submitters_stand_beside_each_other(world: Bundle, tmp_path: Path) -> None:
    for name in ("me", "you"):
        text = drawn(world, 7, 0.3, 0.1) if name == "me" else drawn(world, 3, 0.3, 0.05)
        publish(tmp_path, world, text, declared={"submitter": name})
    rows = rows_of(tmp_path)
    assert {row["submitter"] for row in rows} == {"me", "you"}
    assert len({row["id"] for row in rows}) == 2
    assert {row["method"] for row in rows} == {"sft"}
    # Neither is the other's reference.
    assert all(row["difference_at_p90"]["sft"] is None for row in rows)


def test_macro_weighs_relations_equally(tmp_path: Path) -> None:
    # Of 4 held-out facts 2 are of each relation; with 5 the first relation has 3: all 3 right
    # and none of the other 2 is 3/5 micro and (1 + 0) / 2 macro.
    bundle = make_bundle(tmp_path / "b", known=2, unknown=2, heldout=5)
    text = ["11", "11", "01", "01", "11", "10", "11", "10", "11"]
    publish(tmp_path, bundle, text)
    (row,) = rows_of(tmp_path)
    assert row["stability"]["value"] == pytest.approx(0.6)
    assert row["stability_macro"] == pytest.approx(0.5)


def test_records_of_other_facts_are_refused(by_hand: list[Entry]) -> None:
    record, rows = by_hand[0]
    with pytest.raises(UserError, match="has other facts"):
        make_board([*by_hand[1:], (record, rows[1:])])


HOSTILE = "a|b<script>[x](y)\x1b`\n=cmd()"


def test_names_stay_text_in_every_format(by_hand: list[Entry], world: Bundle) -> None:
    board = make_board(by_hand, {world.sha256: reference_of(world)})
    board["bundles"][0]["rows"][0]["method"] = HOSTILE
    board["bundles"][0]["base"] = "=1+1\\_%"
    text = markdown(board)
    assert "<script>" not in text
    assert "\\|b" in text
    assert "\x1b" not in text
    columns = {line.count(" | ") for line in text.splitlines() if line.startswith("| ")}
    assert columns == {len(_HEADERS[table]) - 1 for table in (LEARNS, KEEPS)}
    assert "\\textbackslash{}\\_\\%" in latex(board)
    row = next(csv.DictReader(io.StringIO(render_board(board, "csv"))))
    assert row["base"] == "'=1+1\\_%"


@pytest.mark.parametrize("style", ["markdown", "latex", "csv", "json"])
def test_formats_show_every_method(
    records: Path, world: Bundle, capsys: pytest.CaptureFixture[str], style: str
) -> None:
    command = ["board", str(records), "--bundle", str(world.path), "--format", style]
    assert main(command) == 0
    text = capsys.readouterr().out
    for method in ("sft", "freeze", "self"):
        assert method in text
    if style != "csv":
        assert "majority" in text


def test_a_difference_tells_what_moved(
    records: Path, entries: list[Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    before = make_board([e for e in entries if e[0].method.name != "self_distillation"])
    told = diff(before, make_board(entries))
    assert len(told["added"]) == 3
    assert told["removed"] == []
    new = [c for c in told["changed"] if c["method"] == "self_distillation(teacher=base,tau=1.0)"]
    assert {"field": "row", "before": None, "after": "there"}.items() <= new[0].items()
    assert all(c["field"].startswith("rank.") for c in told["changed"] if c not in new)
    assert "3 records added" in diff_text(told)
    assert main(["diff", str(records), str(records)]) == 0
    assert "doesn't change" in capsys.readouterr().out


def test_references_of_another_rate_and_seeds_of_other_lengths(
    world: Bundle, tmp_path: Path
) -> None:
    """Each method of a grid has its own best rate; a method that stops early its own length."""
    for seed, points in ((0, 8), (1, 12)):
        for method, rate in (("sft", 1e-4), ("known_only", 2e-4), ("early_stop", 5e-5)):
            text = drawn(world, seed, 0.3, 0.1, points if method == "early_stop" else 12)
            arm = (method, seed, None, "standard-v1")
            publish(tmp_path, world, text, *arm, learning_rate=rate)
    row = next(row for row in rows_of(tmp_path) if row["family"] == "early_stop")
    assert row["track"] == "closed"
    assert row["loss_against"]["known_only"]["n"] == row["loss_against"]["sft"]["n"] == 20
    assert [point["step"] for point in row["curve"]] == [*range(0, 876, 125)]
    assert all(len(point["seeds"]) == 2 for point in row["curve"])


def test_a_higher_level_stands_for_its_seed(world: Bundle, tmp_path: Path) -> None:
    for number in (0, 7):
        publish(tmp_path, world, drawn(world, number, 0.3, 0.1), "sft", 0)
    entries = read(tmp_path)
    assert len(entries) == 2
    for raised, _ in entries:
        levels = [
            (record.model_copy(update={"level": "reproduced"}) if record is raised else record, out)
            for record, out in entries
        ]
        (row,) = make_board(levels)["bundles"][0]["rows"]
        assert (row["records"], row["level"]) == ([raised.id], "reproduced")


def test_who_learns_not_the_task_wins_nothing(world: Bundle, tmp_path: Path) -> None:
    publish(tmp_path, world, curves(START, (18, 10, 20)), "sft")  # T .9
    publish(tmp_path, world, curves(START, (19, 10, 12)), "freeze")  # T .95
    rows = {row["family"]: row for row in rows_of(tmp_path)}
    assert {name: row["rank"]["keeps"] for name, row in rows.items()} == {"sft": None, "freeze": 1}
    assert rows["sft"]["unranked"]["keeps"] == "T below .95"
