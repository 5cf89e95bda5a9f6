"""A sweep of 10,000 trials without training: what its driver takes for a decision, and holds.

Command:   python -m tests.benchmarks.search.long [--trials N] [--concurrency N] [--profile]

The trials of the default space, with the default sampler and pruner, are handed out and recorded
as a real sweep's are: a study in a journal, the structured log, TensorBoard's event files, the
lines of a terminal. Only the training is missing: an epoch takes simulated time, and a formula of
the trial's values gives its metrics. The table has a row when so many trials have begun:

    next    CPU milliseconds to hand out a trial: to propose it, or to find one that goes on
    epoch   to record an epoch and to decide whether the trial goes on
    end     to record that a trial has ended or waits

each the median over what the last tenth of the trials took, and the worst by the clock of any call
since the row before. At the end the journal is opened again, as --resume does.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import math
import os
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Container
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import optuna
from rich.console import Console

from raymlc.begin import STUDY_FILE
from raymlc.search.choice import chosen
from raymlc.search.space import built_in, load_space
from raymlc.search.storage import open_study
from raymlc.search.study import StudyBook
from raymlc.training.files import METRICS
from raymlc.training.run import BEST
from raymlc.trial import TrialConfig
from raymlc.watch.recorder import Recorder
from tests.benchmarks.load import resident
from tests.benchmarks.rounds import processor
from tests.benchmarks.search.simulator import Curves, Decision, simulate

METRIC = "val/accuracy"
LONGEST = TrialConfig().epochs  # of the default space's trials
HEADS = ("gender", "article", "color")
ROWS = (0, 10, 100, 1000, 3000, 10_000)

Call = Literal["next", "epoch", "end"]
_Result = TypeVar("_Result")


class Costs:
    """What every call took, and rows of the table made of it."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._spent: dict[Call, list[tuple[int, float]]] = {"next": [], "epoch": [], "end": []}
        self._worst: dict[Call, float] = dict.fromkeys(self._spent, 0.0)
        self._began = time.monotonic(), time.process_time()

    def call(self, name: Call, trials: int, work: Callable[[], _Result]) -> _Result:
        """Do the work. trials: that have begun."""
        clock, cpu = time.monotonic(), time.process_time()
        result = work()
        self._spent[name].append((trials, 1000 * (time.process_time() - cpu)))
        self._worst[name] = max(self._worst[name], 1000 * (time.monotonic() - clock))
        return result

    def row(self, trials: int | str, since: int) -> None:
        """Print a row. since: the trial from which on calls count to the median."""
        cells = []
        for name, spent in self._spent.items():
            late = [cost for begun, cost in spent if begun >= since]
            median = f"{statistics.median(late):.1f}" if late else ""
            cells.append(f"{median} | {self._worst[name]:.0f}" if late else " | ")
        clock, cpu = time.monotonic() - self._began[0], time.process_time() - self._began[1]
        print(
            f"| {trials} | {len(self._spent['epoch'])} | {' | '.join(cells)}"
            f" | {resident(os.getpid()):.0f} | {self._journal.stat().st_size / 2**20:.1f}"
            f" | {clock:.0f} | {cpu:.0f} |",
            flush=True,
        )
        self._worst = dict.fromkeys(self._spent, 0.0)


