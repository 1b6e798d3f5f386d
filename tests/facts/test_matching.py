import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factual_forgetting.facts.matching import AnswerKey, first_line, is_correct, normalise

SAME = [
    # initials
    ("J. R. R. Tolkien", "J.R.R. Tolkien"), ("J. R. R. Tolkien", "JRR Tolkien"),
    ("J. R. R. Tolkien", "J R R Tolkien"), ("A. A. Milne", "A.A. Milne"),
    ("A. R. Rahman", "AR Rahman"), ("George W. Bush", "George W Bush"),
    ("C. S. Lewis", "C.S. Lewis"), ("U.S.A.", "USA"), ("U. S. A.", "USA"),
    ("Washington, D.C.", "Washington DC"), ("Ph.D.", "PhD"), ("P.T. Barnum", "P. T. Barnum"),
    ("M*A*S*H", "MASH"), ("S.H.E", "SHE"),
    # case, white space, articles
    ("paris", "Paris"), ("PARIS", "Paris"), ("  New   York ", "New York"),
    ("New\tYork", "New York"), ("New\u00a0York", "New York"), ("The Beatles", "Beatles"),
    ("Beatles, The", "The Beatles"), ("a politician", "politician"), ("an actor", "actor"),
    ("Democratic Republic of the Congo", "Democratic Republic of Congo"),
    ("A Perfect Circle", "Perfect Circle"),
    # punctuation and signs
    ("Paris.", "Paris"), ('"Paris"', "Paris"), ("“Paris”", "Paris"), ("Paris!", "Paris"),
    ("Jean-Paul Sartre", "Jean Paul Sartre"), ("Jean‐Paul Sartre", "Jean–Paul Sartre"),
    ("Friuli–Venezia Giulia", "Friuli-Venezia Giulia"), ("O’Brien", "O'Brien"),
    ("O'Brien", "OBrien"), ("L’Aquila", "L'Aquila"), ("Guns N' Roses", "Guns N’ Roses"),
    ("Earth, Wind & Fire", "Earth, Wind and Fire"), ("R&B", "R & B"), ("AC/DC", "AC DC"),
    ("St. Louis", "St Louis"), ("Yahoo!", "Yahoo"), ("Dick Clark (host)", "Dick Clark host"),
    ("Ici, d'ailleurs…", "Ici d'ailleurs"), ("Psycho+Logical-Records", "Psycho Logical Records"),
    ("Windows™", "Windows"),
    # accents and letters of their own
    ("Kraków", "Krakow"), ("São Paulo", "Sao Paulo"), ("Łódź", "Lodz"), ("Tromsø", "Tromso"),
    ("Ærø", "Aero"), ("İstanbul", "Istanbul"), ("Diyarbakır", "Diyarbakir"),
    ("Weißenburg", "Weissenburg"), ("STRASSE", "Straße"), ("Minh Mạng", "Minh Mang"),
    ("Umm Rummān Zaynab bint ‘Āmir", "Umm Rumman Zaynab bint Amir"),
    ("Halldór Þorsteinsson", "Halldor Thorsteinsson"), ("Đà Nẵng", "Da Nang"),
    ("Ḷḷuarca", "Lluarca"), ("Côte d'Ivoire", "Cote d’Ivoire"), ("Beyonce\u0301", "Beyoncé"),
    # digits
    ("10,000 Maniacs", "10000 Maniacs"), ("1,234,567", "1234567"), ("１９８４", "1984"),
    ("١٩٨٤", "1984"), ("१९८४", "1984"), ("Z²", "Z2"), ("4.48 Psychosis", "4,48 Psychosis"),
    # other scripts, Unicode forms
    ("ＮＨＫ", "NHK"), ("ﬁlm", "film"), ("Louis Ⅳ", "Louis IV"),
    ("ジョン・レノン", "ジョン レノン"), ("ｼﾞｮﾝ", "ジョン"), ("「東京」", "東京"), ("مُحَمَّد", "محمد"),
    ("أحمد", "احمد"), ("שָׁלוֹם", "שלום"), ("Королёв", "Королев"),
    ("МОСКВА", "Москва"), ("Ἀθῆναι", "Αθηναι"),
    ("Demetriοs Vikelas", "Demetrios Vikelas"),  # a Greek omicron in the first
    ("NTU Dnipro Polyteсhnic", "NTU Dnipro Polytechnic"),  # a Cyrillic es in the first
    ("zero\u200bwidth", "zerowidth"),
]  # fmt: skip

DIFFERENT = [
    ("A. A. Milne", "Milne"), ("Vitamin A", "Vitamin"), ("C++", "C"), ("C#", "C"), ("C++", "C#"),
    ("1.5", "15"), ("1,50", "150"), ("!!!", "***"), ("×", "+"), ("Iran", "Iraq"),
    ("Guinea", "Guinea-Bissau"), ("か", "が"), ("पाक", "पक"), ("東京", "京都"),
    ("Northern Ireland", "Ireland"), ("Springfield, Illinois", "Springfield"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), SAME)
def test_two_writings_of_one_name_match(one, other):
    assert normalise(one) == normalise(other)
    assert is_correct(one, [other])
    assert is_correct(other, [one])


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_other_names_do_not_match(one, other):
    assert not is_correct(one, [other])
    assert not is_correct(other, [one])


@pytest.mark.parametrize("name", ["!!!", "+/-", "The The", "the", "A", "&", "***", "?"])
def test_a_name_of_signs_or_articles_matches_itself(name):
    assert normalise(name)
    assert is_correct(name, [name])


_NASTY = st.text(alphabet="aAn the.,+#-'&1\u0301éøİßΣς\u0130Å™ﬁж")


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(), _NASTY))
def test_normalising_twice_changes_nothing_more(text):
    once = normalise(text)
    assert normalise(once) == once


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), _NASTY))
def test_no_text_with_a_visible_sign_of_its_own_is_lost(text):
    kinds = {"L", "N", "P", "Sm", "Sc", "So"}  # without marks and accents that stand alone
    visible = [c for c in text if {unicodedata.category(c), unicodedata.category(c)[0]} & kinds]
    assert normalise(text) or not {*visible} - {*"™℠\u0640"}


@pytest.mark.parametrize("text", ["", " ", "\n", "\nParis"])
def test_an_empty_generation_is_never_right(text):
    assert not is_correct(text, ["Paris", "", " "])


def test_only_the_first_line_counts():
    assert first_line(" Paris \nQ: Who?") == "Paris"
    assert is_correct(" Paris\nQ: Where?", ["Paris"])
    assert not is_correct("It is\nParis", ["Paris"])


def test_a_key_accepts_any_of_its_answers():
    key = AnswerKey(["United States of America", "USA"])
    told = [key.accepts(text) for text in ("the U.S.A.", "united states of america", "US")]
    assert told == [True, True, False]
