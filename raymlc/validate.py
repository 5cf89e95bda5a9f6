"""python -m raymlc.validate: the metrics of checkpoints on a split, head by head."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raymlc.data.store import DEFAULT_CACHE, BrokenImages
from raymlc.door import check_at_least_1, check_free, plain_console, run_door, written
from raymlc.errors import UserError
from raymlc.metric import higher_is_better
from raymlc.watch.progress import brief, track

if TYPE_CHECKING:
    from raymlc.training.checkpoint import Checkpoint
    from raymlc.training.scoring import Scorer

_MOST = 1000  # labels of a head that are disagreed with and written
RESULTS = Path("results.csv")  # of several checkpoints, unless --results names another
_WEIGHTS = {"raw": "as trained", "ema": "moving average", "average": "mean of checkpoints"}


@dataclass(frozen=True)
class ValidateOptions:
    """Measure checkpoints on a split of a table, head by head.

    Of one checkpoint a table is printed; several are compared, and written as CSV, best first.

    Examples:
      python -m raymlc.validate runs/NAME/trials/0007/best --data DIR --split test
      python -m raymlc.validate runs/NAME/trials --data DIR --results compared.csv
      python -m raymlc.validate runs/NAME/trials/0007/best --data DIR --mistakes look
    """

    checkpoints: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of checkpoints, such as runs/NAME/trials/0007/best, or folders with checkpoints at
    any depth, such as runs/NAME/trials."""
    data: Path
    """Folder of train.csv, val.csv, test.csv, or any CSV file with the columns of the heads."""
    split: str = "val"
    """Which CSV of the folder: val, test, train. Metrics are named after it."""
    results: Path | None = None
    """CSV file to write. Default: results.csv for several checkpoints, none for one."""
    mistakes: Path | None = None
    """Folder for the labels that one checkpoint most disagrees with, so that wrong ones are found:
    mistakes.csv, the worst 1,000 of each head first, and mistakes.html with their pictures."""
    calibrate: bool = False
    """Write into the folder of one checkpoint a calibration, fitted to this split, that makes its
    probabilities mean what they say, and a model card. Its training must not have seen the rows."""
    overwrite: bool = False
    """Replace the files of --results, --mistakes and --calibrate if there are any."""
    sort_by: str | None = None
    """Metric that orders several checkpoints: the lowest loss first, or the highest of another
    metric, such as test/macro_f1/color. Default: SPLIT/accuracy."""
    image_size: int | None = None
    """Pixels, height and width. Default: as trained."""
    flip: bool = False
    """Predict by the mean of each image and its mirror image."""
    batch_size: int | None = None
    """Images at a time, halved where memory is out. Default: the trial's own."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1 and so on."""
    broken_images: BrokenImages = "stop"
    """What to do about an image that cannot be read: stop, or skip its row."""
    allow_outside: bool = False
    """Let the table name images outside of its folder."""
    cache: Path = DEFAULT_CACHE
    """Where decoded images are kept."""
    json: bool = False
    """Print the metrics as JSON instead of a table: an object, or of several checkpoints a list."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 when done, 1 if some of several checkpoints failed, 2 for wrong input."""
    return run_door(ValidateOptions, "validate", _validate, arguments)


def _validate(options: ValidateOptions) -> int:
    check_at_least_1(batch_size=options.batch_size, image_size=options.image_size)
    csv_file = options.data / f"{options.split}.csv" if options.data.is_dir() else options.data
    if not csv_file.is_file():
        raise UserError(f"--data must hold the split, but {csv_file} is not a file; see --split")

    # torch takes seconds to import, so only once the words are checked.
    from raymlc.training.gather import checkpoints_in
    from raymlc.training.inference import choose_device
    from raymlc.training.scoring import Scorer

    folders = checkpoints_in(options.checkpoints)
    results = options.results or (RESULTS if len(folders) > 1 else None)
    check_free(results, "--results", options.overwrite)
    if options.calibrate:
        _check_calibrate(options, folders)
    if options.mistakes:
        _claim(options.mistakes, len(folders), options.overwrite)
    console = Console(stderr=True)
    scorer = Scorer(
        csv_file,
        options.split,
        choose_device(options.device),
        partial(console.print, highlight=False, soft_wrap=True, markup=False),
        options.batch_size,
        options.image_size,
        options.flip,
        options.cache,
        options.broken_images,
        partial(track, console),
        options.allow_outside,
    )
    if results is None or len(folders) == 1:
        return _one(options, folders[0], scorer, results)
    return _several(options, folders, scorer, results)


