import pytest

from factual_forgetting.scoring.judging import chat_answer, judge, token_f1


@pytest.mark.parametrize(
    "text",
    [
        "Paris",
        "\n\nParis",
        "\n \n**Paris**",
        "**Answer:** Paris",
        "The answer is: `Paris`.",
        "### Paris\n\nIt lies on the Seine.",
        "- Paris",
        "> *Paris*",
        "A: Paris",
        "The capital of France is Paris.",
        "The capital of France is **Paris**.",
        "Paris is the capital of France.",
        "Sure! The capital of France is Paris.",
        "Of course.\n\nIt is [Paris](https://example.org/Rome).",
        "Here is the answer:\n\nParis",
        "```\nParis\n```",
        "<think>\nRome? No.\n</think>\n\nParis",
        "The capital is Paris, a city on the Seine. Rome is in Italy.",
    ],
)
def test_a_chat_answer_is_found(text: str) -> None:
    assert judge(text, ["Paris"], [], "France", chat=True).correct


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n\n",
        "Rome",
        "It is not Paris.",
        "It is Paris or Rome.",
        "The capital isn't Paris, it is Rome.",
        "The capital of France is Rome. He later moved to Paris.",
        "It is Rome.\nParis",
        "Parisian",
    ],
)
def test_a_wrong_chat_answer_is_wrong(text: str) -> None:
    assert not judge(text, ["Paris"], [], "France", chat=True).correct


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Luxembourg", True),
        ("The capital of Luxembourg is Luxembourg.", True),
        ("Luxembourg is the capital of Luxembourg.", True),
        ("The capital of Luxembourg is Bonn.", False),
    ],
)
def test_repeating_the_subject_is_no_answer(text: str, right: bool) -> None:
    assert judge(text, ["Luxembourg"], [], "Luxembourg", chat=True).correct is right


def test_names_with_full_stops_are_whole() -> None:
    assert chat_answer("It was written by J. R. R. Tolkien. He was born in 1892.") == (
        "It was written by J. R. R. Tolkien."
    )
    assert chat_answer("He died in St. Louis. It lies in Missouri.") == "He died in St. Louis."


def test_aliases_count_but_not_strictly() -> None:
    for text, chat in ((" Big Apple", False), ("It is the **Big Apple**.", True)):
        found = judge(text, ["New York"], ["Big Apple"], "X", chat=chat)
        assert (found.correct, found.strict) == (True, False)


@pytest.mark.parametrize(
    "text",
    ["", "\n", "I don't know.", "I'm sorry, but I am not familiar with that person."],
)
def test_a_chat_model_may_decline(text: str) -> None:
    found = judge(text, ["Paris"], [], "France", chat=True)
    assert found.abstained
    assert not found.correct


def test_only_whole_answers_decline_outside_chat() -> None:
    assert judge(" unknown", ["Paris"], [], "France", chat=False).abstained
    assert not judge(" Unknown Pleasures", ["Paris"], [], "France", chat=False).abstained


def test_token_f1_by_hand() -> None:
    # 2 shared tokens of 3 given and 2 gold: precision 2/3, recall 1.
    assert token_f1("New York City", ["York New"]) == pytest.approx(0.8)
    assert token_f1("Rome", ["Paris", "Rome Italy"]) == pytest.approx(2 / 3)
    assert token_f1("", ["Paris"]) == 0.0
