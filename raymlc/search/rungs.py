"""Rungs: fractions of a trial's own length, at which trials of any length can be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

# A trial's attributes: its values; why it failed; whether it was halted and may be promoted; that
# no trial is compared with it at a rung, since it is of another space or another study.
CONFIG, REASON, PAUSED, ASIDE = "config", "reason", "paused", "aside"

# The lowest rung, as a fraction of a run, and how far each is above the one before; one trial of so
# many goes on.
FIRST, FACTOR = 1 / 64, 4.0

SPARED = 0.1  # the least share of trials that no early rung stops: what is known of those rungs
_TRUSTED, _WEIGHT = 0.8, 4  # how far they are trusted at first, and how many trials that counts as


def fractions(first: float, factor: float) -> list[float]:
    """Rungs from the lowest up to a full run: factor apart, the lowest the nearest to `first`."""
    count = max(1, round(math.log(1 / first) / math.log(factor)))
    return [factor**-rung for rung in range(count, -1, -1)]


def length(trial: FrozenTrial, longest: int) -> int:
    """Epochs of a full run of a trial; `longest` for a study that does not say."""
    config = trial.user_attrs.get(CONFIG)
    return int(config["epochs"]) if config else longest


def rung_epoch(fraction: float, epochs: int) -> int:
    """The epoch, counted from 1, at which a trial of so many epochs reaches a rung."""
    return max(1, math.ceil(fraction * epochs - 1e-9))


def reached(values: Mapping[int, float], epoch: int) -> float | None:
    """The value at an epoch, or the first after it; None if the trial has not come so far."""
    if epoch in values:
        return values[epoch]
    later = [step for step in values if step > epoch]
    return values[min(later)] if later else None


def losses(
    trials: Sequence[FrozenTrial], at: Sequence[float], longest: int, direction: StudyDirection
) -> list[dict[int, float]]:
    """For each rung, every trial that reached it, by number, with its loss there.

    The loss is the reported value, negated where higher is better. A trial that failed stands,
    with an infinite loss, on the first rung that it did not reach: where it would have gone is a
    place to avoid.
    """
    sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
    rungs: list[dict[int, float]] = [{} for _ in at]
    for trial in trials:
        values = trial.intermediate_values
        failed = trial.state == TrialState.FAIL
        if (failed and REASON not in trial.user_attrs) or not (values or trial.state.is_finished()):
            continue
        epochs = length(trial, longest)
        for rung, fraction in zip(rungs, at, strict=True):
            value = reached(values, rung_epoch(fraction, epochs)) if values else None
            if value is None and trial.state == TrialState.COMPLETE:
                value = trial.value  # its last epochs were not numbers, or none was reported
            if value is None:
                if failed:
                    rung[trial.number] = math.inf
                break
            rung[trial.number] = sign * value
    return rungs


def order(rungs: Sequence[Mapping[int, float]]) -> list[int]:
    """All trials of the lowest rung, the best first, each judged as late as it can be.

    Those who reached the next rung share out, by their losses there, the places that they hold
    together; so no trial is compared with another at different ages.
    """
    by_loss = sorted(rungs[0], key=lambda number: (rungs[0][number], number))
    place = {number: at for at, number in enumerate(by_loss)}
    for rung in rungs[1:]:
        here = sorted((number for number in rung if number in place), key=lambda n: (rung[n], n))
        for number, at in zip(here, sorted(place[number] for number in here), strict=True):
            place[number] = at
    return sorted(place, key=place.__getitem__)


def chance(number: int) -> float:
    """A trial's lot, in [0, 1): spread evenly over any stretch of trials, and always the same."""
    return (number * 0.6180339887498949) % 1.0


def trust(rungs: Sequence[Mapping[int, float]]) -> float:
    """How far the lowest of these rungs foretells the highest one, from 0 to 1.

    Of what the best third at the highest rung is ahead of the mean, the share that the best third
    at the lowest rung has. Gaps count, not ranks: of trials that are all as bad as chance, the
    order says nothing; and what is worse than the median counts as the median. Measured on trials
    whose lot let them pass the rungs between whatever they were worth.
    """
    both = [n for n in rungs[-1] if n in rungs[0] and chance(n) < SPARED]
    late_N = np.array([rungs[-1][number] for number in both])
    if np.isfinite(late_N).sum() <= len(both) / 2:  # none, or the median is infinite
        return _TRUSTED
    late_N = np.minimum(late_N, np.median(late_N))
    third = max(1, len(both) // 3)
    chosen = np.argsort([rungs[0][number] for number in both], kind="stable")[:third]
    ahead = late_N.mean() - np.sort(late_N)[:third].mean()
    kept = (late_N.mean() - late_N[chosen].mean()) / ahead if ahead > 0 else _TRUSTED
    share = (kept * len(both) + _TRUSTED * _WEIGHT) / (len(both) + _WEIGHT)
    return float(np.clip(share, 0.0, 1.0))


def spared(trusted: float) -> float:
    """Share of trials that only the last rung may stop: more, the less the early ones foretell."""
    return max(SPARED, (1 - trusted) ** 2)
