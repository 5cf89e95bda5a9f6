"""Searchers of the benchmark: peers by their published rules, and any Optuna sampler and pruner."""

from __future__ import annotations

import math

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from raymlc.search.pruner import Promoting
from raymlc.search.rungs import CONFIG, REASON
from tests.benchmarks.search.simulator import Curves, Decision, Hyperparameter


class Rows:
    """The rows of a table, each of which runs once."""

    def __init__(self, curves: Curves) -> None:
        self._curves = curves
        self._free_N = np.ones(len(curves.length_N), dtype=bool)

    def nearest(self, point_D: NDArray[np.float64]) -> int | None:
        """The free row nearest to a point of the unit cube, which is then taken."""
        if not self._free_N.any():
            return None
        distance_N = ((self._curves.unit_ND - point_D) ** 2).sum(1)
        distance_N[~self._free_N] = np.inf
        row = int(distance_N.argmin())
        self._free_N[row] = False
        return row

    def anywhere(self, rng: np.random.Generator) -> int | None:
        """A free row at random, which is then taken."""
        free = np.flatnonzero(self._free_N)
        if not len(free):
            return None
        row = int(rng.choice(free))
        self._free_N[row] = False
        return row


class Random:
    """Random configurations, each trained in full, or stopped by Ray's ASHA."""

    def __init__(self, curves: Curves, seed: int, asha: RayAsha | None = None) -> None:
        self._rows = Rows(curves)
        self._rng = np.random.default_rng(seed)
        self._asha = asha
        self._asked = 0

    def ask(self) -> tuple[int, int] | None:
        row = self._rows.anywhere(self._rng)
        self._asked += 1
        return None if row is None else (self._asked - 1, row)

    def report(self, number: int, epoch: int, loss: float, last: bool) -> Decision:
        stop = self._asha is not None and self._asha.stops(number, epoch, loss)
        return "stop" if stop else "go"

    def end(self, number: int, diverged: bool) -> None:
        pass


class OneEpochThenTop:
    """One epoch of many random configurations, then the best of them in full, best first.

    arXiv:2307.15422. first: configurations that get their one epoch.
    """

    def __init__(self, curves: Curves, seed: int, first: int = 100) -> None:
        self._rows = Rows(curves)
        self._rng = np.random.default_rng(seed)
        self._first = first
        self._row: dict[int, int] = {}
        self._paused: dict[int, float] = {}

    def ask(self) -> tuple[int, int] | None:
        if len(self._row) < self._first:
            row = self._rows.anywhere(self._rng)
            if row is not None:
                self._row[len(self._row)] = row
                return len(self._row) - 1, row
        if not self._paused:
            return None
        number = min(self._paused, key=lambda trial: (self._paused[trial], trial))
        del self._paused[number]
        return number, self._row[number]

    def report(self, number: int, epoch: int, loss: float, last: bool) -> Decision:
        if epoch == 1 and not last:
            self._paused[number] = loss
            return "pause"
        return "go"

    def end(self, number: int, diverged: bool) -> None:
        pass


class RayAsha:
    """The rule of `ray.tune.schedulers.AsyncHyperBandScheduler` with one bracket, for a loss."""

    def __init__(self, longest: int, grace: int = 1, factor: float = 4) -> None:
        count = int(np.log(longest / grace) / np.log(factor) + 1)
        self._longest = longest
        self._factor = factor
        self._rungs: list[tuple[float, dict[int, float]]] = [
            (grace * factor**rung, {}) for rung in reversed(range(count))
        ]

    def stops(self, number: int, epoch: int, loss: float) -> bool:
        """Whether a trial ends with this epoch, the longest one's end included."""
        if epoch >= self._longest:
            return True
        for milestone, recorded in self._rungs:
            if epoch < milestone or number in recorded:
                continue
            quantile = (1 - 1 / self._factor) * 100
            stop = bool(recorded) and -loss < np.nanpercentile(list(recorded.values()), quantile)
            recorded[number] = -loss
            return bool(stop)
        return False


