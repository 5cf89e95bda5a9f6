"""What a command that trains does first: read its options, claim its folder, read its data."""

from __future__ import annotations

import dataclasses
import json
import runpy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from rich.console import Console

from raymlc.data.demo import draw_demo
from raymlc.data.duplicates import find_repeats, repeat_lines
from raymlc.data.table import Table, choose_heads, read_header, read_table
from raymlc.door import check_at_least_1, parse
from raymlc.errors import UserError, one_line
from raymlc.labels import MISSING
from raymlc.metric import check_metric, objectives
from raymlc.options import RunOptions
from raymlc.trial import TrialConfig, parse_assignment
from raymlc.watch.progress import track

_Options = TypeVar("_Options", bound=RunOptions)

TRIAL_FILE = "trial.json"  # in the folder of a checkpoint, or of a training
# Once trials run, Ctrl-C is caught where they are.
INTERRUPTED = "interrupted before the first epoch"


def parse_options(
    kind: type[_Options], arguments: Sequence[str], command: str, file: str
) -> _Options:
    """The options of a command line; of a resumed run, over those that its folder keeps in `file`.

    Raises UserError for a run that cannot be resumed so.
    """
    options = parse(kind, command, arguments)
    if not options.resume:
        return options
    if options.name is None:
        raise UserError("--resume goes on with a run by its --name, but none is given")
    path = options.output / options.name / file
    if not path.is_file():
        raise UserError(
            f"--resume needs a run that began, but {path.parent} holds none; leave --resume out"
        )
    saved = dataclasses.replace(
        kind.load(path), output=options.output, name=options.name, resume=False, quiet=False
    )
    options = parse(kind, command, arguments, saved)
    options.check_kept(saved)
    return options


@contextmanager
def claimed_folder(options: RunOptions, files: Sequence[str]) -> Iterator[Path]:
    """The run's folder, made if need be, for as long as the block runs this process's alone.

    files: the names of which a folder that a run has begun in holds one.
    Raises UserError for a name that is taken, and for a run that another process is at.
    """
    name = options.name or time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = options.output.absolute() / name
    if not options.resume and any((folder / file).exists() for file in files):
        raise UserError(
            f"a run {name!r} is in {options.output} already; go on with it by --resume, or choose"
            " another --name"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".lock").touch()
    except OSError as error:
        raise UserError(f"--output must be a folder to write in, but {folder}: {error}") from error
    try:
        lock = FileLock(folder / ".lock", timeout=0).acquire()
    except Timeout:
        raise UserError(
            f"one process at a time is at a run, but another is at {folder}; wait for it, or"
            " choose another --name"
        ) from None
    with lock:
        yield folder


def check_words(options: RunOptions) -> dict[str, Any]:
    """The fields that the options fix. Raises UserError for what can be known without torch."""
    for name in ("cpus_per_worker", "gpus_per_worker"):
        value = getattr(options, name)
        if value is not None and value < 0:
            raise UserError(f"--{name.replace('_', '-')} must be at least 0, but is {value}")
    check_at_least_1(workers=options.workers)
    if options.classes and not options.classes.is_file():
        raise UserError(f"--classes must name a CSV file, but {options.classes} is not one")
    if options.data:
        header = read_header(options.data)
        check_metric(options.metric, choose_heads(header, options.heads, options.data.name))
    fixed = dict(parse_assignment(text) for text in options.fixed)
    if options.weights:
        if not options.weights.exists():
            raise UserError(f"--weights must name a file, but {options.weights} is not one")
        fixed["weights"] = str(options.weights.absolute())
    return fixed


def read_data(options: RunOptions, console: Console) -> Table:
    """The table of a run, or the built-in one, drawn unless it was before."""
    data = options.data
    if data is None:
        data = options.cache.expanduser() / "demo"
        if not data.exists():
            console.print(f"drawing the built-in data set in {data}", highlight=False)
        draw_demo(data)
        check_metric(options.metric, choose_heads(read_header(data), options.heads, "train.csv"))
    table = read_table(
        data, options.heads, options.val_fraction, options.classes, options.allow_outside
    )
    _check_metric_has_labels(options.metric, table)
    lines = repeat_lines(table, find_repeats(table, options.cache, partial(track, console)))
    if lines:
        lines[-1] += f"; python -m raymlc.check {data} --output FILE.csv names them"
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)
    return table


def _check_metric_has_labels(metric: str, table: Table) -> None:
    """Raises UserError if nothing in the validation split has the label that the metric is of."""
    targets = table.splits["val"].targets
    known: Mapping[str, bool] = {
        head: bool((targets.values_NT[:, columns.start] != MISSING).any())
        for head, columns in targets.columns.items()
    }
    for name in objectives(metric):
        head = name.partition("/")[2].partition("/")[2]
        if not (known[head] if head else any(known.values())):
            raise UserError(f"{name} needs labels to validate on, but no validation row has any")


def read_trial(path: Path, option: str) -> TrialConfig:
    """The trial of a JSON file, of a checkpoint's folder, or of a Python file, which is run.

    Raises UserError, naming the command's option, for anything else.
    """
    path = path / TRIAL_FILE if path.is_dir() else path
    try:
        if path.suffix == ".py":
            return _trial_in_python(path)
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{option} must name a file with a trial in JSON or Python, or a checkpoint's folder,"
            f" but {path} cannot be read: {error}"
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"a trial is a JSON object of fields, but {path} holds {values!r:.60}")
    return TrialConfig.from_dict(values)


def _trial_in_python(path: Path) -> TrialConfig:
    """The one TrialConfig among the names that a file defines. It is code that the user chose."""
    try:
        names = runpy.run_path(str(path))
    except OSError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{path.name} does not run: {one_line(error)}") from error
    found = {name: value for name, value in names.items() if isinstance(value, TrialConfig)}
    if len(found) != 1:
        raise UserError(
            f"{path.name} must define one TrialConfig to be trained, but defines"
            f" {', '.join(found) or 'none'}; leave one, or give its JSON"
        )
    return next(iter(found.values()))
