"""The pruner: asynchronous successive halving at fractions of each trial's own length."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial

from raymlc.search.rungs import chance, fractions, length, losses, rung_epoch, spared, trust


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

    def __init__(self, longest: int, first: float = 1 / 27, factor: float = 3) -> None:
        self._longest = longest
        self._factor = factor
        self._fractions = fractions(first, factor)[:-1]

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether `trial` ends with the epoch that it reported last."""
        steps = sorted(trial.intermediate_values)
        if not steps:
            return False
        before = steps[-2] if len(steps) > 1 else 0
        epochs = length(trial, self._longest)
        passed = [
            fraction
            for fraction in self._fractions
            if before < rung_epoch(fraction, epochs) <= steps[-1]
        ]
        if not passed:
            return False
        trials = study.get_trials(deepcopy=False)
        at = self._fractions.index(passed[-1])
        rungs = losses(trials, self._fractions, self._longest, study.direction)
        if passed[-1] != self._fractions[-1] and chance(trial.number) < spared(trust(rungs)):
            return False
        there = rungs[at]
        mine = rungs[at][trial.number]
        others = [loss for number, loss in there.items() if number != trial.number]
        if not others:
            return False
        # Of n trials before, it must be among the best n/factor; a quantile of infinities is NaN.
        ahead = sum(other < mine for other in others)
        return ahead > (len(others) - 1) / self._factor
