"""The Optuna study of a sweep: what is asked, every epoch's value, how each trial ended.

The study is the truth. Whatever else is lost, a sweep goes on from it, and a trial that no process
runs any more is handed out again under its own number.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from raymlc.metric import higher_is_better, objectives, score_of
from raymlc.search.budget import Budget
from raymlc.search.front import tell_vector, vectors_of
from raymlc.search.pruner import Promoting
from raymlc.search.rungs import CONFIG, PAUSED, REASON
from raymlc.search.space import Space
from raymlc.search.transfer import ORIGIN, values_of
from raymlc.trial import TrialConfig

# A trial's attributes, beside those that rungs.py names: the metrics of its checkpoint and where
# that lies; wall-clock spent, over all resumptions; training images seen; the host it ran on last.
METRICS, CHECKPOINT, SECONDS, IMAGES, NODE = "metrics", "checkpoint", "seconds", "images", "node"


_NEVER_BEGUN = "the sweep was killed before it could begin"


@dataclass(frozen=True)
class Assignment:
    """A trial to be run: its number in the study and its values.

    epochs: that it has behind it already, as far as the study knows.
    """

    number: int
    config: TrialConfig
    epochs: int = 0


@dataclass(frozen=True)
class Row:
    """One trial of a study, as people read it.

    state: RUNNING, PAUSED (at a rung), HALTED (by a budget or a kill), COMPLETE, PRUNED or FAIL.
    epochs: how many reached the study. score and metrics: of the checkpoint that the trial stored;
    NaN and empty without one. params: the values of what was searched. reason: why it failed.
    seconds: spent on it, resumptions included.
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

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        metric: str,
        trials: int,
        budget: Budget = Budget(),
    ) -> None:
        self.study = study
        self.metric = metric
        self._objectives = objectives(metric)
        self._space = space
        self.trials = trials
        self.budget = budget
        self._deadline = math.inf
        self._running: dict[int, optuna.Trial] = {}
        self._started: dict[int, float] = {}
        self._pruned: set[int] = set()
        self._paused: set[int] = set()
        self._halted: set[int] = set()  # for the budget: they can go on in another run
        self._interrupted: list[FrozenTrial] = []
        self.epochs = 0
        for trial in study.get_trials(deepcopy=False):
            self.epochs += _epochs(trial)
            if trial.state == TrialState.RUNNING:
                self._take_up(trial)

    def _take_up(self, trial: FrozenTrial) -> None:
        """A trial that no process runs any more."""
        if trial.user_attrs.get(PAUSED):
            self._paused.add(trial.number)
        elif CONFIG in trial.user_attrs:
            self._interrupted.append(trial)
        else:  # killed between asking and writing down what was asked
            self.study.tell(trial.number, state=TrialState.FAIL)

    @property
    def finished(self) -> bool:
        """Whether `next` will give nothing more, whatever the running trials report."""
        return not (self._running and isinstance(self.study.pruner, Promoting)) or self.spent

    @property
    def spent(self) -> bool:
        """Whether the budget is spent."""
        return self.epochs >= self.budget.epochs or time.monotonic() >= self._deadline

    def next(self) -> Assignment | None:
        """An interrupted trial, else one that is promoted, else a new one; or none now.

        None when the study has as many trials as it shall, or when the budget is spent.
        """
        if self._deadline == math.inf:
            self._deadline = time.monotonic() + self.budget.seconds
        if self.spent:
            return None
        if self._interrupted:
            return self._again(self._interrupted.pop(0).number)
        all_asked = self.asked >= self.trials
        pruner = self.study.pruner
        if isinstance(pruner, Promoting) and self._paused:
            number = pruner.promote(self.study, frozenset(self._paused), all_asked)
            if number is not None:
                return self._promoted(number)
        return None if all_asked else self._new()

    @property
    def asked(self) -> int:
        """How many trials this study has asked for itself."""
        return sum(
            trial.state != TrialState.WAITING and ORIGIN not in trial.user_attrs
            for trial in self.study.get_trials(deepcopy=False)
        )

    def params(self, number: int) -> dict[str, Any]:
        """What was searched in a trial, and the values it got."""
        return self._frozen(number).params

    def report(self, number: int, metrics: dict[str, float], node: str = "") -> bool:
        """Write down an epoch of a trial; whether the trial ends here, for now or for ever.

        An epoch that the study has already is passed over, so a resumed trial may tell its story
        again. The last epoch never ends a trial before its time. node: the host it ran on.
        """
        trial, epoch = self._running[number], int(metrics["epoch"])
        frozen = self._frozen(number)
        last = epoch >= frozen.user_attrs[CONFIG]["epochs"]
        if epoch > _epochs(frozen):
            self.epochs += 1
            values = [metrics[name] for name in self._objectives]
            self._write(trial, epoch, values)
            trial.set_user_attr(IMAGES, metrics.get("images", math.nan))
            if node and frozen.user_attrs.get(NODE) != node:
                trial.set_user_attr(NODE, node)
            if not last and self._stops(trial):
                return self._halt_at_rung(number)
        if self.spent and not last:
            self._halted.add(number)
            return True
        return False

    def end(
        self, number: int, stored: dict[str, float], failure: str = "", checkpoint: str = ""
    ) -> TrialState:
        """Close a trial: FAIL with a reason, PRUNED, or COMPLETE; RUNNING if it may go on later.

        stored: the metrics of the checkpoint that the trial stored, which are its score.
        checkpoint: where that lies.
        """
        trial = self._running.pop(number)
        before = self._frozen(number).user_attrs.get(SECONDS, 0.0)
        trial.set_user_attr(METRICS, stored)
        trial.set_user_attr(CHECKPOINT, checkpoint if stored else "")
        trial.set_user_attr(SECONDS, round(before + time.monotonic() - self._started[number], 1))
        if not failure and number in self._paused | self._halted:
            return TrialState.RUNNING
        self._paused.discard(number)
        if not failure and any(math.isnan(stored.get(name, math.nan)) for name in self._objectives):
            failure = f"{self.metric} was not a number in any epoch"
        if failure:
            trial.set_user_attr(REASON, failure)
            return self._tell(trial, TrialState.FAIL)
        if number in self._pruned:
            return self._tell(trial, TrialState.PRUNED)
        self.study.tell(trial, [stored[name] for name in self._objectives])
        return TrialState.COMPLETE

    def close(self) -> list[int]:
        """At the end of a sweep, tell the trials that wait at a rung that they were pruned.

        Returns their numbers; none where the sweep can go on with them.
        """
        if self._running or self._halted or self._interrupted or self.asked < self.trials:
            return []
        numbers = sorted(self._paused)
        for number in numbers:
            self._tell(optuna.Trial(self.study, self._frozen(number)._trial_id), TrialState.PRUNED)
        self._paused.clear()
        return numbers

    def row(self, number: int) -> Row:
        """One trial, as `rows` has it."""
        trial = self._frozen(number)
        others = [] if trial.params else self.study.get_trials(deepcopy=False)
        return self._row(trial, _searched(others))

    def rows(self) -> list[Row]:
        """Every trial of the study, those with the best score first, those without one last."""
        trials = [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state != TrialState.WAITING and ORIGIN not in trial.user_attrs
        ]
        searched = _searched(trials)
        rows = [self._row(trial, searched) for trial in trials]
        sign = -1 if higher_is_better(self.metric) else 1
        unscored = [row for row in rows if math.isnan(row.score)]
        scored = [row for row in rows if not math.isnan(row.score)]
        return sorted(scored, key=lambda row: (sign * row.score, row.number)) + unscored

    def _new(self) -> Assignment:
        trial = self.study.ask()
        given = trial.user_attrs.get(CONFIG)  # of a trial that somebody wants to be tried
        if given is None:
            config = self._space(trial)
            # Written before the trial is handed out: from here on it can be resumed.
            trial.set_user_attr(CONFIG, config.to_dict())
        else:
            config = TrialConfig.from_dict(given)
            if self._frozen(trial.number).system_attrs.get("fixed_params"):
                self._space(trial)  # for the sampler to know what it was
        return self._begin(trial, config)

    def _again(self, number: int) -> Assignment:
        frozen = self._frozen(number)
        trial = optuna.Trial(self.study, frozen._trial_id)
        return self._begin(trial, TrialConfig.from_dict(frozen.user_attrs[CONFIG]))

    def _begin(self, trial: optuna.Trial, config: TrialConfig) -> Assignment:
        number = trial.number
        self._running[number] = trial
        self._started[number] = time.monotonic()
        return Assignment(number, config, _epochs(self._frozen(number)))

    def _write(self, trial: optuna.Trial, epoch: int, values: list[float]) -> None:
        if len(values) > 1:
            tell_vector(trial, epoch, values)
        elif not math.isnan(values[0]):
            trial.report(values[0], epoch)

    def _stops(self, trial: optuna.Trial) -> bool:
        if len(self._objectives) > 1:  # as Optuna's should_prune does, which takes one objective
            return self.study.pruner.prune(self.study, self._frozen(trial.number))
        return trial.should_prune()

    def _halt_at_rung(self, number: int) -> bool:
        if isinstance(self.study.pruner, Promoting):
            self._paused.add(number)
            self._running[number].set_user_attr(PAUSED, True)
        else:
            self._pruned.add(number)
        return True

    def _promoted(self, number: int) -> Assignment:
        self._paused.discard(number)
        assignment = self._again(number)
        self._running[number].set_user_attr(PAUSED, False)
        return assignment

    def _tell(self, trial: optuna.Trial, state: TrialState) -> TrialState:
        self.study.tell(trial, state=state)
        return state

    def _row(self, trial: FrozenTrial, searched: list[str]) -> Row:
        attributes = trial.user_attrs
        stored = attributes.get(METRICS, {})
        params = trial.params
        if not params and CONFIG in attributes:  # not of this space, but it has the fields
            values = values_of(TrialConfig.from_dict(attributes[CONFIG]))
            params = {name: values[name] for name in searched if name in values}
        return Row(
            number=trial.number,
            state=self._state(trial),
            epochs=_epochs(trial),
            score=score_of(stored, self.metric),
            metrics=stored,
            params=params,
            reason=attributes.get(REASON, _NEVER_BEGUN if trial.state == TrialState.FAIL else ""),
            seconds=attributes.get(SECONDS, math.nan),
        )

    def _state(self, trial: FrozenTrial) -> str:
        if trial.state != TrialState.RUNNING or trial.number in self._running:
            return trial.state.name
        return "PAUSED" if trial.number in self._paused else "HALTED"

    def _frozen(self, number: int) -> FrozenTrial:
        storage = self.study._storage
        found = storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)
        return storage.get_trial(found)


def _searched(trials: Sequence[FrozenTrial]) -> list[str]:
    return list(dict.fromkeys(name for trial in trials for name in trial.params))


def _epochs(trial: FrozenTrial) -> int:
    """How many epochs of a trial reached the study; a last one that was no number is not seen."""
    return max([*trial.intermediate_values, *vectors_of(trial)], default=0)
