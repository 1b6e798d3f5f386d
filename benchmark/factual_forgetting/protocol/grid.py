"""Equal trials for every method, and which runs are on the closed track."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from factual_forgetting.protocol.recipe import Protocol, find_recipe, protocol_sha256
from factual_forgetting.protocol.settings import SETTINGS, MethodSettings, resolve


@dataclass(frozen=True, slots=True)
class Trial:
    """A point of the grid: a rate, and a factor on the method's strength (1 if it has none)."""

    learning_rate: float
    strength: float

    def apply(self, protocol: Protocol, own: MethodSettings) -> tuple[Protocol, MethodSettings]:
        """Returns protocol and settings at this point."""
        changed = {own.strength: getattr(own, own.strength) * self.strength} if own.strength else {}
        settings = type(own).model_validate({**own.model_dump(), **changed})
        return protocol.model_copy(update={"learning_rate": self.learning_rate}), settings


def trials(protocol: Protocol, method: str) -> list[Trial]:
    """Returns a method's trials: the same number for every method under a protocol.

    With n strengths, a method that has a strength tries every n-th rate at each of them, from
    the middle of the first n on; one that has none tries all rates.
    """
    rates: Sequence[float] = protocol.learning_rates or (protocol.learning_rate,)
    strengths = protocol.strengths
    if not strengths or SETTINGS[method].strength is None:
        return [Trial(rate, 1.0) for rate in rates]
    spread = rates[len(strengths) // 2 :: len(strengths)] or rates
    return [Trial(rate, strength) for rate in spread for strength in strengths]


def trial_count(protocol: Mapping[str, Any] | None, method: str) -> int | None:
    """Counts a method's trials under a recipe of the package, told by its name and hash."""
    recipe = find_recipe(protocol["name"], protocol["sha256"]) if protocol else None
    return None if recipe is None or method not in SETTINGS else len(trials(recipe, method))


def pinned(protocol: Protocol, method: str) -> list[MethodSettings]:
    """Returns what a recipe pins of a method: the settings that its grid's factors start from."""
    if not protocol.settings:
        return [SETTINGS[method]()]
    return [resolve(method, told) for told in protocol.settings.get(method, ())]


def track(
    protocol: Protocol, method: str, settings: MethodSettings, foreign_base: dict[str, Any] | None
) -> str:
    """Returns `closed` for a run that follows a recipe of the package throughout, else `open`.

    The protocol's hash must be that of a recipe, at a rate of its grid; the settings must be
    those that the recipe pins of the method, at one of its trials.
    """
    if foreign_base or find_recipe(protocol.name, protocol_sha256(protocol)) is None:
        return "open"
    at_this_rate = [
        trial for trial in trials(protocol, method) if trial.learning_rate == protocol.learning_rate
    ]
    tried = [
        trial.apply(protocol, own)[1] for own in pinned(protocol, method) for trial in at_this_rate
    ]
    return "closed" if _rounded(settings) in map(_rounded, tried) else "open"


def _rounded(settings: MethodSettings) -> dict[str, Any]:
    """Settings as a person writes them: a factor's product has digits of its own."""
    told = settings.model_dump(mode="json")
    return {k: float(f"{v:.9g}") if isinstance(v, float) else v for k, v in told.items()}
