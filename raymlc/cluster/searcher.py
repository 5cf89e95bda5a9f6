"""Tune's searcher and scheduler over one recorder: the study decides what runs, and how long."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

from raymlc.cluster.train import FAILURE, METRICS, NODE, UNWRITABLE
from raymlc.cluster.worker import loss_line
from raymlc.errors import UserError
from raymlc.watch.recorder import Recorder


class _Unsaved:
    """Tune pickles its searcher and scheduler, and neither is needed: the study is on disk."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class StudySearcher(_Unsaved, Searcher):  # type: ignore[misc]
    """Asks the study for trials, and tells it how they ended.

    concurrency: trials handed out at a time, so that none is proposed before it can run.
    broken: why the sweep cannot go on, once that is so. Tune hides the errors of some of its hooks.
    """

    def __init__(self, recorder: Recorder, concurrency: int) -> None:
        super().__init__()
        self._recorder = recorder
        self._concurrency = concurrency
        self.numbers: dict[str, int] = {}  # of the trials that run, by Tune's id
        self.stopped: set[str] = set()  # of them, those that the scheduler ended
        self.told: dict[str, str] = {}  # what Ray said of those whose process it lost
        self.broken: UserError | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.broken:
            raise self.broken
        if len(self.numbers) >= self._concurrency:
            return None
        assignment = self._recorder.next()
        if assignment is None:
            # A trial that waits at a rung may be promoted by what the running ones report.
            return str(Searcher.FINISHED) if self._recorder.finished else None
        self.numbers[trial_id] = assignment.number
        return {"number": assignment.number, "config": assignment.config.to_dict()}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        number = self.numbers.pop(trial_id)
        try:
            if error or result is None:
                told = self.told.get(trial_id, "")
                self._recorder.end(number, loss_line(self._recorder.folder_of(number), told))
                return
            metrics = epoch_metrics(result)
            if metrics and trial_id not in self.stopped:
                # Tune shows the result by which a trial ends itself to no scheduler, but here.
                self._recorder.epoch(number, metrics, result.get(NODE, ""))
            self._recorder.end(number, result.get(FAILURE, ""))
        except UserError as failure:
            self.broken = failure  # raised here, Tune would run the trial again

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a sweep goes on from the study."""


class StudyScheduler(_Unsaved, FIFOScheduler):  # type: ignore[misc]
    """Ends a trial when the study's pruner says so."""

    def __init__(self, recorder: Recorder, searcher: StudySearcher) -> None:
        super().__init__()
        self._recorder = recorder
        self._searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        number = self._searcher.numbers[trial.trial_id]
        try:
            if UNWRITABLE in result:
                raise UserError(result[UNWRITABLE])
            stop = self._recorder.epoch(number, epoch_metrics(result), result.get(NODE, ""))
        except UserError as error:
            self._searcher.broken = error
            raise
        if stop:
            self._searcher.stopped.add(trial.trial_id)
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        with suppress(OSError):
            self._searcher.told[trial.trial_id] = Path(trial.error_file).read_text("utf-8")
        if trial.should_recover():
            self._recorder.lost(self._searcher.numbers[trial.trial_id])


def epoch_metrics(result: dict[str, Any]) -> dict[str, float]:
    """The metrics of an epoch, without what Tune adds; none of a result that holds a failure."""
    prefix = f"{METRICS}/"  # Tune hands results on flattened, but not all of them
    return {
        name.removeprefix(prefix): value
        for name, value in flatten_dict(result).items()
        if name.startswith(prefix)
    }
