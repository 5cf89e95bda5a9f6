"""Pruners: successive halving at shares of each trial's own length, final or with a return."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from raymlc.search.rungs import (
    ASIDE,
    FACTOR,
    FIRST,
    chance,
    fractions,
    length,
    losses,
    rung_epoch,
    spared,
    trust,
)


class Promoting(optuna.pruners.BasePruner):
    """A pruner whose trials are halted, not ended: each may be continued from its last epoch.

    A halted trial stays RUNNING in its study, and so stands at its rungs as all others do.
    """

    @abstractmethod
    def promote(self, study: optuna.Study, paused: Collection[int], all_asked: bool) -> int | None:
        """The number of a halted trial that goes on by now; None if none does.

        paused: the trials that are halted; who is promoted is no longer one of them. all_asked: no
        trial will be begun any more.
        """


class RungPruner(optuna.pruners.BasePruner):
    """Stops a trial at a rung unless it is among the best share of those that were there before.

    arXiv:1810.05934, its stopping form; but a rung is a fraction of a trial's own run, because a
    schedule's end, where values rise, comes after as many epochs as the trial has. Failed trials
    count as the worst of the first rung that they did not reach.

    Where early values mislead, halving throws away the best. So a share of the trials is spared all
    rungs but the last; they show how far the first rung foretells it, and with that the share falls
    or rises (the idea of Hyper-Tune, arXiv:2201.06834, in which brackets are so weighted).

    longest: epochs of trials that do not say how many they have. first: the lowest rung, as a
    fraction of a run. factor: from rung to rung; one of so many goes on.
    """

    def __init__(self, longest: int, first: float = FIRST, factor: float = FACTOR) -> None:
        self._longest = longest
        self._factor = factor
        self._fractions = fractions(first, factor)[:-1]
        self._seen: dict[int, tuple[FrozenTrial, list[float]]] = {}  # its losses, rung by rung

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether `trial` ends with the epoch that it reported last."""
        steps = sorted(trial.intermediate_values)
        if not steps or ASIDE in trial.user_attrs:
            return False
        before = steps[-2] if len(steps) > 1 else 0
        epochs = length(trial, self._longest)
        passed = [
            at
            for at, fraction in enumerate(self._fractions)
            if before < rung_epoch(fraction, epochs) <= steps[-1]
        ]
        if not passed:
            return False
        rungs = self._losses(study)
        there = rungs[passed[-1]]
        if there is not rungs[-1] and chance(trial.number) < spared(trust(rungs)):
            return False
        ahead = sum(loss < there[trial.number] for loss in there.values())
        return ahead >= self._places(len(there))

    def _places(self, there: int) -> float:
        """How many of those that are at a rung go on."""
        # Of n before the one that came, it must be among the best n/factor; the first one goes on.
        return 1 + max(0, there - 2) // self._factor

    def _losses(self, study: optuna.Study) -> list[dict[int, float]]:
        rungs: list[dict[int, float]] = [{} for _ in self._fractions]
        for trial in study.get_trials(deepcopy=False):
            seen, alone = self._seen.get(trial.number, (None, []))
            if seen is not trial:  # a storage never changes a trial, but puts another in its place
                judged = [] if ASIDE in trial.user_attrs else [trial]
                there = losses(judged, self._fractions, self._longest, study.direction)
                alone = [loss for rung in there for loss in rung.values()]
                self._seen[trial.number] = trial, alone
            for rung, loss in zip(rungs, alone, strict=False):  # as far as it came
                rung[trial.number] = loss
        return rungs


class PromotingPruner(RungPruner, Promoting):
    """Halts as `RungPruner` does, and lets go on who is among the best share by now.

    arXiv:1810.05934, Algorithm 2. A promising trial that came early, when better ones happened to
    be there, is not lost; and the first to come need not be good to go on, for none goes on before
    there are `factor` of them.
    """

    def promote(self, study: optuna.Study, paused: Collection[int], all_asked: bool) -> int | None:
        """Of the highest rung that has one, the best halted trial that is in its best share.

        A trial that failed later leaves its place in the share to the next. When all were asked,
        the share is rounded up: of trials as few as a small sweep has at its last rung, one more
        is trained to the end.
        """
        failed = {t.number for t in study.get_trials(deepcopy=False, states=(TrialState.FAIL,))}
        left = set(paused)
        for there in reversed(self._losses(study)):
            here = left & there.keys()
            if here:
                best = min(here, key=lambda number: (there[number], number))
                ahead = sum(there[number] < there[best] for number in there.keys() - failed)
                count = len(there)
                places = math.ceil(count / self._factor) if all_asked else self._places(count)
                if ahead < places:
                    return best
            left -= here
        return None

    def _places(self, there: int) -> float:
        return there // self._factor


class OneEpochPruner(Promoting):
    """Halts every trial after one epoch; when all were seen, the best tenth runs to the end.

    The baseline that many a searcher does not beat: arXiv:2307.15422.
    """

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether `trial` has reported no epoch but one."""
        return len(trial.intermediate_values) == 1

    def promote(self, study: optuna.Study, paused: Collection[int], all_asked: bool) -> int | None:
        """The best halted one of the tenth; None until each trial has had its epoch.

        A trial that fails leaves its place in the tenth to the next.
        """
        trials = [t for t in study.get_trials(deepcopy=False) if ASIDE not in t.user_attrs]
        if not all_asked or any(
            not trial.state.is_finished() and not trial.intermediate_values for trial in trials
        ):
            return None
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        seen = [t for t in trials if t.intermediate_values and t.state != TrialState.FAIL]
        first = {t.number: sign * t.intermediate_values[min(t.intermediate_values)] for t in seen}
        best = sorted(first, key=lambda number: (first[number], number))
        tenth = best[: max(1, round(len(best) / 10))]
        return next((number for number in tenth if number in paused), None)
