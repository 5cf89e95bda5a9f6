"""Several objectives at once: the Pareto front, who goes on at a rung, and what weights pick.

Shapes: N trials, M objectives; F of the trials with finite losses, D distinct ones of them. A loss
is the value of an objective, negated where higher is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from raymlc.errors import UserError
from raymlc.metric import higher_is_better
from raymlc.search.rungs import REASON, fractions, length, rung_epoch

_VECTOR = "vector/"  # and an epoch: a trial's attribute, with the objectives' values in their order


@dataclass(frozen=True)
class Picked:
    """A trial as somebody's weights see it.

    score: the weighted mean over the objectives, in each of which the best of the front has 1 and
    the worst of the front 0. rank: as `ranks` says, 0 on the front.
    """

    number: int
    score: float
    rank: int


def ranks(losses_NM: NDArray[np.float64]) -> NDArray[np.int64]:
    """Each row's non-dominated rank: 0 on the front, 1 on the front of the rest, and so on.

    Equal rows share a rank. All rows with a value that is not finite share the last one. Takes
    O(N^2 M) time and O(N^2) memory.
    """
    finite_N = np.isfinite(losses_NM).all(axis=1)
    losses_FM = losses_NM[finite_N]
    no_worse_FF = np.ones((len(losses_FM), len(losses_FM)), np.bool_)
    for loss_F in losses_FM.T:
        no_worse_FF &= loss_F[:, None] <= loss_F
    dominates_FF = no_worse_FF & ~no_worse_FF.T
    dominators_F = dominates_FF.sum(axis=0)
    rank_F = np.full(len(losses_FM), -1, np.int64)
    rank = 0
    while (rank_F < 0).any():
        front_F = (rank_F < 0) & (dominators_F == 0)
        rank_F[front_F] = rank
        dominators_F -= dominates_FF[front_F].sum(axis=0)
        rank += 1
    rank_N = np.full(len(losses_NM), rank, np.int64)
    rank_N[finite_N] = rank_F
    return rank_N


def places(losses_NM: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each row how many others are strictly before it: 0 for the first, and for all as good.

    A lower rank is before a higher one; within a rank, who has more room around it, by the crowding
    distance of NSGA-II (doi:10.1109/4235.996017). Equal rows have one place, and none of them takes
    the others' room.
    """
    rank_N = ranks(losses_NM)
    room_N = np.zeros(len(losses_NM))
    finite_N = np.isfinite(losses_NM).all(axis=1)
    for rank in range(rank_N.max(initial=-1) + 1):
        rows = np.flatnonzero((rank_N == rank) & finite_N)
        distinct_DM, which = np.unique(losses_NM[rows], axis=0, return_inverse=True)
        room_N[rows] = _crowding(distinct_DM)[which.reshape(-1)]
    before_NN = rank_N[:, None] < rank_N
    before_NN |= (rank_N[:, None] == rank_N) & (room_N[:, None] > room_N)
    return np.asarray(before_NN.sum(axis=0), np.int64)


def front(stored: Mapping[int, Mapping[str, float]], names: Sequence[str]) -> list[int]:
    """The trials on the Pareto front of some metrics, in the order of `stored`.

    stored: the metrics of each trial's checkpoint, by the trial's number. A trial without a finite
    number for each of the names is on no front.
    """
    numbers, losses_NM = _losses(stored, names)
    return [number for number, rank in zip(numbers, ranks(losses_NM), strict=True) if rank == 0]


def pick(stored: Mapping[int, Mapping[str, float]], weights: Mapping[str, float]) -> list[Picked]:
    """The trials, on the front and off it, best first by the weights of metrics.

    stored: as `front` has it; trials that are on no front for want of a number are left out. Where
    the whole front has one value of a metric, what is worse loses the plain difference. Of equals
    the lower rank is first, then the lower number; so the first of all is one of the front, and
    what a trial dominates comes after it.
    Raises UserError for a weight below 0 or not finite, and if none is above 0.
    """
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(
                f"a weight must be a number of at least 0, but that of {name} is {weight:g}; a loss"
                " is better the lower it is without a sign"
            )
    if not any(weights.values()):
        raise UserError(
            f"a weight must be above 0, but {' and '.join(weights) or 'none'} has 0; raise one"
        )
    numbers, losses_NM = _losses(stored, tuple(weights))
    if not numbers:
        return []
    rank_N = ranks(losses_NM)
    front_FM = losses_NM[rank_N == 0]
    best_M, worst_M = front_FM.min(axis=0), front_FM.max(axis=0)
    span_M = np.where(worst_M > best_M, worst_M - best_M, 1.0)
    weight_M = np.array(list(weights.values())) / max(weights.values())
    score_N = ((1 - (losses_NM - best_M) / span_M) * weight_M).sum(axis=1) / weight_M.sum()
    picked = [
        Picked(number, float(score), int(rank))
        for number, score, rank in zip(numbers, score_N, rank_N, strict=True)
    ]
    return sorted(picked, key=lambda one: (-one.score, one.rank, one.number))