class Study:
    """An in-memory Optuna study over a table; a trial's row takes the place of what was proposed.

    The study holds the row's own values, as if the sampler had hit it; with `told_row` off, it
    holds the proposal.
    """

    def __init__(
        self,
        curves: Curves,
        sampler: optuna.samplers.BaseSampler,
        pruner: optuna.pruners.BasePruner,
        told_row: bool = True,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.storage = InMemoryStorage()
        # Optuna's Hyperband draws a trial's bracket by the study's name.
        self.study = optuna.create_study(
            storage=self.storage, sampler=sampler, pruner=pruner, study_name="benchmark"
        )
        self.trials: dict[int, optuna.Trial] = {}
        self._curves = curves
        self._rows = Rows(curves)
        self._told_row = told_row

    def ask(self) -> tuple[int, int] | None:
        trial = self.study.ask()
        point_D = np.array([in_unit(axis, _suggest(trial, axis)) for axis in self._curves.axes])
        row = self._rows.nearest(point_D)
        if row is None:
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        if self._told_row:
            params = self.storage._get_trial(trial._trial_id).params
            for axis, value in zip(self._curves.axes, self._curves.raw_ND[row], strict=True):
                inside = float(np.clip(value, axis.low, axis.high))
                params[axis.name] = round(inside) if axis.whole else inside
        trial.set_user_attr(CONFIG, {"epochs": int(self._curves.length_N[row])})
        self.trials[trial.number] = trial
        return trial.number, row


class StockRay(Study):
    """Ray's `OptunaSearch` and ASHA: every trial is COMPLETE with its last value, to Optuna.

    Optuna's default TPE; ASHA's defaults: from the first epoch on, factor 4. As OptunaSearch does,
    a trial's last epoch reaches Optuna as its value alone.
    """

    def __init__(self, curves: Curves, seed: int, told_row: bool = True) -> None:
        sampler = optuna.samplers.TPESampler(seed=seed)
        super().__init__(curves, sampler, optuna.pruners.NopPruner(), told_row)
        self._asha = RayAsha(int(curves.length_N.max()))
        self._loss: dict[int, float] = {}

    def report(self, number: int, epoch: int, loss: float, last: bool) -> Decision:
        self._loss[number] = loss
        return "stop" if self._asha.stops(number, epoch, loss) else "go"

    def end(self, number: int, diverged: bool) -> None:
        self.study.tell(self.trials.pop(number), self._loss[number])


class StudySearcher(Study):
    """A sampler and a pruner on the study, told as raymlc tells them: COMPLETE, PRUNED or FAIL.

    With a pruner that promotes, a halted trial stays RUNNING and may go on before a new one begins.
    """

    def __init__(
        self,
        curves: Curves,
        sampler: optuna.samplers.BaseSampler,
        pruner: optuna.pruners.BasePruner,
        told_row: bool = True,
    ) -> None:
        super().__init__(curves, sampler, pruner, told_row)
        self._pruned: set[int] = set()
        self._paused: set[int] = set()
        self._row: dict[int, int] = {}
        self._best: dict[int, float] = {}

    def ask(self) -> tuple[int, int] | None:
        job = self._promoted(all_asked=False) or super().ask() or self._promoted(all_asked=True)
        if job is not None:
            self._row[job[0]] = job[1]
        return job

    def _promoted(self, all_asked: bool) -> tuple[int, int] | None:
        pruner = self.study.pruner
        if not isinstance(pruner, Promoting):
            return None
        number = pruner.promote(self.study, self._paused, all_asked)
        if number is None:
            return None
        self._paused.remove(number)
        return number, self._row[number]

    def report(self, number: int, epoch: int, loss: float, last: bool) -> Decision:
        trial = self.trials[number]
        self._best[number] = min(loss, self._best.get(number, math.inf))
        trial.report(loss, epoch)
        if last or not trial.should_prune():
            return "go"
        if isinstance(self.study.pruner, Promoting):
            self._paused.add(number)
            return "pause"
        self._pruned.add(number)
        return "stop"

    def end(self, number: int, diverged: bool) -> None:
        trial = self.trials.pop(number)
        if diverged:
            trial.set_user_attr(REASON, "the loss was not finite")
            self.study.tell(trial, state=TrialState.FAIL)
        elif number in self._pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, self._best[number])


def _suggest(trial: optuna.Trial, axis: Hyperparameter) -> float:
    if axis.whole:
        return trial.suggest_int(axis.name, round(axis.low), round(axis.high), log=axis.log)
    return trial.suggest_float(axis.name, axis.low, axis.high, log=axis.log)


def in_unit(axis: Hyperparameter, value: float) -> float:
    """A value's place in its range, in [0, 1]."""
    low, high = (math.log(axis.low), math.log(axis.high)) if axis.log else (axis.low, axis.high)
    return ((math.log(value) if axis.log else value) - low) / (high - low)
