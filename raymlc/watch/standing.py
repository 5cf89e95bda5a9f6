"""How a sweep stands: what its terminal shows while it runs, as facts and as words."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from raymlc.metric import higher_is_better, score_of
from raymlc.search.budget import Budget
from raymlc.search.study import Assignment, Row

ENDED = ("COMPLETE", "PRUNED", "FAIL")  # states of trials that will not go on
_SAID = {
    "RUNNING": "running",
    "PAUSED": "waiting at a rung",
    "HALTED": "stopped for now",
    "PRUNED": "pruned",
    "COMPLETE": "done",
    "FAIL": "failed",
}
_HEADS = 12  # that a line names


@dataclass(frozen=True)
class Best:
    """The trial with the best epoch so far, and the metrics of its checkpoint."""

    number: int
    score: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Way:
    """How far a sweep is: `done` of `total`, which may be a guess, in a unit."""

    done: float
    total: float
    unit: str
    guessed: bool


class Standing:
    """The facts of a sweep, kept as its events come in.

    metric: what trials are ranked by. trials: how many there shall be. majority: of each head the
    accuracy that the most common answer gets. rows: of the trials that there are already. noun:
    what a trial is called.
    """

    def __init__(
        self,
        metric: str,
        trials: int,
        majority: Mapping[str, float],
        rows: Iterable[Row] = (),
        budget: Budget = Budget(),
        noun: str = "trial",
    ) -> None:
        self.metric, self.trials, self.noun = metric, trials, noun
        self.majority = majority
        self.budget = budget
        self.best: Best | None = None
        self.lengths: dict[int, int] = {}  # full ones, of the trials that began in this run
        self.running: dict[int, Mapping[str, float]] = {}  # the last epoch of each; may be empty
        self._states: dict[int, str] = {}
        self._epochs: dict[int, int] = {}
        self._began: float | None = None
        for row in rows:
            self._states[row.number], self._epochs[row.number] = row.state, row.epochs
            self._consider(row.number, row.metrics)
        self._before = sum(self._epochs.values())

    def start(self, trial: Assignment) -> None:
        """A trial begins, or goes on."""
        if self._began is None:
            self._began = time.monotonic()
        self._states[trial.number] = "RUNNING"
        self._epochs.setdefault(trial.number, trial.epochs)
        self.lengths[trial.number] = trial.config.epochs
        self.running[trial.number] = {}

    def epoch(self, number: int, metrics: Mapping[str, float]) -> None:
        """An epoch of a running trial; one that is told again counts once."""
        if metrics["epoch"] > self._epochs.get(number, 0):
            self._epochs[number] = int(metrics["epoch"])
            self.running[number] = metrics
            self._consider(number, metrics)

    def end(self, row: Row) -> bool:
        """A trial ended, or stopped for now; whether it is the best so far."""
        self._states[row.number], self._epochs[row.number] = row.state, row.epochs
        self.running.pop(row.number, None)
        self._consider(row.number, row.metrics)
        return self.best is not None and self.best.number == row.number

    @property
    def ended(self) -> int:
        """How many trials will not go on."""
        return sum(state in ENDED for state in self._states.values())

    @property
    def seconds(self) -> float:
        """Wall-clock since this run's first trial began."""
        return 0.0 if self._began is None else time.monotonic() - self._began

    def epochs_of(self, number: int) -> int:
        """How many epochs a trial has behind it."""
        return self._epochs.get(number, 0)

    def way(self) -> Way:
        """How far the sweep is: by its budget of time or of epochs, else by epochs.

        How many epochs it will take is a guess where trials may stop early: that those to come are
        as long as those that stopped so far, and one more of full length, since some that wait may
        go on.
        """
        if self.budget.seconds < math.inf:
            return Way(min(self.seconds, self.budget.seconds), self.budget.seconds, "s", False)
        done = sum(self._epochs.values())
        total = done + self._to_go()
        if total >= self.budget.epochs:
            return Way(min(done, self.budget.epochs), self.budget.epochs, "epochs", False)
        return Way(done, total, "epochs", total > done)

    def seconds_left(self) -> float:
        """About how much longer this run takes; NaN before it has trained an epoch."""
        done = sum(self._epochs.values())
        left = min(self._to_go(), max(0.0, self.budget.epochs - done))
        trained = done - self._before
        guess = left * self.seconds / trained if trained else math.nan
        until = max(0.0, self.budget.seconds - self.seconds)
        return until if math.isnan(guess) and until < math.inf else min(guess, until)

    def _to_go(self) -> float:
        full = sum(self.lengths.values()) / len(self.lengths) if self.lengths else 0.0
        begun = {n for n, state in self._states.items() if state in ("RUNNING", "HALTED")}
        over = [epochs for number, epochs in self._epochs.items() if number not in begun]
        usual = (sum(over) + full) / (len(over) + 1)
        left = max(0, self.trials - len(self._states)) * usual
        for number in begun:
            had = self._epochs[number]
            left += usual - had if had < usual else max(0, self.lengths.get(number, had) - had)
        return left

    def _consider(self, number: int, metrics: Mapping[str, float]) -> None:
        score = score_of(metrics, self.metric)
        if math.isnan(score):
            return
        sign = 1 if higher_is_better(self.metric) else -1
        if self.best is None or sign * score > sign * self.best.score:
            self.best = Best(number, score, metrics)

    def counts_line(self) -> str:
        """How many trials are in which state."""
        counts = Counter(self._states.values())
        parts = [
            f"{counts[state]} {said}"
            for state, said in _SAID.items()
            if counts[state] or state == "RUNNING"
        ]
        to_come = self.trials - len(self._states)
        if to_come > 0:
            parts.append(f"{to_come} to come")
        return ", ".join(parts)

    def way_line(self) -> str:
        """How far the sweep is, and how long it may take."""
        way = self.way()
        if way.unit == "s":
            parts = [f"{duration(way.done)} of {duration(way.total)}"]
        else:
            about = "about " if way.guessed else ""
            parts = [f"{way.done:.0f} of {about}{way.total:.0f} epochs", duration(self.seconds)]
        left = self.seconds_left()
        if not math.isnan(left):
            parts.append(f"about {duration(left)} left")
        return ", ".join(parts)

    def best_line(self) -> str:
        """The best so far, and each head's accuracy with its change over the majority class."""
        if self.best is None:
            return "none yet"
        parts = []
        for head, least in self.majority.items():
            accuracy = self.best.metrics.get(f"val/accuracy/{head}", math.nan)
            if not math.isnan(accuracy):
                over = "" if math.isnan(least) else f" ({accuracy - least:+.3f})"
                parts.append(f"{head} {accuracy:.3f}{over}")
        more = len(parts) - _HEADS
        parts = parts[:_HEADS] + ([f"and {more} more"] if more > 0 else [])
        heads = f": {', '.join(parts)}" if parts else ""
        return f"{self.metric} {self.best.score:.4f} of {self.noun} {self.best.number}{heads}"

    def speed_line(self) -> str:
        """What the running trials do a second together, and the GPU memory that one takes."""
        speeds = [m["images_per_second"] for m in self.running.values() if "images_per_second" in m]
        parts = [f"{sum(speeds):,.0f} images/s"] if speeds else []
        memory = [m["gpu_memory_gib"] for m in self.running.values() if "gpu_memory_gib" in m]
        if memory:
            parts.append(f"{max(memory):.1f} GiB of GPU memory a {self.noun}")
        return ", ".join(parts)

    def trial_lines(self, most: int) -> Iterator[str]:
        """How far each running trial is, of at most so many."""
        for number, metrics in list(self.running.items())[:most]:
            line = f"{self.noun} {number}: epoch {self._epochs[number]} of {self.lengths[number]}"
            if metrics:
                line += (
                    f", {self.metric} {score_of(metrics, self.metric):.4f},"
                    f" {metrics['images_per_second']:,.0f} images/s"
                )
            yield line
        if len(self.running) > most:
            yield f"and {len(self.running) - most} more"


def duration(seconds: float) -> str:
    """Seconds as people say them, such as "3 min 20 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
