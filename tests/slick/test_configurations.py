from __future__ import annotations

import pytest

from factual_forgetting.errors import UserError
from factual_forgetting.slick.configurations import MAX_POOL_SHARE, draw_configurations
from stub import many_facts


@pytest.mark.parametrize("subjects", [80, 150, 400])
def test_exemplars_never_take_more_than_a_quarter_of_the_training_facts(subjects: int) -> None:
    facts = many_facts(relations=1, subjects=subjects)
    training = {fact.id for fact in facts if fact.split == "train"}
    drawn = draw_configurations(facts, 20, 3, seed=0)["R0"]
    assert drawn.ids <= training
    assert len(drawn.ids) <= MAX_POOL_SHARE * len(training)
    if subjects == 400:  # a large relation shares no exemplar between runs
        assert len(drawn.ids) == 21 * 3


def test_the_fresh_configuration_is_outside_all_labelling_runs() -> None:
    for seed in range(20):
        drawn = draw_configurations(many_facts(relations=1, subjects=100), 20, 3, seed)["R0"]
        labelling = {fact.id for run in drawn.labelling for fact in run}
        assert not labelling & {fact.id for fact in drawn.fresh}


def test_exemplars_depend_on_the_seed_and_not_on_the_order_of_the_facts() -> None:
    drawn = draw_configurations(many_facts(), 4, 3, seed=1)
    assert draw_configurations(many_facts()[::-1], 4, 3, seed=1) == drawn
    assert draw_configurations(many_facts(), 4, 3, seed=2) != drawn


def test_a_relation_whose_pool_would_eat_the_questions_has_none() -> None:
    facts = many_facts(subjects=200) + many_facts(relations=3, subjects=20)
    assert set(draw_configurations(facts, 20, 3, seed=0)) == {"R0", "R1"}
    told = (
        r"No relation can spare the 9 .*\(at most \d\).* may take a quarter.*at least 36, or lower"
    )
    with pytest.raises(UserError, match=told):
        draw_configurations(many_facts(subjects=20), 20, 3, seed=0)
