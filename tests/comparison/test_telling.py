from html.parser import HTMLParser
from pathlib import Path

import pytest
from stage import Stage, models, questions, some_facts

from factual_forgetting.comparison.comparing import compare_models
from factual_forgetting.comparison.demands import Demand
from factual_forgetting.comparison.interview import Opening
from factual_forgetting.comparison.result import Comparison
from factual_forgetting.comparison.telling import comparison_text
from factual_forgetting.errors import InputError

EVIL = "\x1b[31m<script>alert(1)</script> | `![x](http://x)` \u202e"


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Comparison:
    Stage(monkeypatch, wrong=EVIL)
    asked = questions(some_facts())
    return compare_models(models(0.3, 0.1), asked, Opening(), tmp_path, quick=False)


def test_answers_of_strangers_stay_text(found: Comparison) -> None:
    for form in ("simple", "github"):
        text = comparison_text(found.summary, found.outcomes, form, "lost")
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert r"\x1b[31m<script>" in text
    row = next(line for line in text.splitlines() if r"\x1b[31m" in line)
    assert r"`\x1b[31m<script>alert(1)</script> \| '![x](http://x)' \u202e`" in row
    assert row.replace(r"\|", "").count("|") == 7


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.links: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]


def test_the_page_runs_nothing_and_needs_nothing(found: Comparison) -> None:
    page, tags = found.page(), Tags()
    tags.feed(page)
    assert "script" not in tags.seen
    assert [str(link)[:26] for link in tags.links] == ["data:image/svg+xml;base64,"]
    assert "default-src 'none'" in page
    assert "&lt;script&gt;" in page
    assert page == found.page()


def test_a_frame_has_a_row_for_each_checkpoint_and_fact(found: Comparison) -> None:
    frame = found.to_pandas()
    assert len(frame) == sum(map(len, found.outcomes.values()))
    lost = frame[(frame.checkpoint == "tuned-0.3") & (frame.fate == "lost")]
    assert len(lost) == found.summary["checkpoints"][0]["measures"]["fates"]["lost"]
    assert set(lost.answer) == {EVIL}
    axes = found.plot()
    assert len(axes.get_yticklabels()) == 5


@pytest.mark.parametrize("text", ["lost>0.05", "net > .1", "kept<1", " stability<0.9 "])
def test_conditions_are_read(text: str) -> None:
    demand = Demand.parse(text)
    assert demand.sign in text
    assert demand.measure in text


@pytest.mark.parametrize(
    "text", ["", "lost", "lost>", "lost=0.1", "lost>5", "lost>1.5", "lost>5%", "loss>0.1",
             "lost>0.05 and net>0.1", "lost>=0.05", "lost>-0.1", "lost>1e-2", "lost>nan"]
)  # fmt: skip
def test_other_conditions_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"is not NAME>NUMBER .* Write lost>0.05"):
        Demand.parse(text)


def test_a_condition_holds_where_the_whole_interval_is_past_the_number(found: Comparison) -> None:
    lost = found.summary["checkpoints"][0]["measures"]["lost"]
    inside, over, under = lost["value"], lost["low"] - 0.01, lost["high"] + 0.01
    assert not Demand("lost", ">", inside).broken(found.summary)
    assert not Demand("lost", "<", inside).broken(found.summary)
    (told,) = Demand("lost", ">", over).broken(found.summary)
    assert told.startswith("tuned-0.3: lost is")
    assert "all of it over" in told
    assert any(t.startswith("tuned-0.3") for t in Demand("lost", "<", under).broken(found.summary))
    missing = {"checkpoints": [{"name": "x", "measures": {"gained": None}}]}
    assert not Demand("gained", "<", 1.0).broken(missing)
