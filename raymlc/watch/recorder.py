"""Takes every event of a sweep to the study, the event files and the terminal, in this order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from raymlc.search.study import Assignment, StudyBook
from raymlc.training.checkpoint import discard_state, read_score
from raymlc.training.run import BEST, LAST
from raymlc.watch.progress import Lines
from raymlc.watch.tensorboard import EventFiles


def trial_folder(folder: Path, number: int) -> Path:
    """Where a sweep's trial keeps its checkpoints, and its events."""
    return folder / "trials" / f"{number:04}"


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
        self._events = EventFiles(folder)
        done = sum(row.state != "RUNNING" for row in book.rows())
        self._lines = Lines(console, book.metric, trials, done)

    def next(self) -> Assignment | None:
        """The next trial to run; None when there is none left."""
        assignment = self.book.next()
        if assignment:
            params = self.book.params(assignment.number)
            self._lines.start(assignment.number, params, assignment.config)
        return assignment

    def epoch(self, number: int, metrics: dict[str, float]) -> bool:
        """Record an epoch; whether the trial is to be stopped here."""
        stop = self.book.report(number, metrics)
        self._events.epoch(number, metrics)
        self._lines.epoch(number, metrics)
        return stop

    def end(self, number: int, failure: str = "") -> None:
        """Record that a trial has ended, by itself, by `epoch`'s word, or by a failure."""
        folder = trial_folder(self._folder, number)
        stored = read_score(folder / BEST)
        self.book.end(number, stored, failure)
        discard_state(folder / LAST)
        rows = self.book.rows()
        row = next(row for row in rows if row.number == number)
        self._events.end(number, row.params, stored)
        self._lines.end(row, self._heads, rows[0])

    def close(self) -> None:
        """Close the event files and take the bar away; the study needs no closing."""
        self._events.close()
        self._lines.close()
