"""What a sweep says on the terminal while it runs."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raymlc.search.study import Assignment, Row
from raymlc.watch.progress import Pace, brief
from raymlc.watch.standing import Standing

_REDRAWN = 2.0  # times a second
_BAR = 60  # columns of the bar, where there are as many
_NAMED = 6  # running trials that the view has a line for
_FEW = 50  # trials of which each start and end has a line
_LOOKS = 1.0  # seconds between looks whether it is time for such a line, where no epoch ends


class Lines:
    """Lines about what happens in a sweep, and below them on a terminal a view of how it stands.

    Elsewhere, and on a terminal that cannot move its cursor, lines say how it stands, the first
    after 10 s, the others ever less often, also while no epoch ends. Of more than 50 trials only
    those that fail, lose their process or are the best so far have lines of their own.
    """

    def __init__(self, console: Console, standing: Standing) -> None:
        self.console = console
        self._standing = standing
        self._noun = standing.noun
        self._lock = threading.Lock()  # another thread tells; under it nothing may be printed
        self._few = standing.trials <= _FEW
        self._best = math.nan if standing.best is None else standing.best.score
        self._pace = Pace()
        self._drawn = console.is_interactive and not console.quiet
        self._view = Live(
            console=console,
            get_renderable=self._draw,
            refresh_per_second=_REDRAWN,
            transient=True,
        )
        self._closed = threading.Event()
        if self._drawn:
            self._view.start()
        elif not console.quiet:
            threading.Thread(target=self._tell_on, daemon=True).start()

    def start(self, trial: Assignment, params: Mapping[str, Any]) -> None:
        """Say that a trial begins, or goes on."""
        with self._lock:
            self._standing.start(trial)
        if self._few:
            values = ", ".join(f"{name}={brief(value)}" for name, value in params.items())
            how = f"goes on after {_epochs(trial.epochs)}" if trial.epochs else "starts"
            self._say(
                f"{self._noun} {trial.number} {how}, up to {_epochs(trial.config.epochs)}:"
                f" {values or 'as given'}"
            )

    def epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        """Take note of an epoch; where no view is drawn, say now and then how the sweep stands."""
        with self._lock:
            self._standing.epoch(number, metrics)
        if not self._drawn:
            self._tell()

    def lost(self, number: int) -> None:
        """Say that a trial lost its process."""
        self._say(f"{self._noun} {number} lost its process, and goes on from its last epoch")

    def end(self, row: Row) -> None:
        """Say how a trial ended, and which is the best so far."""
        stands = self._standing
        with self._lock:
            stands.end(row)
        if row.state == "FAIL":
            self._say(f"{self._noun} {row.number} failed after {_epochs(row.epochs)}: {row.reason}")
            return
        best = stands.best
        if best is None:
            return
        news = best.number == row.number and best.score != self._best
        self._best = best.score
        if self._few or news:
            per_head = ", ".join(
                f"{head} {brief(row.metrics.get(f'val/accuracy/{head}', math.nan))}"
                for head in stands.majority
            )
            self._say(
                f"{self._noun} {row.number} {row.state.lower()} after {_epochs(row.epochs)}:"
                f" {stands.metric} {row.score:.4f} ({per_head}); best {best.score:.4f} of"
                f" {self._noun} {best.number}; {stands.ended} of {stands.trials} {self._noun}s,"
                f" {stands.seconds:.0f} s"
            )

    def close(self) -> None:
        """Take the view away; nothing more is said by itself."""
        self._closed.set()
        if self._drawn:
            self._view.stop()

    def _tell_on(self) -> None:
        while not self._closed.wait(_LOOKS):
            self._tell()

    def _tell(self) -> None:
        """Say how the sweep stands, if the last such line is long enough ago."""
        stands = self._standing
        with self._lock:
            if not stands.running or not self._pace.due():
                return
            parts = [stands.way_line(), stands.counts_line(), stands.speed_line()]
            line = "; ".join(filter(None, [*parts, f"best {stands.best_line()}"]))
        self._say(line)

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _draw(self) -> RenderableType:
        stands = self._standing
        with self._lock:
            way = stands.way()
            facts = {
                f"{self._noun}s": stands.counts_line(),
                way.unit: stands.way_line(),
                "best": stands.best_line(),
                "speed": stands.speed_line(),
            }
            trials = list(stands.trial_lines(_NAMED))
        label = max(map(len, facts)) + 1
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(style="bold", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, fact in facts.items():
            if name == way.unit:
                width = max(1, min(_BAR, self.console.width - label))
                bar = ProgressBar(total=max(way.total, 1e-9), completed=way.done, width=width)
                grid.add_row(Text(name), bar)
                grid.add_row(Text(), Text(fact))
            elif fact:
                grid.add_row(Text(name), Text(fact))
        lines = [Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in trials]
        return Group(Text(), grid, *lines)


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"