def halted(losses: Mapping[int, Sequence[float]], number: int, factor: float) -> bool:
    """Whether a trial ends at a rung: unless fewer than 1/factor of the others are before it.

    losses: of every trial that stands on the rung, by its number. Who is before it: as `places`
    says. The first at a rung goes on, and so do all that are as good as the first.
    """
    others = len(losses) - 1
    if others == 0:
        return False
    place = places(np.array(list(losses.values()), np.float64))[list(losses).index(number)]
    return bool(place >= others / factor)


def tell_vector(trial: optuna.Trial, epoch: int, values: Sequence[float]) -> None:
    """Write down an epoch's values of several objectives; Optuna's own report takes one."""
    trial.set_user_attr(f"{_VECTOR}{epoch}", list(values))


def vectors_of(trial: FrozenTrial) -> dict[int, list[float]]:
    """The values of several objectives at each epoch that was told, NaN among them."""
    return {
        int(name.removeprefix(_VECTOR)): values
        for name, values in trial.user_attrs.items()
        if name.startswith(_VECTOR)
    }


class RankPruner(optuna.pruners.BasePruner):
    """Stops a trial of several objectives at a rung, as `prune_by_rank` has it.

    longest: epochs of trials that do not say how many they have. first: the lowest rung, as a
    fraction of a run. factor: from rung to rung; one of so many goes on.
    """

    def __init__(self, longest: int, first: float, factor: float) -> None:
        self._longest = longest
        self._first = first
        self._factor = factor

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether `trial` ends with the epoch that was told last."""
        return prune_by_rank(study, trial, self._longest, self._first, self._factor)


def prune_by_rank(
    study: optuna.Study, trial: FrozenTrial, longest: int, first: float, factor: float
) -> bool:
    """Whether `trial` ends with the epoch that `tell_vector` told last.

    As `RungPruner.prune`, but by `halted`, and no trial is spared a rung. An epoch in which a value
    is NaN counts as not told. longest: epochs of trials that do not say how many they have. first:
    the lowest rung, as a fraction of a run. factor: from rung to rung; one of so many goes on.
    """
    told = sorted(_vectors(trial))
    if not told:
        return False
    before = told[-2] if len(told) > 1 else 0
    epochs = length(trial, longest)
    at = fractions(first, factor)[:-1]
    passed = [
        rung for rung, share in enumerate(at) if before < rung_epoch(share, epochs) <= told[-1]
    ]
    if not passed:
        return False
    rungs = losses_at(study.get_trials(deepcopy=False), at, longest, study.directions)
    return halted(rungs[passed[-1]], trial.number, factor)


def losses_at(
    trials: Sequence[FrozenTrial],
    at: Sequence[float],
    longest: int,
    directions: Sequence[StudyDirection],
) -> list[dict[int, list[float]]]:
    """For each rung, every trial that reached it, by number, with its losses there.

    As `rungs.losses`, from each trial's VECTORS: a trial that failed stands, with infinite losses,
    on the first rung that it did not reach.
    """
    signs = [-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in directions]
    rungs: list[dict[int, list[float]]] = [{} for _ in at]
    for trial in trials:
        vectors = _vectors(trial)
        failed = trial.state == TrialState.FAIL
        if (failed and REASON not in trial.user_attrs) or not (
            vectors or trial.state.is_finished()
        ):
            continue
        epochs = length(trial, longest)
        for rung, fraction in zip(rungs, at, strict=True):
            later = [epoch for epoch in vectors if epoch >= rung_epoch(fraction, epochs)]
            if later:
                values = vectors[min(later)]
            elif trial.state == TrialState.COMPLETE:
                values = trial.values  # its last epochs were not numbers, or none was told
            else:
                if failed:
                    rung[trial.number] = [math.inf] * len(signs)
                break
            rung[trial.number] = [sign * value for sign, value in zip(signs, values, strict=True)]
    return rungs


def _crowding(distinct_DM: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each row's distance between its neighbours, summed over the objectives; infinite at an end.

    An objective in which all rows are alike says nothing.
    """
    room_D = np.zeros(len(distinct_DM))
    for loss_D in distinct_DM.T:
        order_D = loss_D.argsort(kind="stable")
        sorted_D = loss_D[order_D]
        if len(sorted_D) and sorted_D[-1] > sorted_D[0]:
            gap_D = np.full(len(sorted_D), math.inf)
            gap_D[1:-1] = (sorted_D[2:] - sorted_D[:-2]) / (sorted_D[-1] - sorted_D[0])
            room_D[order_D] += gap_D
    return room_D


def _losses(
    stored: Mapping[int, Mapping[str, float]], names: Sequence[str]
) -> tuple[list[int], NDArray[np.float64]]:
    """The numbers of the trials that have a finite number for each name, and their losses."""
    signs_M = np.array([-1.0 if higher_is_better(name) else 1.0 for name in names])
    values_NM = np.array(
        [[metrics.get(name, math.nan) for name in names] for metrics in stored.values()], np.float64
    ).reshape(-1, len(names))
    rows = np.flatnonzero(np.isfinite(values_NM).all(axis=1))
    all_numbers = list(stored)
    return [all_numbers[row] for row in rows], signs_M * values_NM[rows]


def _vectors(trial: FrozenTrial) -> dict[int, list[float]]:
    told = vectors_of(trial)
    return {e: values for e, values in told.items() if not any(map(math.isnan, values))}
