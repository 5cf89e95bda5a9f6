"""Takes every event of a sweep to the study, its log, event files and terminal, in this order."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from optuna.trial import TrialState
from rich.console import Console

from raymlc.errors import UserError
from raymlc.search.budget import Budget
from raymlc.search.study import Assignment, Row
from raymlc.training.checkpoint import discard_state, load_history, read_score
from raymlc.training.run import BEST, LAST
from raymlc.watch.log import EVENTS, EventLog
from raymlc.watch.standing import ENDED, Standing
from raymlc.watch.tensorboard import EventFile
from raymlc.watch.view import Lines


def trial_folder(folder: Path, number: int) -> Path:
    """Where a sweep's trial keeps its checkpoints, and its events."""
    return folder / "trials" / f"{number:04}"


@contextmanager
def terminable() -> Iterator[None]:
    """Takes a SIGTERM for a Ctrl-C: it is how a machine says that it is about to be taken away."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def unbroken() -> Iterator[None]:
    """Lets a Ctrl-C wait until the block is done: half a write would leave a study locked."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    handlers = {number: handler for number, handler in before.items() if callable(handler)}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}
    waiting: list[tuple[int, FrameType | None]] = []
    for number in handlers:
        signal.signal(number, lambda caught, frame: waiting.append((caught, frame)))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if waiting:
        caught, frame = waiting[0]
        handlers[signal.Signals(caught)](caught, frame)


class Book(Protocol):
    """Trials to be run, and what became of them: those of a search, or of its finals."""

    @property
    def metric(self) -> str:
        """What the trials are ranked by."""

    @property
    def finished(self) -> bool:
        """Whether `next` gives nothing more, whatever the running trials report."""

    def next(self) -> Assignment | None:
        """The next trial to run; None if there is none now."""

    def params(self, number: int) -> dict[str, Any]:
        """What sets a trial apart from others."""

    def report(self, number: int, metrics: dict[str, float], node: str = "") -> bool:
        """Write down an epoch; whether the trial ends here."""

    def end(
        self, number: int, stored: dict[str, float], failure: str = "", checkpoint: str = ""
    ) -> TrialState:
        """Close a trial; RUNNING if it may go on later."""

    def close(self) -> list[int]:
        """At the very end: the trials that waited and will not go on."""

    def row(self, number: int) -> Row:
        """One trial that was handed out."""

    def rows(self) -> list[Row]:
        """All trials, the best first."""


class Recorder:
    """One sweep as whoever runs its trials sees it: the next trial, an epoch, an end.

    folder: of the sweep. heads: whose accuracies are said aloud. noun: what a trial is called.
    majority: what the most common answer gets in each head. budget: that the book has.
    """

    def __init__(
        self,
        book: Book,
        folder: Path,
        heads: Sequence[str],
        trials: int,
        console: Console,
        noun: str = "trial",
        majority: Mapping[str, float] | None = None,
        budget: Budget = Budget(),
    ) -> None:
        self.book = book
        self._folder = folder
        self._events: dict[int, EventFile] = {}  # of the trials that run
        self._spent = False
        rows = book.rows()
        ended = [row for row in rows if row.state in ENDED]
        self._log = EventLog(folder / EVENTS)
        begins = "sweep_resumed" if self._log.begun else "sweep_begun"
        self._log.write(
            begins, None, {"metric": book.metric, "trials": trials, "ended": len(ended)}
        )
        for row in rows:  # what a process was killed before it could say
            self._log_epochs_of(row)
            if row.state in ENDED and row.number not in self._log.ended:
                self._log_end(row)
        least = {head: (majority or {}).get(head, math.nan) for head in heads}
        self._lines = Lines(console, Standing(book.metric, trials, least, rows, budget, noun))

    def folder_of(self, number: int) -> Path:
        """Where a trial keeps its checkpoints, and its events."""
        return trial_folder(self._folder, number)

    @unbroken()
    def next(self) -> Assignment | None:
        """The next trial to run; None when there is none left."""
        assignment = self.book.next()
        if assignment:
            params = self.book.params(assignment.number)
            how = "trial_resumed" if assignment.epochs else "trial_started"
            values = {"params": params, "after": assignment.epochs, "of": assignment.config.epochs}
            self._log.write(how, assignment.number, values)
            self._lines.start(assignment, params)
        return assignment

    @property
    def finished(self) -> bool:
        """Whether `next` gives nothing more, whatever the running trials report."""
        return self.book.finished

    @unbroken()
    def epoch(self, number: int, metrics: dict[str, float], node: str = "") -> bool:
        """Record an epoch; whether the trial is to be stopped here. node: the host it ran on."""
        stop = self.book.report(number, metrics, node)
        epoch = int(metrics["epoch"])
        if epoch > self._log.epochs.get(number, 0):
            self._log.write("epoch", number, {"epoch": epoch, "node": node, "metrics": metrics})
        self._events_of(number).epoch(metrics)
        self._lines.epoch(number, metrics)
        return stop

    @unbroken()
    def lost(self, number: int) -> None:
        """Take note that a trial lost its process, and goes on from its last epoch in another."""
        self._log.write("trial_lost", number, {"after": self._log.epochs.get(number, 0)})
        self._lines.lost(number)

    @unbroken()
    def end(self, number: int, failure: str = "") -> None:
        """Record that a trial has ended, by itself, by `epoch`'s word, or by a failure."""
        folder = trial_folder(self._folder, number)
        stored = read_score(folder / BEST)
        state = self.book.end(number, stored, failure, str(folder / BEST))
        row = self.book.row(number)
        if state == TrialState.RUNNING:  # it may go on from its last epoch
            self._log.write("trial_paused", number, {"state": row.state, "after": row.epochs})
            if row.state == "HALTED" and not self._spent:
                self._spent = True
                rows = self.book.rows()
                spent = sum(one.epochs for one in rows)
                self._log.write("budget_spent", None, {"trials": len(rows), "epochs": spent})
            self._events_of(number).close()
        else:
            self._log_end(row)
            discard_state(folder / LAST)
            self._events_of(number).end(row.params, stored)
        del self._events[number]
        self._lines.end(row)

    def close(self) -> None:
        """Close the event files and take the view away; trials that waited have ended."""
        for events in self._events.values():
            events.close()
        ended = self.book.close()
        rows = self.book.rows()
        for row in rows:
            if row.number in ended:
                self._log_end(row)
                folder = trial_folder(self._folder, row.number)
                discard_state(folder / LAST)
                EventFile(folder).end(row.params, row.metrics)
        with suppress(UserError):  # of a full disk, which is what ended the sweep
            self._log.write("sweep_ended", None, {"ended": sum(row.state in ENDED for row in rows)})
        self._lines.close()

    def _log_epochs_of(self, row: Row) -> None:
        """Write down the epochs that are in the study and not yet in the log."""
        told = self._log.epochs.get(row.number, 0)
        if row.epochs > told:
            for metrics in load_history(self.folder_of(row.number) / LAST):
                if told < metrics["epoch"] <= row.epochs:
                    values = {"epoch": int(metrics["epoch"]), "node": "", "metrics": metrics}
                    self._log.write("epoch", row.number, values)

    def _log_end(self, row: Row) -> None:
        values = {
            "state": row.state,
            "epochs": row.epochs,
            "score": row.score,
            "seconds": row.seconds,
            "reason": row.reason,
        }
        self._log.write("trial_ended", row.number, values)

    def _events_of(self, number: int) -> EventFile:
        if number not in self._events:
            self._events[number] = EventFile(trial_folder(self._folder, number))
        return self._events[number]
