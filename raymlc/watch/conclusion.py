"""What a sweep says when it has ended, and the tables that it leaves."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path

from rich.console import Console

from raymlc.data.store import BrokenImages
from raymlc.data.table import Table
from raymlc.metric import objectives
from raymlc.search.front import front
from raymlc.search.study import Row, StudyBook
from raymlc.search.verdict import judge
from raymlc.training.metrics import majority_accuracy
from raymlc.training.run import BEST, SUMMARY
from raymlc.watch.finals import finals_lines, table_of_finals, write_finals
from raymlc.watch.finish import finish
from raymlc.watch.progress import table_of_trials, write_summary
from raymlc.watch.recorder import trial_folder

FINALS_TABLE = "finals.csv"  # beside SUMMARY


def say_how_to_go_on(book: StudyBook, folder: Path, console: Console) -> None:
    """After Ctrl-C, write down what there is and say how to go on."""
    write_summary(folder / SUMMARY, book.rows())
    _say(console, f"interrupted; every finished epoch is kept. Go on with:\n  {_command(folder)}")


def conclude(
    book: StudyBook,
    table: Table,
    folder: Path,
    finals: Path,
    cache: Path,
    broken: BrokenImages,
    console: Console,
) -> int:
    """Write the tables of a sweep and say how it went: 0, or 1 if no trial succeeded.

    The winner gets its calibration and its card, as `finish` does it. finals: the folder of its
    finals, if it had any. cache, broken: of the images, as the trials have them.
    """
    rows = book.rows()
    write_summary(folder / SUMMARY, rows)
    say = partial(_say, console)
    if book.spent:
        option = "--epoch-budget" if book.epochs >= book.budget.epochs else "--time-budget"
        say(
            f"the budget is spent, with {book.asked} of {book.trials} trials begun. Go on with:\n"
            f"  {_command(folder)} {option} MORE"
        )
    splits = table.splits
    majority = majority_accuracy(table.labels, splits["train"].targets, splits["val"].targets)
    title = f"trials by {book.metric}; accuracies are of the stored checkpoint on val"
    console.print(table_of_trials(rows, table.labels.names, majority, title, console.width))
    for row in rows:
        if row.state == "FAIL":
            say(f"trial {row.number} failed: {row.reason}")
    if not rows or not rows[0].metrics:
        say("no trial succeeded")
        return 1
    for line in table.labels.unseen_lines(splits["val"].targets):
        say(line)
    checkpoint = _say_best(book, rows, folder, console)
    outcome = judge(book.study, book.metric)
    if outcome.finalists or outcome.failed:
        console.print(table_of_finals(outcome, table.labels.names))
        for line in finals_lines(outcome):
            say(line)
        write_finals(folder / FINALS_TABLE, outcome)
        say(f"all finals: {folder / FINALS_TABLE}")
    if outcome.deployed:
        checkpoint = trial_folder(finals, outcome.deployed.number) / BEST
    say(f"checkpoint: {checkpoint}")
    say(f"all trials: {folder / SUMMARY}")
    say(f"TensorBoard: tensorboard --logdir {shlex.quote(str(folder / 'trials'))}")
    finish(checkpoint, table, cache, broken, console)
    return 0


def _say_best(book: StudyBook, rows: list[Row], folder: Path, console: Console) -> Path:
    """Name the best trial, or the front of several objectives; the best trial's checkpoint."""
    names = objectives(book.metric)
    best = rows[0]
    if len(names) > 1:
        stored = {row.number: row.metrics for row in rows if row.metrics}
        numbers = front(stored, names)
        _say(console, "no trial is better in every objective than one of these:")
        for number in numbers:
            values = ", ".join(f"{name} {stored[number][name]:.4f}" for name in names)
            _say(console, f"  trial {number}: {values}")
        pick = shlex.join(["python", "-m", "raymlc.pick", str(folder), "--weights"])
        _say(console, f"choose by your weights: {pick} {names[0]}=2 {names[1]}=1")
    _say(console, f"best trial: {best.number}, {_mean(names)}{book.metric} {best.score:.4f}")
    return trial_folder(folder, best.number) / BEST


def _mean(names: tuple[str, ...]) -> str:
    return "mean of " if len(names) > 1 else ""


def _command(folder: Path) -> str:
    words = ["python", "-m", "raymlc.tune", "--output", str(folder.parent), "--name", folder.name]
    return shlex.join([*words, "--resume"])


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)
