"""A sweep without training: real learning curves are replayed by a discrete-event simulator.

Workers run trials epoch by epoch, each epoch as long as the curve's table says; a searcher proposes
points, hears every epoch's value, and says go on, stop or pause. Time costs nothing, so decisions
of searchers can be compared over many seeds.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Decision = Literal["go", "stop", "pause"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Hyperparameter:
    """One axis of a table: its range, whether log-scaled, whether whole numbers."""

    name: str
    low: float
    high: float
    log: bool
    whole: bool


@dataclass(frozen=True)
class Curves:
    """Learning curves of N configurations, up to E epochs long.

    unit_ND: the configurations in the unit cube. raw_ND: the same in their own units. loss_NE: to
    be minimised; finite, a diverged run has the worst value. length_N: epochs of a full run.
    alive_N: epochs before a run diverged, its length if it did not. ends_NE: time at which an
    epoch ends, from the start of a run.
    """

    name: str
    axes: Sequence[Hyperparameter]
    unit_ND: Floats
    raw_ND: Floats
    loss_NE: Floats
    length_N: NDArray[np.int64]
    alive_N: NDArray[np.int64]
    ends_NE: Floats

    @property
    def final(self) -> Floats:
        """The loss at the end of each full run."""
        last: Floats = self.loss_NE[np.arange(len(self.length_N)), self.length_N - 1]
        return last

    @property
    def full_run(self) -> float:
        """Mean time of a full run; one that diverges ends there."""
        stops_N = np.minimum(self.alive_N + 1, self.length_N)
        return float(self.ends_NE[np.arange(len(stops_N)), stops_N - 1].mean())

    def regret(self, loss: float) -> float:
        """0 for the table's best final loss, 1 for its median; never above 1."""
        best, median = self.final.min(), np.median(self.final)
        return float(np.clip((loss - best) / max(median - best, 1e-12), 0.0, 1.0))


class Searcher(Protocol):
    """What the simulator needs of a searcher. Trials are known by the number that `ask` gives."""

    def ask(self) -> tuple[int, int] | None:
        """Number and row of the trial that a free worker runs now; None: nothing for it now.

        A number seen before resumes a paused trial where it was.
        """

    def report(self, number: int, epoch: int, loss: float, last: bool) -> Decision:
        """Hear an epoch's value; the answer to the last epoch of a trial is not looked at."""

    def end(self, number: int, diverged: bool) -> None:
        """A trial has ended, by itself or because it was stopped."""


@dataclass
class Trace:
    """Every epoch of a sweep, in order of time: which row, after how many epochs, and its loss."""

    times: list[float]
    rows: list[int]
    epochs: list[int]
    losses: list[float]
    trials: int = 0


def simulate(curves: Curves, searcher: Searcher, workers: int, until: float) -> Trace:
    """Run a sweep on `workers` workers until a simulated time, in the unit of `curves.ends_NE`."""
    trace = Trace([], [], [], [])
    done: dict[int, int] = {}  # epochs of each trial that has begun
    running: list[tuple[float, int, int, int]] = []  # end of the epoch, ticket, trial, its row
    ticket = 0  # orders events of the same time

    def begin_epoch(now: float, number: int, row: int) -> None:
        nonlocal ticket
        epoch = done[number]
        before = curves.ends_NE[row, epoch - 1] if epoch else 0.0
        ticket += 1
        heapq.heappush(running, (now + curves.ends_NE[row, epoch] - before, ticket, number, row))

    def fill(now: float) -> None:
        while len(running) < workers:
            job = searcher.ask()
            if job is None:
                return
            number, row = job
            done.setdefault(number, 0)
            begin_epoch(now, number, row)

    fill(0.0)
    while running:
        now, _, number, row = heapq.heappop(running)
        if now > until:
            break
        done[number] += 1
        epoch = done[number]
        loss = float(curves.loss_NE[row, epoch - 1])
        trace.times.append(now)
        trace.rows.append(row)
        trace.epochs.append(epoch)
        trace.losses.append(loss)
        diverged = epoch > curves.alive_N[row]
        last = diverged or epoch >= curves.length_N[row]
        decision = searcher.report(number, epoch, loss, last)
        if last or decision == "stop":
            searcher.end(number, diverged)
        elif decision == "go":
            begin_epoch(now, number, row)
        fill(now)
    trace.trials = len(done)
    return trace


def regret_over_time(curves: Curves, trace: Trace, times: Sequence[float]) -> Floats:
    """Regret at each time of the configuration that one would pick then, were it trained in full.

    One picks the trial whose latest value is the best, as Tune's `get_best_result` does, whether
    it runs, was stopped or has ended.
    """
    final_N = curves.final
    latest: dict[int, float] = {}  # by row: a row runs once
    regrets, picked, at = [], -1, 0
    for time in times:
        while at < len(trace.times) and trace.times[at] <= time:
            row, loss = trace.rows[at], trace.losses[at]
            worse = row == picked and loss > latest[row]
            latest[row] = loss
            if worse:
                picked = min(latest, key=latest.__getitem__)
            elif picked < 0 or loss < latest[picked]:
                picked = row
            at += 1
        regrets.append(1.0 if picked < 0 else curves.regret(final_N[picked]))
    return np.array(regrets)


def shown_over_time(curves: Curves, trace: Trace, times: Sequence[float]) -> Floats:
    """Regret at each time of the best value shown by any trial: of the checkpoint in the hand."""
    regrets, best, at = [], np.inf, 0
    for time in times:
        while at < len(trace.times) and trace.times[at] <= time:
            best = min(best, trace.losses[at])
            at += 1
        regrets.append(curves.regret(best))
    return np.array(regrets)
