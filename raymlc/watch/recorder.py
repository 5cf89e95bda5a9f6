"""Takes every event of a sweep to the study, the event files and the terminal, in this order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from raymlc.search.study import Assignment, StudyBook
from raymlc.training.checkpoint import discard_state, read_score
from raymlc.training.run import BEST, LAST
from raymlc.watch.progress import Lines
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


class Recorder:
    """One sweep as whoever runs its trials sees it: the next trial, an epoch, an end.

    folder: of the sweep. heads: whose accuracies are said aloud.
    """

    def __init__(
        self, book: StudyBook, folder: Path, heads: Sequence[str], trials: int, console: Console
    ) -> None:
        self.book = book
        self._folder = folder
        self._heads = heads
        self._events: dict[int, EventFile] = {}  # of the trials that run
        done = sum(row.state != "RUNNING" for row in book.rows())
        self._lines = Lines(console, book.metric, trials, done)

    @unbroken()
    def next(self) -> Assignment | None:
        """The next trial to run; None when there is none left."""
        assignment = self.book.next()
        if assignment:
            params = self.book.params(assignment.number)
            self._lines.start(assignment.number, params, assignment.config)
        return assignment

    @unbroken()
    def epoch(self, number: int, metrics: dict[str, float]) -> bool:
        """Record an epoch; whether the trial is to be stopped here."""
        stop = self.book.report(number, metrics)
        self._events_of(number).epoch(metrics)
        self._lines.epoch(number, metrics)
        return stop

    @unbroken()
    def end(self, number: int, failure: str = "") -> None:
        """Record that a trial has ended, by itself, by `epoch`'s word, or by a failure."""
        folder = trial_folder(self._folder, number)
        stored = read_score(folder / BEST)
        self.book.end(number, stored, failure)
        discard_state(folder / LAST)
        rows = self.book.rows()
        row = next(row for row in rows if row.number == number)
        self._events_of(number).end(row.params, stored)
        del self._events[number]
        self._lines.end(row, self._heads, rows[0])

    def close(self) -> None:
        """Close the event files and take the bar away; the study needs no closing."""
        for events in self._events.values():
            events.close()
        self._lines.close()

    def _events_of(self, number: int) -> EventFile:
        if number not in self._events:
            self._events[number] = EventFile(trial_folder(self._folder, number))
        return self._events[number]
