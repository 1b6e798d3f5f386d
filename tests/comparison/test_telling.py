from html.parser import HTMLParser
from pathlib import Path

import pytest

from factual_forgetting.comparison.comparing import compare_models
from factual_forgetting.comparison.interview import Opening
from factual_forgetting.comparison.result import Comparison
from factual_forgetting.comparison.telling import breaches, comparison_text
from factual_forgetting.scoring.threshold import Threshold
from stage import Stage, models, questions, some_facts

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
        assert r"\u001b[31m<script>" in text
    row = next(line for line in text.splitlines() if r"\u001b[31m" in line)
    assert r"`\u001b[31m<script>alert(1)</script> \| '![x](http://x)' \u202e`" in row
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


def test_a_condition_holds_where_the_whole_interval_is_past_the_number(found: Comparison) -> None:
    lost = found.summary["checkpoints"][0]["measures"]["lost"]
    inside, over, under = lost["value"], lost["low"] - 0.01, lost["high"] + 0.01
    assert not list(breaches(Threshold("lost", True, inside), found.summary))
    within = breaches(Threshold("lost", False, inside), found.summary)
    assert not any(told.startswith("tuned-0.3") for told in within)
    (told,) = breaches(Threshold("lost", True, over), found.summary)
    assert told.startswith("tuned-0.3: lost is")
    assert "all of it over" in told
    below = breaches(Threshold("lost", False, under), found.summary)
    assert any(told.startswith("tuned-0.3") for told in below)
    missing = {"checkpoints": [{"name": "x", "measures": {"gained": None}}]}
    assert not list(breaches(Threshold("gained", False, 1.0), missing))
