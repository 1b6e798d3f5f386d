"""What users are told where nothing else of the comparison's tests tells it."""

import pytest

from factual_forgetting.comparison.questions import CompareConfig, read_questions
from factual_forgetting.errors import InputError


def test_nothing_to_ask() -> None:
    with pytest.raises(InputError, match=r"beside the exemplars\. Give more facts"):
        read_questions([], CompareConfig())
