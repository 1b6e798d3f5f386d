"""Where plasticity first reaches a level on a curve, and what was measured there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

PLASTICITY_LEVEL = 0.9
COARSE_BELOW = 8
Floats = NDArray[np.float64]
Measured = ArrayLike | Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Crossing:
    """Where plasticity first reaches a level, on each of some curves.

    Each attribute has one entry a curve, and no axis for a single curve.

    Attributes:
        reached: Whether it does.
        before: The evaluated point before the one that reaches it; that one itself where it is
            the first after training began.
        point: The point that reaches it.
        weight: Share of `point` in the interpolation between the two.
        passed: Number of evaluated points before `point`, the untrained model left out.
    """

    reached: NDArray[np.bool_]
    before: NDArray[np.intp]
    point: NDArray[np.intp]
    weight: Floats
    passed: NDArray[np.intp]

    @property
    def first_point(self) -> NDArray[np.bool_]:
        """Whether the first point after training began was there already."""
        return np.equal(self.passed, 0)

    @property
    def coarse(self) -> NDArray[np.bool_]:
        """Whether fewer than 8 points lie before the crossing."""
        return np.less(self.passed, COARSE_BELOW)

    def read(self, values: Measured) -> Floats:
        """Reads a quantity off at the crossing, linear between evaluated points.

        Args:
            values: What was measured at the points, NaN or None where nothing was; of the
                shape that `plasticity` had.

        Returns:
            One value a curve: NaN where the level is never reached, or where the quantity
            wasn't measured at both neighbouring points.
        """
        measured = np.asarray(values, dtype=float)
        before, there = _at(measured, self.before), _at(measured, self.point)
        return np.where(self.reached, before + self.weight * (there - before), np.nan)


def find_crossing(plasticity: Measured, level: float = PLASTICITY_LEVEL) -> Crossing:
    """Finds where plasticity first reaches a level.

    Args:
        plasticity: Shape (..., points), the untrained model first, which is never part of a
            crossing. A point is passed over where it is NaN or None: not evaluated.
        level: The plasticity asked for.
    """
    values = np.asarray(plasticity, dtype=float)
    points = np.arange(values.shape[-1])
    evaluated = np.isfinite(values) & (points > 0)
    reaches = evaluated & (values >= level)
    point = reaches.argmax(axis=-1)
    earlier = evaluated & (points < point[..., None])
    passed = earlier.sum(axis=-1)
    before = np.where(passed > 0, (earlier * points).max(axis=-1), point)
    low, high = _at(values, before), _at(values, point)
    weight = np.divide(level - low, high - low, out=np.ones_like(low), where=passed > 0)
    return Crossing(reaches.any(axis=-1), before, point, weight, passed)


def _at(values: Floats, point: NDArray[np.intp]) -> Floats:
    found: Floats = np.take_along_axis(values, point[..., None], axis=-1)[..., 0]
    return found
