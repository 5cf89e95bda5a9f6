"""From checked options to a finished sweep."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from raymlc.cluster.images import files_of, open_images
from raymlc.cluster.packing import mps_line
from raymlc.cluster.probe import living_nodes
from raymlc.cluster.sweep import (
    Resources,
    Sharing,
    check_cluster,
    place,
    ray_session,
    run_sweep,
    share_gpus,
    shortage,
)
from raymlc.cluster.trainable import Placement
from raymlc.cluster.worker import Job
from raymlc.data.batches import check_batch_size
from raymlc.data.table import Table
from raymlc.model.network import build_network
from raymlc.model.start import start_lines
from raymlc.optim.build import build_optimizer
from raymlc.options import TuneOptions, lasting
from raymlc.search.finals import FinalsBook
from raymlc.search.study import StudyBook
from raymlc.training.metrics import majority_accuracy
from raymlc.trial import TrialConfig
from raymlc.watch.conclusion import conclude, say_how_to_go_on
from raymlc.watch.recorder import Recorder, terminable, trial_folder
from raymlc.watch.terminal import quiet_console
from raymlc.watch.winner import show_winner


def check_trials(
    options: TuneOptions, configs: Sequence[TrialConfig], table: Table, console: Console
) -> None:
    """Build every kind of network that a space may ask for, once, and decode the images.

    In this order, since a wrong name is known in seconds and the images may take an hour. Between
    the two a cluster that is to be joined is asked whether it can run the trials.
    Raises UserError for a backbone, weights or optimizer that cannot be had, a broken image, a
    batch_size that fits neither rows nor workers, and as `check_cluster`: before a GPU is taken.
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
    if options.address is not None:
        weights_files = {Path(config.weights) for config in configs if config.weights}
        files = [*files_of(table), *sorted(weights_files)]
        folder = options.output.absolute()
        check_cluster(options.address, options.verbose, _asked(options), folder, files)
    sizes = sorted({config.image_size for config in configs})
    train = open_images(options, table, "train", sizes, console)
    for config in configs:
        check_batch_size(config.batch_size, len(train), options.workers)
    open_images(options, table, "val", sizes, console)


def _asked(options: TuneOptions) -> Resources:
    return Resources(
        options.workers,
        options.trainer == "torch",
        options.cpus_per_worker,
        options.gpus_per_worker,
        options.concurrency,
        1 if options.trials_per_gpu == "auto" else options.trials_per_gpu,
    )


FINALS = "finals"  # in a sweep's folder, one of the same kind


def launch(
    options: TuneOptions, folder: Path, book: StudyBook, table: Table, console: Console
) -> int:
    """Run the sweep in its folder and say how it went: 0 well, 1 all failed, 130 Ctrl-C.

    Raises UserError for a Ray that cannot be had, or trials that would not fit.
    """
    job = Job(table, folder, lasting(options.cache), options.broken_images, options.metric)
    asked = _asked(options)
    said = quiet_console(console, options.quiet)
    said.print(f"the sweep is kept in {folder}", highlight=False, soft_wrap=True)
    try:
        _train(options, asked, job, book, said)
        finals = folder / FINALS
        code = conclude(book, table, folder, finals, job.cache, job.broken_images, console)
        if code == 0:
            best = trial_folder(folder, book.rows()[0].number)
            show_winner(best, table, job.cache, job.broken_images, said)
        return code
    except KeyboardInterrupt:
        say_how_to_go_on(book, folder, console)
        return 130


def _train(
    options: TuneOptions, asked: Resources, job: Job, book: StudyBook, console: Console
) -> None:
    """Run all trials of a sweep, and its finals."""
    heads, folder = job.table.labels.names, job.folder
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    growing = options.address is not None
    with ray_session(options.address, options.verbose):
        placement, concurrency = place(asked, growing)
        sharing = _sharing(options, asked, say)
        if sharing:
            concurrency = sharing.packing.concurrency
        elif line := shortage(asked, placement, growing):
            say(line)
        say(
            f"{book.trials} trials, {concurrency} at a time, each on {placement.workers} x"
            f" ({placement.cpus:g} CPU, {placement.gpus:g} GPU)"
        )
        splits = job.table.splits
        majority = majority_accuracy(
            job.table.labels, splits["train"].targets, splits["val"].targets
        )
        recorder = Recorder(
            book, folder, heads, book.trials, console, majority=majority, budget=book.budget
        )
        _run(recorder, job, placement, concurrency, sharing)
        if options.finalists:
            finals = FinalsBook(book.study, options.metric, options.finalists, options.repeats)
            console.print(f"{finals.total} finals, with numbers of their own", highlight=False)
            recorder = Recorder(
                finals, folder / FINALS, heads, finals.total, console, "final", majority
            )
            job = replace(job, folder=folder / FINALS)
            _run(recorder, job, placement, concurrency, sharing)


def _sharing(options: TuneOptions, asked: Resources, say: Callable[[str], None]) -> Sharing | None:
    """How trials share GPUs where raymlc finds out how many may; what else is to be said of it."""
    if options.trials_per_gpu == 1:
        return None
    if not any(node.gpus for node in living_nodes()):
        say("--trials-per-gpu changes nothing: there is no GPU to share")
        return None
    if line := mps_line():
        say(line)
    return share_gpus(asked, say) if options.trials_per_gpu == "auto" else None


def _run(
    recorder: Recorder,
    job: Job,
    placement: Placement,
    concurrency: int,
    sharing: Sharing | None,
) -> None:
    """Run all trials of a recorder."""
    try:
        with terminable():  # after Ray has begun, which has a handler of its own
            run_sweep(recorder, job, placement, concurrency, sharing)
    finally:
        recorder.close()
        # What Tune and Train wrote down for themselves: a sweep goes on from its study.
        for name in ("ray", "ray-train"):
            shutil.rmtree(job.folder / name, ignore_errors=True)