class Driven:
    """A sweep's recorder as the simulator asks for it; a trial's row is its number.

    loss_NE: filled when a trial begins. rows: a row is printed when so many have begun.
    """

    def __init__(
        self, recorder: Recorder, costs: Costs, loss_NE: np.ndarray, rows: Container[int]
    ) -> None:
        self._recorder = recorder
        self._costs = costs
        self._loss_NE = loss_NE
        self._rows = rows
        self._rng = np.random.default_rng(0)
        self._best: dict[int, dict[str, float]] = {}
        self.begun = 0

    def ask(self) -> tuple[int, int] | None:
        assignment = self._costs.call("next", self.begun, self._recorder.next)
        if assignment is None:
            return None
        number = assignment.number
        if number == self.begun:
            self._loss_NE[number] = curve(assignment.config, self._rng)
            self.begun += 1
            if self.begun in self._rows:
                self._costs.row(self.begun, self.begun * 9 // 10)
        return number, number

    def report(self, number: int, epoch: int, loss: float, last: bool) -> Decision:
        metrics = epoch_metrics(epoch, 1 - loss)
        if number not in self._best or metrics[METRIC] > self._best[number][METRIC]:
            self._best[number] = metrics
        stop = self._costs.call(
            "epoch", self.begun, lambda: self._recorder.epoch(number, metrics, "node")
        )
        return "stop" if stop else "go"

    def end(self, number: int, diverged: bool) -> None:
        stored = self._recorder.folder_of(number) / BEST
        stored.mkdir(exist_ok=True)
        (stored / METRICS).write_text(json.dumps(self._best[number]))
        self._costs.call("end", self.begun, lambda: self._recorder.end(number))


def curve(config: TrialConfig, rng: np.random.Generator) -> np.ndarray:
    """The loss of every epoch: best at an lr of 0.002 and little dropout, with noise."""
    off = math.log10(config.lr / 2e-3) ** 2 + 0.3 * config.drop_rate**2 + config.drop_path_rate**2
    epochs_E = np.arange(1, config.epochs + 1)
    loss_E = 0.2 + 0.3 * off + 0.5 / epochs_E + 0.02 * rng.standard_normal(config.epochs)
    return np.asarray(loss_E.clip(0.0, 1.0))


def epoch_metrics(epoch: int, score: float) -> dict[str, float]:
    """As many metrics as an epoch of three heads has."""
    kinds = ("accuracy", "balanced_accuracy", "top5_accuracy", "macro_f1", "loss")
    metrics = {f"val/{kind}/{head}": score for kind in kinds for head in HEADS}
    metrics |= {f"val/{kind}": score for kind in kinds}
    metrics |= {f"train/loss/{head}": 1 - score for head in HEADS}
    return {
        "epoch": float(epoch),
        **metrics,
        "train/loss": 1 - score,
        "lr": 1e-3,
        "images": 4000.0 * epoch,
        "images_per_second": 1000.0,
        "seconds": 4.0,
    }


def opened(folder: Path, trials: int) -> StudyBook:
    """The book of a sweep, begun or resumed."""
    study = open_study(folder / STUDY_FILE, METRIC, *chosen(None, None, 1), 0, LONGEST)
    return StudyBook(study, load_space(built_in("default"), {}), METRIC, trials)


def sweep(folder: Path, trials: int, concurrency: int, rows: Container[int] = ROWS) -> None:
    """Run a sweep to its end, and print rows when so many trials have begun.

    Raises AssertionError if not every trial has ended well.
    """
    book = opened(folder, trials)
    with (folder / "log").open("w") as log:
        recorder = Recorder(book, folder, HEADS, trials, Console(file=log))
        loss_NE = np.zeros((trials, LONGEST))
        curves = Curves(
            name="formula",
            axes=(),
            unit_ND=np.zeros((trials, 0)),
            raw_ND=np.zeros((trials, 0)),
            loss_NE=loss_NE,
            length_N=np.full(trials, LONGEST),
            alive_N=np.full(trials, LONGEST),
            ends_NE=np.tile(np.arange(1.0, LONGEST + 1), (trials, 1)),
        )
        costs = Costs(folder / STUDY_FILE)
        if 0 in rows:
            costs.row(0, 0)
        driven = Driven(recorder, costs, loss_NE, rows)
        simulate(curves, driven, concurrency, until=math.inf)
        if 0 in rows:
            costs.row("all", trials * 9 // 10)
        recorder.close()
    states = [row.state for row in book.rows()]
    assert len(states) == trials, len(states)
    assert {*states} <= {"COMPLETE", "PRUNED"}, states


def main() -> None:
    """Run one sweep."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    print(f"{processor()}, {os.cpu_count()} cores; {options.concurrency} trials at a time")
    print(
        "| trials | epochs | next, ms | worst | epoch, ms | worst | end, ms | worst | process, MiB"
        " | journal, MiB | seconds | CPU-seconds |"
    )
    print("|" + "---|" * 12)
    with tempfile.TemporaryDirectory() as name:
        profile = cProfile.Profile()
        if options.profile:
            profile.enable()
        sweep(Path(name), options.trials, options.concurrency)
        began = time.process_time()
        opened(Path(name), options.trials)
        print(f"to open the journal again: {time.process_time() - began:.1f} CPU-seconds")
        if options.profile:
            profile.disable()
            pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


if __name__ == "__main__":
    main()