def _one(options: ValidateOptions, folder: Path, scorer: Scorer, results: Path | None) -> int:
    from raymlc.training.checkpoint import load_checkpoint

    checkpoint = scorer.fitted(load_checkpoint(folder))
    images = scorer.images(checkpoint)
    row = scorer.row(checkpoint, str(folder))
    if results:
        _write(results, [row])
    metrics = {name: value for name, value in row.items() if name.startswith(f"{options.split}/")}
    if options.json:
        print(json.dumps(metrics))
    else:
        _print_heads(checkpoint, f"{folder} on {scorer.csv}, {len(images):,} rows", metrics)
    if options.mistakes:
        _write_mistakes(options.mistakes, checkpoint, str(folder), scorer)
    if options.calibrate:
        from raymlc.watch.finish import calibrate_scored

        train = options.data / "train.csv"
        calibrate_scored(folder, checkpoint, scorer, metrics, train if train.is_file() else None)
    return 0


def _check_calibrate(options: ValidateOptions, folders: Sequence[Path]) -> None:
    """Raises UserError for what a calibration must not be fitted to."""
    from raymlc.watch.finish import check_unfinished

    if len(folders) > 1:
        raise UserError(
            f"--calibrate is for one checkpoint, but {len(folders)} are named; name one of them"
        )
    if options.split == "train":
        raise UserError(
            "--calibrate needs rows that training did not see, but --split is train; take val"
        )
    for option, given in (("--image-size", options.image_size), ("--flip", options.flip)):
        if given:
            raise UserError(
                f"--calibrate is of the checkpoint as it predicts, but {option} changes that; leave"
                " it out"
            )
    check_unfinished(folders[0], options.overwrite)


def _print_heads(checkpoint: Checkpoint, title: str, metrics: dict[str, float]) -> None:
    table = Table(title=Text(title), box=box.SIMPLE_HEAD)
    names = [name for name in metrics if name.count("/") == 1]
    table.add_column("head")
    for name in names:
        table.add_column(name.partition("/")[2], justify="right")
    for head in checkpoint.labels.names:
        values = [brief(metrics.get(f"{name}/{head}", math.nan)) for name in names]
        table.add_row(Text(head), *values)
    table.add_section()
    table.add_row("mean", *(brief(metrics[name]) for name in names))
    plain_console().print(table)
    print(_weights_line(checkpoint))


