"""python -m raymlc.report: one page that tells what a sweep has found so far."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import optuna
import tyro

from raymlc.begin import OPTIONS_FILE, STUDY_FILE, STUDY_VARIABLE
from raymlc.data.table import read_table
from raymlc.door import run_door, written
from raymlc.errors import UserError, one_line
from raymlc.metric import objectives
from raymlc.options import TuneOptions
from raymlc.search.budget import parse_trials
from raymlc.search.choice import chosen
from raymlc.search.place import resolve
from raymlc.search.read import read_study, read_trials
from raymlc.search.storage import METRIC, OWN_NAME
from raymlc.search.verdict import judge
from raymlc.watch.confusion import read_confusion
from raymlc.watch.findings import Sweep, heads_of, importances, kind_of
from raymlc.watch.page import BEGINNING, page

_REPORT = "report.html"  # in a sweep's folder


@dataclass(frozen=True)
class ReportOptions:
    """Write what a sweep has found as one HTML page, which needs no network and no server.

    It can be written at any time, also while the sweep runs; it changes nothing of the sweep.

    Example:
      python -m raymlc.report runs/NAME --output sweep.html
    """

    sweep: Annotated[Path, tyro.conf.Positional]
    """Folder of a sweep, runs/NAME."""
    output: Path | None = None
    """HTML file to write; an older report there is replaced. Default: report.html in the folder."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 when the page is written, 2 for wrong input, 130 after Ctrl-C."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return run_door(ReportOptions, "report", _report, arguments)


def _report(options: ReportOptions) -> int:
    output = options.output or options.sweep / _REPORT
    _check_output(output)
    text = page(read_sweep(options.sweep))
    with written(output, "--output") as file:
        file.write(text)
    print(f"report: {output}")
    return 0


def read_sweep(folder: Path) -> Sweep:
    """All that the folder of a sweep, and its study, have to tell.

    Raises UserError for a folder that no sweep has begun in, and for a study that cannot be read.
    """
    if not (folder / OPTIONS_FILE).is_file():
        raise UserError(
            f"a sweep's folder, such as runs/NAME, holds {OPTIONS_FILE}, but {folder} does not;"
            " name the folder of a sweep"
        )
    saved = TuneOptions.load(folder / OPTIONS_FILE)
    where = resolve(saved.study, os.environ.get(STUDY_VARIABLE), resumed=True)
    name = folder.resolve().name
    study = read_study(where or folder / STUDY_FILE, name if where else OWN_NAME)
    metric = study.user_attrs.get(METRIC, saved.metric)
    sampler, pruner = chosen(saved.sampler, saved.pruner, len(objectives(metric)))
    told = read_trials(study, metric)
    heads = heads_of(told)
    majority, no_majority = _majority(saved, heads)
    best = told[0].number if told else 0
    return Sweep(
        folder=folder,
        metric=metric,
        sampler=sampler,
        pruner=pruner,
        trials=parse_trials(saved.trials, have=0),
        workers=saved.workers,
        gpus_per_worker=saved.gpus_per_worker,
        train=_words(saved),
        told=told,
        heads=heads,
        importances=importances(study, _measured(metric, heads)),
        outcome=judge(study, metric),
        majority=majority,
        no_majority=no_majority,
        confusion=read_confusion(folder / "trials" / f"{best:04}" / "best"),
        written=time.time(),
    )


def _check_output(output: Path) -> None:
    """Raises UserError for a file that is there and is no report."""
    if output.is_dir():
        raise UserError(f"--output must name a file, but {output} is a folder")
    if not output.exists():
        return
    try:
        with output.open("rb") as file:
            beginning = file.read(len(BEGINNING))
    except OSError as error:
        raise UserError(f"--output must be a file to write, but {output}: {error}") from error
    if beginning != BEGINNING.encode():
        raise UserError(
            f"--output replaces older reports only, but {output} is none; choose another name, or"
            " remove it"
        )


def _measured(metric: str, heads: Sequence[str]) -> list[str]:
    """What an importance is told for: the score, its objectives, and the heads where several."""
    of_heads = [f"{kind_of(metric)}/{head}" for head in heads] if len(heads) > 1 else []
    return list(dict.fromkeys([metric, *objectives(metric), *of_heads]))


def _majority(saved: TuneOptions, heads: Sequence[str]) -> tuple[dict[str, float], str]:
    """The accuracy of training's most common answer by head; or none, and why."""
    # The built-in data set is not drawn for this.
    data = saved.data or saved.cache.expanduser() / "demo"
    try:
        table = read_table(
            data, saved.heads, saved.val_fraction, saved.classes, saved.allow_outside
        )
    except UserError as error:
        return {}, f"the data cannot be read ({error})"
    except OSError as error:
        return {}, f"the data cannot be read ({one_line(error)})"
    if set(heads) - set(table.labels.names):
        return {}, f"{data} has other heads now"
    # torch takes seconds to import, and nothing else here needs it.
    from raymlc.training.metrics import majority_accuracy

    splits = table.splits
    majority = majority_accuracy(table.labels, splits["train"].targets, splits["val"].targets)
    return {head: majority[head] for head in heads}, ""


def _words(saved: TuneOptions) -> tuple[str, ...]:
    """The options by which a training has the data of the sweep, and its workers."""
    words: list[str] = []
    if saved.data:
        words += ["--data", str(saved.data)]
    if saved.heads:
        words += ["--heads", *saved.heads]
    if saved.classes:
        words += ["--classes", str(saved.classes)]
    words += ["--metric", saved.metric]
    plain = TuneOptions()
    if saved.val_fraction != plain.val_fraction:
        words += ["--val-fraction", str(saved.val_fraction)]
    if saved.broken_images != plain.broken_images:
        words += ["--broken-images", saved.broken_images]
    if saved.allow_outside:
        words.append("--allow-outside")
    if saved.workers != plain.workers:
        words += ["--workers", str(saved.workers)]
    return tuple(words)


if __name__ == "__main__":
    sys.exit(main())
