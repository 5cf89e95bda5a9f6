"""Takes every event of a sweep to the study, the event files and the terminal, in this order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from optuna.trial import TrialState
from rich.console import Console

from raymlc.search.study import Assignment, Row
from raymlc.training.checkpoint import discard_state, read_score
from raymlc.training.run import BEST, LAST
from raymlc.watch.progress import ENDED, Lines
from raymlc.watch.tensorboard import EventFile


def trial_folder(folder: Path, number: int) -> Path:
    """Where a sweep's trial keeps its checkpoints, and its events."""
    return folder / "trials" / f"{number:04}"


@contextmanager
def unbroken() -> Iterator[None]:
    """Lets a Ctrl-C wait until the block is done: half a write would leave a study locked."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting:
        before(*waiting[0])


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

    def rows(self) -> list[Row]:
        """All trials, the best first."""


class Recorder:
    """One sweep as whoever runs its trials sees it: the next trial, an epoch, an end.

    folder: of the sweep. heads: whose accuracies are said aloud. noun: what a trial is called.
    """

    def __init__(
        self,
        book: Book,
        folder: Path,
        heads: Sequence[str],
        trials: int,
        console: Console,
        noun: str = "trial",
    ) -> None:
        self.book = book
        self._folder = folder
        self._heads = heads
        self._events: dict[int, EventFile] = {}  # of the trials that run
        done = sum(row.state in ENDED for row in book.rows())
        self._lines = Lines(console, book.metric, trials, done, noun)

    @unbroken()
    def next(self) -> Assignment | None:
        """The next trial to run; None when there is none left."""
        assignment = self.book.next()
        if assignment:
            params = self.book.params(assignment.number)
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
        self._events_of(number).epoch(metrics)
        self._lines.epoch(number, metrics)
        return stop

    @unbroken()
    def end(self, number: int, failure: str = "") -> None:
        """Record that a trial has ended, by itself, by `epoch`'s word, or by a failure."""
        folder = trial_folder(self._folder, number)
        stored = read_score(folder / BEST)
        state = self.book.end(number, stored, failure, str(folder / BEST))
        rows = self.book.rows()
        row = next(row for row in rows if row.number == number)
        if state == TrialState.RUNNING:  # it may go on from its last epoch
            self._events_of(number).close()
        else:
            discard_state(folder / LAST)
            self._events_of(number).end(row.params, stored)
        del self._events[number]
        self._lines.end(row, self._heads, rows[0])

    def close(self) -> None:
        """Close the event files and take the bar away; trials that waited have ended."""
        for events in self._events.values():
            events.close()
        ended = self.book.close()
        for row in self.book.rows():
            if row.number in ended:
                folder = trial_folder(self._folder, row.number)
                discard_state(folder / LAST)
                EventFile(folder).end(row.params, row.metrics)
        self._lines.close()

    def _events_of(self, number: int) -> EventFile:
        if number not in self._events:
            self._events[number] = EventFile(trial_folder(self._folder, number))
        return self._events[number]
