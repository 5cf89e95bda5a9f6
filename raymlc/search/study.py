"""The Optuna study of a sweep: what is asked, every epoch's value, how each trial ended.

The study is the truth. Whatever else is lost, a sweep goes on from it, and a trial that no process
runs any more is handed out again under its own number.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from raymlc.metric import higher_is_better
from raymlc.search.rungs import CONFIG, REASON
from raymlc.search.space import Space
from raymlc.trial import TrialConfig

METRICS, SECONDS = "metrics", "seconds"  # a trial's attributes


@dataclass(frozen=True)
class Assignment:
    """A trial to be run: its number in the study and its values."""

    number: int
    config: TrialConfig


@dataclass(frozen=True)
class Row:
    """One trial of a study, as people read it.

    state: RUNNING, COMPLETE, PRUNED or FAIL. epochs: how many reached the study. score and metrics:
    of the checkpoint that the trial stored; NaN and empty without one. params: what was searched.
    reason: why it failed. seconds: from its start, or its last resumption, to its end.
    """

    number: int
    state: str
    epochs: int
    score: float
    metrics: dict[str, float]
    params: dict[str, Any]
    reason: str
    seconds: float


class StudyBook:
    """Hands out trials and writes down what becomes of them.

    study: as `open_study` gives it; no other process may be running its trials.
    trials: how many trials the study shall have in all, failed ones included.
    """

    def __init__(self, study: optuna.Study, space: Space, metric: str, trials: int) -> None:
        self.study = study
        self.metric = metric
        self._space = space
        self._trials = trials
        self._running: dict[int, optuna.Trial] = {}
        self._started: dict[int, float] = {}
        self._pruned: set[int] = set()
        self._interrupted = []
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if CONFIG in trial.user_attrs:
                self._interrupted.append(trial)
            else:  # killed between asking and writing down what was asked
                study.tell(trial.number, state=TrialState.FAIL)

    def next(self) -> Assignment | None:
        """An interrupted trial, else a new one; None when there are as many as there shall be."""
        if self._interrupted:
            frozen = self._interrupted.pop(0)
            trial = optuna.Trial(self.study, frozen._trial_id)
            self._running[frozen.number] = trial
            self._started[frozen.number] = time.monotonic()
            return Assignment(frozen.number, TrialConfig.from_dict(frozen.user_attrs[CONFIG]))
        if len(self.study.get_trials(deepcopy=False)) >= self._trials:
            return None
        trial = self.study.ask()
        config = self._space(trial)
        # Written before the trial is handed out: from here on it can be resumed.
        trial.set_user_attr(CONFIG, config.to_dict())
        self._running[trial.number] = trial
        self._started[trial.number] = time.monotonic()
        return Assignment(trial.number, config)

    def params(self, number: int) -> dict[str, Any]:
        """What was searched in a trial, and the values it got."""
        return self._frozen(number).params

    def report(self, number: int, metrics: dict[str, float]) -> bool:
        """Write down an epoch of a trial; whether the pruner ends the trial here.

        An epoch that the study has already is passed over, so a resumed trial may tell its story
        again. The last epoch is never pruned.
        """
        trial, epoch = self._running[number], int(metrics["epoch"])
        frozen = self._frozen(number)
        if epoch in frozen.intermediate_values:
            return False
        value = metrics[self.metric]
        if not math.isnan(value):
            trial.report(value, epoch)
        last = epoch >= frozen.user_attrs[CONFIG]["epochs"]
        if not last and trial.should_prune():
            self._pruned.add(number)
            return True
        return False

    def end(self, number: int, stored: dict[str, float], failure: str = "") -> TrialState:
        """Close a trial: FAIL with a reason, PRUNED, or COMPLETE.

        stored: the metrics of the checkpoint that the trial stored, which are its score.
        """
        trial = self._running.pop(number)
        trial.set_user_attr(METRICS, stored)
        trial.set_user_attr(SECONDS, round(time.monotonic() - self._started[number], 1))
        if not failure and self.metric not in stored:
            failure = f"{self.metric} was not a number in any epoch"
        if failure:
            trial.set_user_attr(REASON, failure)
            self.study.tell(trial, state=TrialState.FAIL)
            return TrialState.FAIL
        if number in self._pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
            return TrialState.PRUNED
        self.study.tell(trial, stored[self.metric])
        return TrialState.COMPLETE

    def rows(self) -> list[Row]:
        """Every trial of the study, those with the best score first, those without one last."""
        rows = [self._row(trial) for trial in self.study.get_trials(deepcopy=False)]
        sign = -1 if higher_is_better(self.metric) else 1
        unscored = [row for row in rows if math.isnan(row.score)]
        scored = [row for row in rows if not math.isnan(row.score)]
        return sorted(scored, key=lambda row: (sign * row.score, row.number)) + unscored

    def _row(self, trial: FrozenTrial) -> Row:
        stored = trial.user_attrs.get(METRICS, {})
        return Row(
            number=trial.number,
            state=trial.state.name,
            epochs=max(trial.intermediate_values, default=0),
            score=stored.get(self.metric, math.nan),
            metrics=stored,
            params=trial.params,
            reason=trial.user_attrs.get(REASON, ""),
            seconds=trial.user_attrs.get(SECONDS, math.nan),
        )

    def _frozen(self, number: int) -> FrozenTrial:
        return self.study.get_trials(deepcopy=False)[number]
