"""The Optuna study of a sweep: what is asked, every epoch's value, how each trial ended.

The study is the truth. Whatever else is lost, a sweep goes on from it, and a trial that no process
runs any more is handed out again under its own number.
"""

from __future__ import annotations

import importlib.util
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from raymlc.errors import UserError
from raymlc.metric import higher_is_better
from raymlc.search.pruner import RungPruner
from raymlc.search.rungs import CONFIG, REASON
from raymlc.search.sampler import RungSampler
from raymlc.search.space import Space
from raymlc.trial import TrialConfig

# "rungs" are raymlc's own, made for each other; the others are Optuna's, by its names. "qmc", "gp"
# and "cmaes" learn from finished trials only, or from none.
SamplerName = Literal["rungs", "tpe", "random", "qmc", "gp", "cmaes", "nsga2"]
PrunerName = Literal["rungs", "asha", "hyperband", "median", "wilcoxon", "none"]

METRICS, SECONDS = "metrics", "seconds"  # a trial's attributes

# Packages that Optuna leaves to its user to install.
_NEEDS = {"qmc": "scipy", "gp": "scipy", "cmaes": "cmaes"}


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


def open_study(
    journal: Path, metric: str, sampler: SamplerName, pruner: PrunerName, seed: int, epochs: int
) -> optuna.Study:
    """Open the study in a journal file, or begin it.

    metric: what trials are ranked by, as `metric_names` has it. epochs: of the longest trial, from
    which Optuna's pruners have their rungs.
    Raises UserError if the file cannot be written, or holds a study of another metric, or a package
    is missing that the sampler needs.
    """
    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        _mend(journal)
        storage = JournalStorage(JournalFileBackend(str(journal)))
        study = optuna.create_study(
            study_name="raymlc",
            storage=storage,
            direction="maximize" if higher_is_better(metric) else "minimize",
            load_if_exists=True,
        )
    except OSError as error:
        raise UserError(f"the study must be writable, but {journal} is not: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the study {journal} cannot be read: {error!r}") from error
    ranked_by = study.user_attrs.get("metric", metric)
    if ranked_by != metric:
        raise UserError(
            f"a sweep keeps its metric, but {journal} ranks by {ranked_by} and --metric is {metric}"
        )
    study.set_user_attr("metric", metric)
    # A sampler that starts anew with the same seed would draw the same trials once more.
    study.sampler = make_sampler(sampler, seed + len(study.trials), epochs)
    study.pruner = make_pruner(pruner, epochs)
    return study


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


def _mend(journal: Path) -> None:
    """Take off what a killed process left: half a line at the journal's end, and its lock."""
    if not journal.exists():
        return
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    with journal.open("rb+") as file:
        text = file.read()
        if text and not text.endswith(b"\n"):
            file.truncate(text.rfind(b"\n") + 1)


def make_sampler(name: SamplerName, seed: int, epochs: int) -> optuna.samplers.BaseSampler:
    """A sampler by its name. epochs: of the longest trial.

    Raises UserError if a package is missing that Optuna's sampler needs.
    """
    package = _NEEDS.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        raise UserError(
            f"--sampler {name} needs {package}, which is not installed: pip install {package}"
        )
    with warnings.catch_warnings():
        # Some are marked experimental; the studies that they read are not their own format.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match name:
            case "rungs":
                return RungSampler(seed, epochs)
            case "tpe":
                return optuna.samplers.TPESampler(
                    seed=seed, multivariate=True, group=True, constant_liar=True
                )
            case "random":
                return optuna.samplers.RandomSampler(seed=seed)
            case "qmc":
                return optuna.samplers.QMCSampler(seed=seed, scramble=True)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed)
            case "cmaes":
                return optuna.samplers.CmaEsSampler(seed=seed, consider_pruned_trials=True)
            case "nsga2":
                return optuna.samplers.NSGAIISampler(seed=seed)


def make_pruner(name: PrunerName, epochs: int) -> optuna.pruners.BasePruner:
    """A pruner by its name. epochs: of the longest trial.

    Optuna's halving has its first rung after a fifth of them, and further ones at each doubling.
    """
    match name:
        case "rungs":
            return RungPruner(epochs)
        case "asha":
            return optuna.pruners.SuccessiveHalvingPruner(
                min_resource=max(1, round(epochs / 5)), reduction_factor=2
            )
        case "hyperband":
            return optuna.pruners.HyperbandPruner(max_resource=epochs)
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=4)
        case "wilcoxon":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return optuna.pruners.WilcoxonPruner()
        case "none":
            return optuna.pruners.NopPruner()
