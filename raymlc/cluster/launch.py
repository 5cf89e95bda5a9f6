"""From checked options to a finished sweep."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from raymlc.cluster.images import open_images
from raymlc.cluster.sweep import Resources, place, ray_session, run_sweep
from raymlc.cluster.worker import Job
from raymlc.data.batches import check_batch_size
from raymlc.data.table import Table
from raymlc.model.network import build_network
from raymlc.model.start import start_lines
from raymlc.optim.build import build_optimizer
from raymlc.options import TuneOptions
from raymlc.search.study import Row, StudyBook
from raymlc.training.metrics import majority_accuracy
from raymlc.training.run import BEST, SUMMARY
from raymlc.trial import TrialConfig
from raymlc.watch.progress import table_of_trials, write_summary
from raymlc.watch.recorder import Recorder, trial_folder


def check_trials(
    options: TuneOptions, configs: Sequence[TrialConfig], table: Table, console: Console
) -> None:
    """Build every kind of network that a space may ask for, once, and decode the images.

    In this order, since a wrong name is known in seconds and the images may take an hour.
    Raises UserError for a backbone, weights or optimizer that cannot be had, a broken image, and a
    batch_size that fits neither rows nor workers: before Ray starts and a GPU is taken.
    """
    kinds = {
        (c.backbone, c.pretrained, c.weights, c.image_size, c.drop_path_rate > 0, c.optimizer): c
        for c in configs
    }
    for config in kinds.values():
        build_optimizer(config, build_network(config, table.labels))
    for weights in dict.fromkeys(config.weights for config in configs):
        for line in start_lines(weights, table.labels):
            console.print(line, highlight=False, soft_wrap=True, markup=False)
    for image_size in {config.image_size for config in configs}:
        for name in ("train", "val"):
            images = open_images(options, table, name, image_size, console)
            if name == "train":
                for config in configs:
                    check_batch_size(config.batch_size, len(images), options.workers)


def launch(
    options: TuneOptions, folder: Path, book: StudyBook, table: Table, console: Console
) -> int:
    """Run the sweep in its folder and say how it went: 0 well, 1 all failed, 130 Ctrl-C.

    Raises UserError for a Ray that cannot be had, or trials that would not fit.
    """
    heads = table.labels.names
    cache = options.cache  # the user's home differs from node to node, their folder does not
    cache = cache if str(cache).startswith("~") else cache.absolute()
    job = Job(table, folder, cache, options.broken_images, options.metric)
    asked = Resources(
        options.workers,
        options.trainer == "torch",
        options.cpus_per_worker,
        options.gpus_per_worker,
        options.concurrency,
    )
    console.print(f"the sweep is kept in {folder}", highlight=False, soft_wrap=True)
    interrupted = False
    with ray_session(options.address, options.verbose):
        placement, concurrency = place(asked, growing=options.address is not None)
        console.print(
            f"{book.trials} trials, {concurrency} at a time, each on {placement.workers} x"
            f" ({placement.cpus:g} CPU, {placement.gpus:g} GPU)",
            highlight=False,
        )
        recorder = Recorder(book, folder, heads, book.trials, console)
        try:
            run_sweep(recorder, job, placement, concurrency)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            recorder.close()
    # What Tune and Train wrote down for themselves: a sweep goes on from its study.
    for name in ("ray", "ray-train"):
        shutil.rmtree(folder / name, ignore_errors=True)
    rows = book.rows()
    write_summary(folder / SUMMARY, rows)
    if interrupted:
        command = ["python", "-m", "raymlc.tune", "--output", str(folder.parent)]
        command += ["--name", folder.name, "--resume"]
        console.print(
            f"interrupted; every finished epoch is kept. Go on with:\n  {shlex.join(command)}",
            highlight=False,
            soft_wrap=True,
        )
        return 130
    splits = table.splits
    majority = majority_accuracy(table.labels, splits["train"].targets, splits["val"].targets)
    notes = table.labels.unseen_lines(splits["val"].targets)
    return _conclude(rows, heads, majority, notes, options.metric, folder, console)


def _conclude(
    rows: Sequence[Row],
    heads: Sequence[str],
    majority: dict[str, float],
    notes: Sequence[str],
    metric: str,
    folder: Path,
    console: Console,
) -> int:
    title = f"trials by {metric}; accuracies are of the stored checkpoint on val"
    console.print(table_of_trials(rows, heads, majority, title))
    best = rows[0]
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    failed = [row for row in rows if row.state == "FAIL"]
    for row in failed:
        say(f"trial {row.number} failed: {row.reason}")
    if not best.metrics:
        say("no trial succeeded")
        return 1
    for line in notes:
        say(line)
    say(f"best trial: {best.number}, {metric} {best.score:.4f}")
    say(f"checkpoint: {trial_folder(folder, best.number) / BEST}")
    say(f"all trials: {folder / SUMMARY}")
    say(f"TensorBoard: tensorboard --logdir {shlex.quote(str(folder / 'trials'))}")
    return 0
