"""Tune's searcher and scheduler over one recorder: the study decides what runs, and how long."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raymlc.cluster.packing import LACKS_MEMORY, MEMORY, Packing, SharedEpoch
from raymlc.cluster.train import FAILURE, METRICS, NODE, UNWRITABLE
from raymlc.cluster.worker import loss_line
from raymlc.errors import UserError
from raymlc.trial import TrialConfig
from raymlc.watch.recorder import Recorder


class _Unsaved:
    """Tune pickles its searcher and scheduler, and neither is needed: the study is on disk."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


@dataclass
class _Run:
    """A trial of the study that Tune runs, or will when there is room.

    share: how many trials its GPU is cut up for. epochs: that it has told. part: images that it
    takes at a time.
    """

    number: int
    config: TrialConfig
    epochs: int
    part: float
    share: int = 1


class StudySearcher(_Unsaved, Searcher):  # type: ignore[misc]
    """Asks the study for trials, and tells it how they ended.

    packing: how many trials share a GPU, and so how many are handed out at a time, so that none is
    proposed before it can run. Once it changes, the trials that run move: each stops after its
    epoch and goes on from there where its GPU is cut up anew, of which the study hears nothing.
    broken: why the sweep cannot go on, once that is so. Tune hides the errors of some of its hooks.
    """

    def __init__(self, recorder: Recorder, packing: Packing) -> None:
        super().__init__()
        self._recorder = recorder
        self._packing = packing
        packing.begin()
        self._runs: dict[str, _Run] = {}  # by Tune's id
        self._moving: set[str] = set()  # of them, those that the scheduler ended for that
        self._moved: list[_Run] = []
        self._dry = False  # when last asked, the study had no trial
        self.stopped: set[str] = set()  # of those that run, those that the scheduler ended
        self.told: dict[str, str] = {}  # what Ray said of those whose process it lost
        self.broken: UserError | None = None

    def number_of(self, trial_id: str) -> int:
        """The number in the study of a trial that runs, by Tune's id."""
        return self._runs[trial_id].number

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if self.broken:
            raise self.broken
        if len(self._runs) >= self._packing.concurrency:
            return None
        run = self._moved.pop(0) if self._moved else self._next()
        if run is None:
            # A trial that waits at a rung may be promoted by what the running ones report, and any
            # that runs may move.
            moves = self._packing.changes and self._runs
            return str(Searcher.FINISHED) if self._recorder.finished and not moves else None
        run.share = self._packing.number
        self._runs[trial_id] = run
        return {"number": run.number, "config": run.config.to_dict(), "share": run.share}

    def _next(self) -> _Run | None:
        assignment = self._recorder.next()
        self._dry = assignment is None
        if assignment is None:
            return None
        config = assignment.config
        part = config.micro_batch_size or config.batch_size
        return _Run(assignment.number, config, assignment.epochs, part)

    def moves(self, trial_id: str) -> bool:
        """Whether a trial shall stop where it is, to go on where its GPU is cut up anew."""
        share, number = self._runs[trial_id].share, self._packing.number
        # Where no trial will come, room for more would stay empty.
        if share == number or (number > share and self._dry and not self._moved):
            return False
        self._moving.add(trial_id)
        return True

    def learn(self, trial_id: str, result: dict[str, Any], metrics: dict[str, float]) -> None:
        """Tell the packing what an epoch took, unless it was told before the trial moved."""
        if not self._packing.changes:
            return
        run, epoch = self._runs[trial_id], int(metrics["epoch"])
        part = metrics.get("micro_batch_size", run.part)
        fell, run.part = part < run.part, min(part, run.part)
        if epoch <= run.epochs:
            return
        run.epochs = epoch
        if fell:
            self._packing.lose(run.share)
        now, images = time.monotonic(), metrics["images"] / epoch
        self._packing.epoch(
            SharedEpoch(
                run.share,
                f"{result.get(NODE)} {result.get('pid')}",
                now - result.get("time_this_iter_s", 0.0),
                now,
                images,
                images / metrics["images_per_second"],
                result.get(MEMORY),
            ),
            len(self._runs),
        )

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        run = self._runs[trial_id]
        try:
            if error or result is None:
                told = self.told.get(trial_id, "")
                line = loss_line(self._recorder.folder_of(run.number), told)
                self._recorder.end(run.number, line)
                return
            lacked = result.get(LACKS_MEMORY) and self._packing.lose(run.share)
            if lacked or trial_id in self._moving:
                self._moved.append(run)
                return
            metrics = epoch_metrics(result)
            if metrics and trial_id not in self.stopped:
                # Tune shows the result by which a trial ends itself to no scheduler, but here.
                self._recorder.epoch(run.number, metrics, result.get(NODE, ""))
                self.learn(trial_id, result, metrics)
            self._recorder.end(run.number, result.get(FAILURE, ""))
        except UserError as failure:
            self.broken = failure  # raised here, Tune would run the trial again
        finally:
            del self._runs[trial_id]

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
        number, metrics = self._searcher.number_of(trial.trial_id), epoch_metrics(result)
        try:
            if UNWRITABLE in result:
                raise UserError(result[UNWRITABLE])
            stop = self._recorder.epoch(number, metrics, result.get(NODE, ""))
        except UserError as error:
            self._searcher.broken = error
            raise
        self._searcher.learn(trial.trial_id, result, metrics)
        if stop:
            self._searcher.stopped.add(trial.trial_id)
        else:
            stop = self._searcher.moves(trial.trial_id)
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        with suppress(OSError):
            self._searcher.told[trial.trial_id] = Path(trial.error_file).read_text("utf-8")
        if trial.should_recover():
            self._recorder.lost(self._searcher.number_of(trial.trial_id))


def epoch_metrics(result: dict[str, Any]) -> dict[str, float]:
    """The metrics of an epoch, without what Tune adds; none of a result that holds a failure."""
    return dict(result.get(METRICS, ()))
