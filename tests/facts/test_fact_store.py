import gc
from contextlib import suppress
from pathlib import Path

import pytest
from making import fact

from factual_forgetting.errors import UserError
from factual_forgetting.facts import aliases, cleaning, leaks, store
from factual_forgetting.facts.cleaning import clean
from factual_forgetting.facts.matching import normalise
from factual_forgetting.facts.sources import SourceOptions, clean_source
from factual_forgetting.files import dumps
from memory import peak_memory


def test_facts_come_back_as_they_were_as_often_as_wanted():
    odd = ["", "No\0ne", "line\nbreak", '["a"]', "\x1f", "naïve", "𝕏 and \uffff", "007"]
    rows = [fact("R", name, aliases=(name,)) for name in odd]
    cleaned = clean(rows, keep=["short_subject", "answer_in_subject"])
    expected = sorted(rows, key=lambda row: row.id)
    assert list(cleaned.facts) == list(cleaned.facts) == list(cleaned.read) == expected


def test_relations_are_in_the_order_of_code_points():
    names = ["z", "Z", "é", "ﬀ", "𝕏", "P19", "P131", "", "a\0b", "a"]
    cleaned = clean(
        [fact(relation, "Subject") for relation in names],
        keep=["conflicting_golds", "shared_template"],
    )
    assert [row.relation for row in cleaned.facts] == sorted(names)


def test_two_streams_are_read_side_by_side_and_outlive_what_made_them():
    facts = clean([fact("R", f"Subject {n}") for n in range(100)]).facts
    assert all(one == other for one, other in zip(facts, facts, strict=True))
    some = iter(facts)
    del facts
    assert len(list(some)) == 100


def opened():
    """Open files, by descriptor and name."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add((descriptor.name, str(descriptor.readlink())))
    return found


def test_rows_lie_in_a_nameless_file_that_is_closed_after_an_error(monkeypatch):
    if not Path("/proc/self/fd").exists():
        pytest.skip("open files are read from /proc")
    monkeypatch.setattr(store, "_KIBIBYTES", 64)
    gc.collect()  # what earlier tests left open may close while this one runs
    before = opened()

    def torn():
        yield from (fact("R", f"Subject {n}") for n in range(5000))
        assert any(name.endswith("(deleted)") for _, name in opened() - before)
        raise UserError("the last row is malformed")

    with pytest.raises(UserError, match="malformed"):
        clean(torn())
    gc.collect()
    assert not opened() - before


def test_a_full_disk_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(store, "_ROWS", "PRAGMA max_page_count = 20;" + store._ROWS)
    with pytest.raises(UserError, match=r"full.* Set SQLITE_TMPDIR"):
        clean(fact("R", f"Subject {n}") for n in range(5000))


def read_and_clean(number: int, path: Path) -> None:
    with path.open("w") as stream:
        for n in range(number):
            row = {
                "relation": f"P{n % 24}",
                "subject": f"Subject {n}",
                "question": f"What is the value of Subject {n} in P{n % 24}?",
                "answers": [f"Answer {n % 97}"],
            }
            stream.write(dumps(row) + "\n")
    store._KIBIBYTES = 512
    # The matcher keeps up to 65,536 texts, which would look like growth.
    for module in (aliases, cleaning, leaks):
        module.normalise = normalise.__wrapped__
    assert sum(1 for _ in clean_source(SourceOptions(facts=str(path))).facts) == number


def test_memory_of_reading_and_cleaning_does_not_grow_with_the_facts(tmp_path):
    few, many = (peak_memory(read_and_clean, n, tmp_path / f"{n}.jsonl") for n in (5_000, 30_000))
    # Any list or dictionary of 25,000 facts takes 7 MiB at least, the rows themselves 12.
    assert many - few < 2
