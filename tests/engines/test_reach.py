from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from factual_forgetting.engines.reach import reachable, skeletons
from factual_forgetting.facts.matching import is_correct

PIECES = [
    "the", "The", "a", "an", "A.", "J.", "J. R. R.", "Theodore", "ann", "New", "York", "new-york",
    "U.S.", "AT&T", "&", "C++", "c#", "+", "1,000", "3.5", "1", ",", ".", "'", "“", "-", "–", "İ",
    "ß", "Σ", "ς", "é", "e", "\u0301", "\u0323", "ﬁ", "Москва", "Мockva", "аеа", "東京", "가", "각",
    "ᆨ", "\u200d", "\u00a0", "\u3000", "½", "²", "™", "ø", "!", "(", ")", "/", "_", "#", "  ", " ",
    "¨", "ª", "\u20e3", "the the", "a b", "a b c", "an a", "Ⅷ", "ŉ", "ǰ", "ΐ", "\u0345",
]  # fmt: skip
TEXTS = st.lists(
    st.one_of(st.sampled_from(PIECES), st.just(" "), st.text(max_size=4)), max_size=8
).map(lambda parts: "".join(parts).replace("\n", " "))


@settings(max_examples=2000, deadline=None)
@given(text=TEXTS, rest=TEXTS)
@example("a", " b c")
@example("a b", "")
@example("the the", " x")
@example("!!!", " !")
@example("J.", " R. R. Tolkien")
@example("Café", "\u0323 x")
def test_no_answer_that_can_still_be_accepted_is_given_up(text: str, rest: str) -> None:
    answer = text + rest
    if is_correct(answer, [answer]):
        assert reachable(text, skeletons([answer]))


@settings(max_examples=500, deadline=None)
@given(text=TEXTS, rest=TEXTS, answers=st.lists(TEXTS, min_size=1, max_size=3))
def test_giving_up_is_certain_for_any_answers(text: str, rest: str, answers: list[str]) -> None:
    if not reachable(text, skeletons(answers)):
        assert not is_correct(text + rest, answers)
        assert not is_correct(text, answers)


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("Par", "Paris", True),
        ("The", "Paris", True),
        ("The Par", "Paris", True),
        ("Theodore", "Paris", False),
        ("Lo", "Paris", False),
        ("new y", "New York", True),
        ("new j", "New York", False),
        ("J. R. R.", "JRR Tolkien", True),
        ("Zürich and", "Zurich", False),
        ("", "Paris", True),
    ],
)
def test_wrong_answers_are_given_up_as_soon_as_they_part(
    text: str, answer: str, expected: bool
) -> None:
    assert reachable(text, skeletons([answer])) is expected
