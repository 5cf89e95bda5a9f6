"""What a sweep says on the terminal while it runs, and the table it ends with."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from raymlc.metric import score_of
from raymlc.search.study import Assignment, Row

ENDED = ("COMPLETE", "PRUNED", "FAIL")  # states of trials that will not go on
_QUIET_SECONDS = 10.0  # between lines about epochs where no bar can be drawn


class Lines:
    """A line when a trial begins and ends; between them a bar, or now and then a line.

    trials, done: how many there shall be, and how many of them have ended already. noun: what a
    trial is called.
    """

    def __init__(
        self, console: Console, metric: str, trials: int, done: int, noun: str = "trial"
    ) -> None:
        self.console = console
        self._metric = metric
        self._trials = trials
        self._done = done
        self._noun = noun
        self._epochs: dict[int, float] = {}
        self._said = 0.0
        self._began = time.monotonic()
        self._bar = Progress(
            TextColumn(f"{noun}s"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=trials, completed=done)
        self._bar.start()

    def start(self, trial: Assignment, params: Mapping[str, Any]) -> None:
        """Say that a trial begins, or goes on."""
        values = ", ".join(f"{name}={brief(value)}" for name, value in params.items()) or "as given"
        how = f"goes on after {_epochs(trial.epochs)}" if trial.epochs else "starts"
        self._say(
            f"{self._noun} {trial.number} {how}, up to {_epochs(trial.config.epochs)}: {values}"
        )

    def epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        """Say how far a trial is, on the bar or at a calm pace."""
        self._epochs[number] = metrics["epoch"]
        text = (
            f"{self._noun} {number} epoch {metrics['epoch']:.0f}: {self._metric}"
            f" {score_of(metrics, self._metric):.3f}, {metrics['images_per_second']:,.0f} images/s"
        )
        self._bar.update(self._task, description=text)
        if self._bar.disable and time.monotonic() - self._said > _QUIET_SECONDS:
            self._say(text)

    def lost(self, number: int) -> None:
        """Say that a trial lost its process."""
        self._say(f"{self._noun} {number} lost its process, and goes on from its last epoch")

    def end(self, row: Row, heads: Sequence[str], best: Row) -> None:
        """Say how a trial ended, and which is the best so far."""
        self._done += row.state in ENDED
        self._bar.update(self._task, completed=self._done)
        if row.state == "FAIL":
            self._say(f"{self._noun} {row.number} failed after {_epochs(row.epochs)}: {row.reason}")
            return
        per_head = ", ".join(
            f"{head} {brief(row.metrics.get(f'val/accuracy/{head}', math.nan))}" for head in heads
        )
        self._say(
            f"{self._noun} {row.number} {row.state.lower()} after {_epochs(row.epochs)}:"
            f" {self._metric} {row.score:.4f} ({per_head}); best {best.score:.4f} of"
            f" {self._noun} {best.number}; {self._done} of {self._trials} {self._noun}s,"
            f" {time.monotonic() - self._began:.0f} s"
        )

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()

    def _say(self, text: str) -> None:
        self._said = time.monotonic()
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)


def track(console: Console, done: Iterable[int], text: str, total: int) -> Iterable[int]:
    """A bar over `done` while it is drawn from; without a terminal one line."""
    if not console.is_terminal:
        console.print(text, highlight=False, soft_wrap=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        yield from bar.track(done, total=total, description=text)


def table_of_trials(
    rows: Sequence[Row], heads: Sequence[str], majority: Mapping[str, float], title: str
) -> Table:
    """The trials, best first, then what always saying training's most common answer gets."""
    params = list(dict.fromkeys(name for row in rows for name in row.params))
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("trial", "state", "epochs", "score", *heads, *params):
        table.add_column(name, justify="left" if name == "state" else "right", overflow="fold")
    for row in rows:
        accuracies = [row.metrics.get(f"val/accuracy/{head}", math.nan) for head in heads]
        table.add_row(
            str(row.number),
            row.state.lower(),
            str(row.epochs),
            brief(row.score),
            *map(brief, accuracies),
            *(brief(row.params[name]) if name in row.params else "" for name in params),
        )
    table.add_section()
    values = [majority[head] for head in heads]
    table.add_row("", "majority", "", brief(_mean(values)), *map(brief, values))
    return table


def write_summary(path: Path, rows: Sequence[Row]) -> None:
    """The trials as CSV, best first, with every metric of their checkpoints."""
    params = list(dict.fromkeys(name for row in rows for name in row.params))
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(
            ["trial", "state", "epochs", "score", "seconds", *params, *metrics, "reason"]
        )
        for row in rows:
            lines.writerow(
                [
                    row.number,
                    row.state,
                    row.epochs,
                    row.score,
                    row.seconds,
                    *(row.params.get(name, "") for name in params),
                    *(row.metrics.get(name, "") for name in metrics),
                    row.reason,
                ]
            )


def brief(value: Any) -> str:
    """A number in four digits, anything else as it is; nothing for NaN."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else f"{value:.4g}"


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
