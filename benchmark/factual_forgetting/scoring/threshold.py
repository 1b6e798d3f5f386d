"""A threshold of a metric, as text: `lost>0.05`."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from factual_forgetting.errors import InputError
from factual_forgetting.scoring.statistics import Estimate

_FORM = re.compile(r"\s*(\w+)\s*([<>])\s*(\d*\.?\d+)\s*")


@dataclass(frozen=True, slots=True)
class Threshold:
    """Is passed when the whole 95 % interval of a metric lies beyond a bound."""

    metric: str
    above: bool
    bound: float

    @classmethod
    def parse(cls, text: str, metrics: Collection[str]) -> Threshold:
        """Reads a threshold of one of some metrics.

        Raises:
            UserError: If it isn't `metric>bound` or `metric<bound`, with a bound in [0, 1].
        """
        found = _FORM.fullmatch(text)
        if not found or found[1] not in metrics or float(found[3]) > 1:
            raise InputError(
                f"'{text}' is no threshold. Write one of {', '.join(metrics)}, then > or <, then a "
                "share from 0 to 1: lost>0.05."
            )
        return cls(found[1], found[2] == ">", float(found[3]))

    def holds(self, estimate: Estimate | None) -> bool:
        """Tells whether an estimate of its metric is beyond it; none is not."""
        if estimate is None:
            return False
        return estimate.low > self.bound if self.above else estimate.high < self.bound