def _claim(folder: Path, checkpoints: int, overwrite: bool) -> None:
    """Make the folder of --mistakes. Raises UserError where it cannot be it."""
    if checkpoints > 1:
        raise UserError(
            f"--mistakes are those of one checkpoint, but {checkpoints} are named; name one of them"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise UserError(
            f"--mistakes must be a folder to write in, but {folder}: {error}"
        ) from error
    if taken and not overwrite:
        raise UserError(
            f"--mistakes must name a new folder, but {folder} is there; choose another, or take"
            " --overwrite"
        )


def _write_mistakes(folder: Path, checkpoint: Checkpoint, name: str, scorer: Scorer) -> None:
    from raymlc.watch.mistakes import COLUMNS, contact_sheet, csv_rows, summary

    found = scorer.mistakes(checkpoint, _MOST)
    with written(folder / "mistakes.csv", "--mistakes") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(COLUMNS)
        lines.writerows(csv_rows(found))
    with written(folder / "mistakes.html", "--mistakes") as file:
        file.write(contact_sheet(found, scorer.csv.name, name, scorer.progress))
    for one in found:
        scorer.say(f"head {one.head.name}: {summary(one, len(one.worst), 'in mistakes.csv')}")
    scorer.say(f"labels to look at: {folder / 'mistakes.html'}, {folder / 'mistakes.csv'}")


def _several(
    options: ValidateOptions, folders: Sequence[Path], scorer: Scorer, results: Path
) -> int:
    from raymlc.training.gather import once_each
    from raymlc.training.scoring import check_sort, heads_of

    folders, again = once_each(folders)
    for folder, first in again.items():
        scorer.say(f"{folder} has the weights of {first}, which are scored once")
    sort_by = options.sort_by or f"{options.split}/accuracy"
    check_sort(sort_by, options.split, heads_of(folders))
    sign = -1 if higher_is_better(sort_by) else 1
    rows: list[dict[str, Any]] = []
    for number, folder in enumerate(folders, 1):
        row = _row_or_reason(scorer, folder)
        if isinstance(row, str):
            scorer.say(f"{number} of {len(folders)}: {folder} has no score: {row}")
            continue
        scorer.say(
            f"{number} of {len(folders)}: {folder}: {sort_by} {brief(row.get(sort_by, math.nan))}"
        )
        rows.append(row)
        rows.sort(key=lambda row: _rank(row.get(sort_by, math.nan), sign))
        _write(results, rows)  # each time, so that a long run that is stopped was not in vain
    if options.json:
        print(json.dumps(rows))
    elif rows:
        plain_console().print(_comparison(rows, sort_by, scorer.csv))
    failed = len(folders) - len(rows)
    scorer.say(f"{len(rows)} checkpoints in {results}" if rows else "no checkpoint has a score")
    if failed:
        scorer.say(f"{failed} of {len(folders)} checkpoints have no score, as said above")
    return 1 if failed else 0


def _row_or_reason(scorer: Scorer, folder: Path) -> dict[str, Any] | str:
    """A row of results; or, in a line, why this checkpoint has none where others may have one."""
    from raymlc.training.checkpoint import load_checkpoint

    try:
        checkpoint = scorer.fitted(load_checkpoint(folder))
    except UserError as error:
        return str(error)
    scorer.images(checkpoint)
    try:
        return scorer.row(checkpoint, str(folder))
    except UserError as error:
        return str(error)


def _rank(value: float, sign: int) -> tuple[bool, float]:
    return math.isnan(value), 0.0 if math.isnan(value) else sign * value


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with written(path, "--results") as file:
        lines = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        lines.writeheader()
        lines.writerows(rows)


def _comparison(rows: Sequence[dict[str, Any]], sort_by: str, csv_file: Path) -> Table:
    """The checkpoints in the order of the rows, with the metric of that order, and it by head."""
    kind = "/".join(sort_by.split("/")[:2])
    metrics = [
        sort_by,
        kind,
        *(name for row in rows for name in row if name.startswith(f"{kind}/")),
    ]
    metrics = list(dict.fromkeys(metrics))
    table = Table(title=Text(f"checkpoints on {csv_file}, by {sort_by}"), box=box.SIMPLE_HEAD)
    table.add_column("checkpoint", overflow="fold")
    for name in metrics:
        head = name.removeprefix(kind).removeprefix("/")
        table.add_column(Text(head or kind.partition("/")[2]), justify="right")
    for name in ("image_size", "param_count", "weights"):
        table.add_column(name, justify="right")
    folders = [row["checkpoint"] for row in rows]
    shared = os.path.commonpath(folders) if len(folders) > 1 else ""
    for row in rows:
        table.add_row(
            Text(os.path.relpath(row["checkpoint"], shared) if shared else row["checkpoint"]),
            *(brief(row.get(name, math.nan)) for name in metrics),
            str(row["image_size"]),
            f"{row['param_count']:,}",
            row["weights"],
        )
    return table


def _weights_line(checkpoint: Checkpoint) -> str:
    text = f"weights: {_WEIGHTS[checkpoint.origin]}"
    if "epoch" in checkpoint.metrics:
        text += f", of epoch {checkpoint.metrics['epoch']:.0f}"
    if "val/accuracy" in checkpoint.metrics:
        text += f"; val/accuracy was {checkpoint.metrics['val/accuracy']:.4f} when they were kept"
    return text


if __name__ == "__main__":
    sys.exit(main())
