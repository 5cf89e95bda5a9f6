"""From checked options to one trained trial: in this process, or in the workers of a Ray."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Generator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from torch import Tensor

from raymlc.cluster.images import files_of, open_images
from raymlc.cluster.worker import FAILURES, Job, TrialFailed, TrialRunner, failure_line
from raymlc.data.batches import check_batch_size, steps_per_epoch, training_batches
from raymlc.data.table import Table
from raymlc.errors import UserError
from raymlc.model.network import build_network
from raymlc.model.start import start_lines
from raymlc.optim.build import build_optimizer
from raymlc.options import TrainOptions, lasting
from raymlc.training.checkpoint import load_history, read_score
from raymlc.training.metrics import majority_accuracy
from raymlc.training.run import BEST, LAST, SUMMARY, Keep
from raymlc.training.state import normalization_of
from raymlc.trial import TrialConfig
from raymlc.watch.finish import finish
from raymlc.watch.recorder import terminable
from raymlc.watch.tensorboard import EventFile
from raymlc.watch.terminal import quiet_console
from raymlc.watch.training import TrainingLines, table_of_heads
from raymlc.watch.winner import show_winner

# Ray takes seconds to import, and a training in its own process needs none: functions import it.
if TYPE_CHECKING:
    from raymlc.cluster.sweep import Resources

_SHOWN = 16  # training images in TensorBoard


def check_trial(
    options: TrainOptions, folder: Path, config: TrialConfig, table: Table, console: Console
) -> tuple[int, Tensor]:
    """Build what the trial trains, and decode its images.

    In this order, since a wrong name is known in a second and the images may take an hour.
    Returns the number of steps in an epoch, and uint8 training images (B, 3, H, W) as the network
    will see such, augmented.
    Raises UserError for names, weights or images that cannot be had, and for a batch_size that fits
    neither rows nor workers.
    """
    begun = bool(load_history(folder / LAST))
    network = build_network(config, table.labels, fetch=not begun)
    build_optimizer(config, network)
    if options.address is not None:
        _check_nodes(options, options.address, config, table)
    train = open_images(options, table, "train", [config.image_size], console)
    open_images(options, table, "val", [config.image_size], console)
    check_batch_size(config.batch_size, len(train), options.workers)
    normalization = normalization_of(network, config.normalization)
    batch = next(training_batches(train, config, normalization, torch.device("cpu"), epoch=0))
    seen = normalization.pixels(batch.images_BCHW[:_SHOWN])
    return steps_per_epoch(len(train), config.batch_size), seen


def _check_nodes(options: TrainOptions, address: str, config: TrialConfig, table: Table) -> None:
    from raymlc.cluster.sweep import check_cluster

    weights = [Path(config.weights)] if config.weights else []
    folder = options.output.absolute()
    check_cluster(address, options.verbose, _asked(options), folder, [*files_of(table), *weights])


def _asked(options: TrainOptions) -> Resources:
    from raymlc.cluster.sweep import Resources

    return Resources(
        options.workers, True, options.cpus_per_worker, options.gpus_per_worker, concurrency=1
    )


def train_trial(
    options: TrainOptions,
    folder: Path,
    config: TrialConfig,
    table: Table,
    steps: int,
    seen: Tensor,
    console: Console,
) -> int:
    """Train a trial in its folder and say how it goes: 0 well, 1 failed, 130 Ctrl-C.

    steps, seen: as `check_trial` returns them.
    Raises UserError for a Ray that cannot be had.
    """
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    said = quiet_console(console, options.quiet)
    news = [*start_lines(config.weights, table.labels), f"the training is kept in {folder}"]
    for line in news:
        said.print(line, highlight=False, soft_wrap=True, markup=False)
    lines = TrainingLines(
        said,
        options.metric,
        table.labels.names,
        steps * config.batch_size,
        config.epochs,
        len(load_history(folder / LAST)),
    )
    job = Job(
        table,
        folder,
        lasting(options.cache),
        options.broken_images,
        options.metric,
        Keep(options.keep, options.keep_heads),
    )
    events = EventFile(folder)
    events.images("train/images", seen)
    failure = ""
    try:
        with terminable(), closing(_epochs(options, job, config, lines, said)) as epochs:
            for metrics in epochs:
                events.epoch(metrics)
                lines.epoch(metrics)
    except KeyboardInterrupt:
        command = ["python", "-m", "raymlc.train", "--output", str(folder.parent)]
        command += ["--name", folder.name, "--resume"]
        say(f"interrupted; every finished epoch is kept. Go on with:\n  {shlex.join(command)}")
        return 130
    except UserError:
        raise
    except (*FAILURES, TrialFailed) as error:
        failure = failure_line(error)
    finally:
        lines.close()
        events.close()
    best = read_score(folder / BEST)
    if best:
        changed = {n: v for n, v in config.to_dict().items() if v != TrialConfig().to_dict()[n]}
        events.end({n: v for n, v in changed.items() if not isinstance(v, dict)}, best)
        _conclude(options, folder, table, best, console)
    if failure:
        say(f"the training failed: {failure}")
    return 1 if failure else 0


def _epochs(
    options: TrainOptions, job: Job, config: TrialConfig, lines: TrainingLines, console: Console
) -> Generator[dict[str, float], None, None]:
    if options.workers == 1 and options.trainer == "process" and options.address is None:
        gpu = torch.cuda.is_available() and options.gpus_per_worker != 0
        if options.cpus_per_worker:
            torch.set_num_threads(max(1, int(options.cpus_per_worker)))
        device = torch.device("cuda" if gpu else "cpu")
        yield from TrialRunner(job).epochs(job.folder, config, device, progress=lines.batches)
        return
    from raymlc.cluster.sweep import place, ray_session, shortage
    from raymlc.cluster.train import TrialTrainer

    asked = _asked(options)
    try:
        with ray_session(options.address, options.verbose):
            growing = options.address is not None
            placement, _ = place(asked, growing)
            if line := shortage(asked, placement, growing):
                console.print(line, highlight=False, soft_wrap=True, markup=False)
            with closing(
                TrialTrainer(job, "trial", options.workers, placement.cpus, placement.gpus)
            ) as trainer:
                yield from trainer.epochs(job.folder, config)
    finally:
        shutil.rmtree(job.folder / "ray-train", ignore_errors=True)


def _conclude(
    options: TrainOptions, folder: Path, table: Table, best: dict[str, float], console: Console
) -> None:
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)
    majority = majority_accuracy(
        table.labels, table.splits["train"].targets, table.splits["val"].targets
    )
    title = f"epoch {best['epoch']:.0f}, the best by {options.metric}, on val"
    console.print(table_of_heads(best, table.labels.names, majority, title))
    for line in table.labels.unseen_lines(table.splits["val"].targets):
        say(line)
    say(f"checkpoint: {folder / BEST}")
    say(f"all epochs: {folder / SUMMARY}")
    say(f"TensorBoard: tensorboard --logdir {shlex.quote(str(folder))}")
    show_winner(folder, table, options.cache, options.broken_images, console)
    finish(folder / BEST, table, options.cache, options.broken_images, console)
