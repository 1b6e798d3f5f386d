"""What users are told where nothing else of the mechanism's tests tells it."""

from dataclasses import replace
from typing import Any

import pytest

from factual_forgetting.bundle.manifest import KNOWN, Bundle
from factual_forgetting.errors import InputError
from factual_forgetting.mechanism.keys import Synthetic


def test_values_that_a_bundle_lacks(bundle: Bundle, tokenizer: Any) -> None:
    told = [item for item in bundle.splits[KNOWN] if item.fact.relation == "country"]
    alone = replace(bundle, splits={**bundle.splits, KNOWN: told})
    source = Synthetic(alone, tokenizer, "country", "identifier", "shuffled", 0)
    with pytest.raises(InputError, match=r"no shuffled values for country .* other --values"):
        list(source.facts(1))
