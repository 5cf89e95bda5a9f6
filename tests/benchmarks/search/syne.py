"""Schedulers of Syne Tune as peers, where it is installed (`pip install syne-tune xgboost`)."""

from __future__ import annotations

import datetime
import importlib
from typing import Any

import numpy as np

from tests.benchmarks.search.searchers import Rows, in_unit
from tests.benchmarks.search.simulator import Curves, Decision, Hyperparameter


class SyneTune:
    """A scheduler by its name in `syne_tune.optimizer.baselines`, told as its own tuner tells it.

    As for the other searchers, a trial's row takes the place of what was proposed.
    """

    def __init__(self, curves: Curves, seed: int, scheduler: str) -> None:
        baselines: Any = importlib.import_module("syne_tune.optimizer.baselines")
        self._trial: Any = importlib.import_module("syne_tune.backend.trial_status").Trial
        np.random.seed(seed)  # some of its parts draw from the global state
        self._scheduler = getattr(baselines, scheduler)(
            {axis.name: _range(axis) for axis in curves.axes},
            metric="loss",
            time_attr="epoch",
            max_t=int(curves.length_N.max()),
            random_seed=seed,
        )
        self._curves = curves
        self._rows = Rows(curves)
        self._trials: dict[int, Any] = {}
        self._last: dict[int, dict[str, float]] = {}
        self._stopped: set[int] = set()

    def ask(self) -> tuple[int, int] | None:
        suggestion = self._scheduler.suggest()
        if suggestion is None:
            return None
        axes, config = self._curves.axes, suggestion.config
        row = self._rows.nearest(np.array([in_unit(axis, config[axis.name]) for axis in axes]))
        if row is None:
            return None
        own = {}
        for axis, value in zip(axes, self._curves.raw_ND[row], strict=True):
            inside = float(np.clip(value, axis.low, axis.high))
            own[axis.name] = round(inside) if axis.whole else inside
        number = len(self._trials)
        self._trials[number] = self._trial(number, own, datetime.datetime.now())
        self._scheduler.on_trial_add(self._trials[number])
        return number, row

    def report(self, number: int, epoch: int, loss: float, last: bool) -> Decision:
        self._last[number] = {"loss": loss, "epoch": epoch}
        if last:
            return "go"
        decision = self._scheduler.on_trial_result(self._trials[number], self._last[number])
        if decision == "STOP":
            self._stopped.add(number)
            return "stop"
        return "go"

    def end(self, number: int, diverged: bool) -> None:
        if number in self._stopped:
            self._scheduler.on_trial_remove(self._trials[number])
        else:
            self._scheduler.on_trial_complete(self._trials[number], self._last[number])


def _range(axis: Hyperparameter) -> Any:
    space: Any = importlib.import_module("syne_tune.config_space")
    if axis.whole:
        make = space.lograndint if axis.log else space.randint
        return make(round(axis.low), round(axis.high))
    return (space.loguniform if axis.log else space.uniform)(axis.low, axis.high)
