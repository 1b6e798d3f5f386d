"""Overlap: is a fact forgotten the more, the nearer the new subjects are to its own?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from factual_forgetting.errors import InputError
from factual_forgetting.mechanism.drift import States, directions
from factual_forgetting.scoring.statistics import Estimate

_SPARE = 10
_FLAT = 1e-9


def nearness(held: States, new: Iterable[States], nearest: int = 5) -> NDArray[np.float64]:
    """Returns how near the new subjects come to each held-out one.

    States share a large common direction, which would make all cosines alike: the mean of the
    held-out states is subtracted from both sides first. The new states are streamed: memory
    is that of the held-out states and of the similarities of one batch.

    Args:
        held: States of held-out subjects, shape (facts, hidden size).
        new: Batches of states of new subjects, each of shape (subjects, hidden size).
        nearest: How many of the most similar new subjects to average over.

    Returns:
        Mean cosine similarity to the nearest new subjects, shape (facts,).

    Raises:
        UserError: If there is no held-out subject, `nearest` is less than 1, or new subjects
            are fewer than `nearest`.
    """
    if nearest < 1:
        raise InputError(f"The {nearest} nearest subjects are none. Ask for at least one.")
    if not len(held):
        raise InputError("There are no held-out subjects to measure overlap with. Give some.")
    center = held.mean(axis=0, dtype=np.float64)
    own = directions(held - center).astype(np.float32)
    top = np.empty((len(held), 0), dtype=np.float32)
    for batch in new:
        other = directions(batch - center).astype(np.float32)
        similar = np.concatenate([top, own @ other.T], axis=1)
        least = max(similar.shape[1] - nearest, 0)
        top = np.partition(similar, least, axis=1)[:, least:] if least else similar
    if top.shape[1] < nearest:
        raise InputError(
            f"{top.shape[1]} new subjects are fewer than the {nearest} nearest asked for. Give "
            "more new facts, or ask for fewer."
        )
    return np.asarray(top.mean(axis=1, dtype=np.float64))


@dataclass(frozen=True, slots=True)
class Slope:
    """How much more is lost at one standard deviation more of nearness, as a share in [-1, 1].

    Attributes:
        controlled: The slope at equal controls, with its 95 % interval.
        alone: The slope without controls.
        left_out: Controls that don't vary, which control nothing.
    """

    controlled: Estimate
    alone: Estimate
    left_out: tuple[str, ...]


def regress(
    lost: NDArray[np.float64],
    nearness: NDArray[np.float64],
    controls: Mapping[str, NDArray[np.float64]],
) -> Slope | None:
    """Regresses how often each fact was lost on its nearness to the new subjects.

    Ordinary least squares on standardised columns. A share of seeds has no constant variance,
    so the standard errors are HC3 (MacKinnon & White 1985, doi 10.1016/0304-4076(85)90158-7),
    and the interval is Student's at facts minus columns degrees of freedom. Facts count as
    independent.

    Args:
        lost: Share of seeds in which each fact was lost, in [0, 1], shape (facts,).
        nearness: Of the same facts, as `nearness` gives it, shape (facts,).
        controls: By name, for example the logarithm of the answer's frequency and the number
            of the subject's tokens; each of shape (facts,).

    Returns:
        The slope; None if facts are fewer than columns + 10, if `lost` or `nearness` doesn't
        vary, or if the controls determine nearness.

    Raises:
        ValueError: If lengths differ or a number isn't finite.
    """
    left_out = tuple(name for name, values in controls.items() if _is_flat(values))
    kept = [values for name, values in controls.items() if name not in left_out]
    table = np.column_stack([lost, nearness, *kept]).astype(np.float64)
    if not np.isfinite(table).all():
        raise ValueError("regress takes finite numbers only")
    columns = table.shape[1]  # nearness, controls and the constant
    if len(table) < columns + _SPARE or _is_flat(lost) or _is_flat(nearness):
        return None
    scaled = (table - table.mean(axis=0)) / table.std(axis=0)
    controlled = _first_slope(table[:, 0], scaled[:, 1:])
    alone = _first_slope(table[:, 0], scaled[:, 1:2])
    return Slope(controlled, alone, left_out) if controlled and alone else None


def _is_flat(values: NDArray[np.float64]) -> bool:
    return not len(values) or bool(np.ptp(values) <= _FLAT * np.abs(values).max())


def _first_slope(y: NDArray[np.float64], columns: NDArray[np.float64]) -> Estimate | None:
    """Estimates the slope of the first column, if the others don't determine it."""
    design = np.column_stack([columns, np.ones(len(y))])
    rank = int(np.linalg.matrix_rank(design))
    if rank == np.linalg.matrix_rank(design[:, 1:]):
        return None
    solve = np.linalg.pinv(design)
    leverage = np.einsum("ij,ji->i", design, solve)
    residuals = y - design @ (solve @ y)
    # A fact that a control singles out is fitted exactly, and tells nothing of the slope.
    free = leverage < 1 - _FLAT
    errors = np.where(free, residuals / np.where(free, 1 - leverage, 1), 0)
    value = float(solve[0] @ y)
    spread = float(np.sqrt(((solve[0] * errors) ** 2).sum()))
    reach = float(student.ppf(0.975, len(y) - rank)) * spread
    return Estimate(value, value - reach, value + reach, len(y))
