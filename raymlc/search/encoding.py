"""Parameters of a search space as numbers, for a model and for steps from one point to another.

A point is a row of P numbers: a number's place in its range, in [0, 1], on a log scale where the
range has one; a category's index; NaN for a parameter that the trial did not ask for.
Shapes: N points, P parameters, C columns for the model, in which a category has one each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Floats = NDArray[np.float64]


class Encoding:
    """Points of a search space, there and back. space: distributions by name, in a fixed order."""

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.space = dict(space)
        self.names = list(space)
        self._ranges = list(space.values())
        self.choices_P = np.array(
            [len(r.choices) if isinstance(r, CategoricalDistribution) else 0 for r in self._ranges]
        )
        self.parameter_of_C = np.repeat(
            np.arange(len(self.names)), np.maximum(self.choices_P, 1)
        ).astype(np.int64)

    def point(self, params: Mapping[str, Any]) -> Floats:
        """The point of a trial's values; a value outside the range is taken to its border."""
        return np.array(
            [
                _number(range_, params[name]) if name in params else math.nan
                for name, range_ in zip(self.names, self._ranges, strict=True)
            ]
        )

    def values(self, point_P: Floats) -> dict[str, Any]:
        """The values of a point, as Optuna suggests them."""
        return {
            name: _value(range_, float(number))
            for name, range_, number in zip(self.names, self._ranges, point_P, strict=True)
        }

    def columns(self, points_NP: Floats) -> Floats:
        """What the model sees: a missing number in the middle of its range, no category for one."""
        columns = []
        for at, choices in enumerate(self.choices_P):
            number_N = points_NP[:, at]
            if choices:
                # Two categories are as far apart as the two ends of a range.
                columns += [(number_N == c) * math.sqrt(0.5) for c in range(choices)]
            else:
                columns.append(np.where(np.isnan(number_N), 0.5, number_N))
        return np.stack(columns, axis=1)

    def random(self, rng: np.random.Generator, count: int) -> Floats:
        """Points anywhere in the space, with a value for every parameter."""
        uniform = rng.random((count, len(self.names)))
        return np.where(self.choices_P > 0, np.floor(uniform * self.choices_P), uniform)

    def near(self, rng: np.random.Generator, points_NP: Floats, count: int, step: float) -> Floats:
        """Points that differ from one of these in one, in half or in all parameters.

        A number moves by up to about `step` of its range, often by much less, and is reflected at
        the borders; a category is drawn anew. What a point lacks is drawn at random.
        """
        anywhere = self.random(rng, count)
        parents = points_NP[rng.integers(len(points_NP), size=count)]
        parents = np.where(np.isnan(parents), anywhere, parents)
        width = len(self.names)
        share = rng.choice([1 / width, 0.5, 1.0], size=(count, 1))
        moved = rng.random(parents.shape) < share
        size = step * 10.0 ** -rng.random((count, 1))
        numbers = np.abs(parents + size * rng.normal(size=parents.shape))
        numbers = np.clip(1 - np.abs(1 - numbers), 0.0, 1.0)
        return np.where(moved, np.where(self.choices_P > 0, anywhere, numbers), parents)


def without_unasked(points_MP: Floats, seen_NP: Floats) -> Floats:
    """The points without the parameters that a conditional space would not ask for.

    Which those are is unknown before the space runs; the likeliest guess is what the seen point
    did that is nearest in the parameters that all of them asked for.
    """
    always_P = ~np.isnan(seen_NP).any(0)
    if always_P.all() or not always_P.any():
        return points_MP
    # Categories decide what is asked more often than numbers; different ones are 1 apart or more.
    apart_MNP = np.abs(points_MP[:, None, always_P] - seen_NP[None, :, always_P])
    nearest_M = (apart_MNP**2).sum(2).argmin(1)
    return np.where(np.isnan(seen_NP[nearest_M]), np.nan, points_MP)


def _number(range_: BaseDistribution, value: Any) -> float:
    if isinstance(range_, CategoricalDistribution):
        return float(range_.to_internal_repr(value))
    assert isinstance(range_, FloatDistribution | IntDistribution)
    low, high = _borders(range_)
    number = math.log(max(value, 1e-300)) if range_.log else float(value)
    return min(1.0, max(0.0, (number - low) / (high - low)))


def _value(range_: BaseDistribution, number: float) -> Any:
    if isinstance(range_, CategoricalDistribution):
        return range_.choices[int(number)]
    assert isinstance(range_, FloatDistribution | IntDistribution)
    low, high = _borders(range_)
    value = low + number * (high - low)
    value = math.exp(value) if range_.log else value
    if range_.step is not None and not range_.log:
        value = range_.low + round((value - range_.low) / range_.step) * range_.step
    elif isinstance(range_, IntDistribution):
        value = round(value)
    value = min(range_.high, max(range_.low, value))
    return int(value) if isinstance(range_, IntDistribution) else float(value)


def _borders(range_: FloatDistribution | IntDistribution) -> tuple[float, float]:
    # Each whole number gets its own stretch, so that the two at the ends come up as often.
    half = 0.0
    if range_.step is not None:
        half = 0.5 * range_.step
    low, high = range_.low - half, range_.high + half
    return (math.log(low), math.log(high)) if range_.log else (low, high)


def union(distributions: Sequence[Mapping[str, BaseDistribution]]) -> dict[str, BaseDistribution]:
    """Every parameter that any trial asked for, in its latest range; those with one value left out.

    Ordered by name, so that a resumed sweep, which sees the trials anew, orders them alike.
    """
    found: dict[str, BaseDistribution] = {}
    for asked in distributions:
        found.update(asked)
    return {name: found[name] for name in sorted(found) if not found[name].single()}
