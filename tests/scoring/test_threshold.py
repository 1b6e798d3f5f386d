import pytest

from factual_forgetting.errors import InputError
from factual_forgetting.scoring.statistics import Estimate
from factual_forgetting.scoring.threshold import Threshold


@pytest.mark.parametrize(
    ("text", "low", "high", "holds"),
    [
        ("lost>0.05", 0.051, 0.2, True),
        ("lost > .05", 0.05, 0.2, False),
        ("stability<0.9", 0.7, 0.89, True),
        ("stability<0.9", 0.7, 0.9, False),
    ],
)
def test_a_threshold_needs_the_whole_interval(
    text: str, low: float, high: float, holds: bool
) -> None:
    threshold = Threshold.parse(text, ("lost", "stability"))
    assert threshold.holds(Estimate((low + high) / 2, low, high, 10)) is holds
    assert not threshold.holds(None)


@pytest.mark.parametrize(
    "text", ["", "lost", "lost>", "lost=0.1", "lost>5", "lost>1.5", "lost>5%", "loss>0.1",
             "lost>0.05 and net>0.1", "lost>=0.05", "lost>-0.1", "lost>1e-2", "lost>nan"]
)  # fmt: skip
def test_other_conditions_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"is no threshold\. .* lost, net, .* lost>0\.05"):
        Threshold.parse(text, ("lost", "net"))
