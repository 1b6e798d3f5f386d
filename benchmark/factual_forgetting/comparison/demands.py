"""`--fail_if "lost>0.05"`: what a comparison must not find, for continuous integration."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from factual_forgetting.errors import InputError
from factual_forgetting.scoring.statistics import interval_text

_LIMITED = ("lost", "net", "gained", "kept", "stability")
_FORM = re.compile(rf"({'|'.join(_LIMITED)})\s*([<>])\s*(0|1|[01]?\.\d+)")


class Demand(NamedTuple):
    """A bound on a measure, and the side on which it is broken."""

    measure: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Demand:
        """Reads a condition under which to fail.

        Raises:
            UserError: If it isn't NAME>NUMBER or NAME<NUMBER with a number from 0 to 1.
        """
        found = _FORM.fullmatch(text.strip())
        if not found or float(found[3]) > 1:
            raise InputError(
                f"--fail_if '{text}' is not NAME>NUMBER or NAME<NUMBER, with a name of "
                f"{', '.join(_LIMITED)} and a number from 0 to 1. Write lost>0.05."
            )
        return cls(found[1], found[2], float(found[3]))

    def broken(self, summary: Mapping[str, Any]) -> list[str]:
        """Tells for which checkpoints the condition holds: the interval must clear the bound."""
        told = []
        for row in summary["checkpoints"]:
            found = row["measures"][self.measure]
            if found is None:
                continue
            if found["low"] > self.bound if self.sign == ">" else found["high"] < self.bound:
                side = "over" if self.sign == ">" else "under"
                where = f"all of it {side} {self.bound:g}"
                told.append(f"{row['name']}: {self.measure} is {interval_text(found)}, {where}")
        return told
