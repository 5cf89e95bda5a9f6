"""A trial in its folder: trained epoch by epoch, the best kept, resumed where it was."""

from __future__ import annotations

import csv
import errno
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from raymlc.data.store import ImageSplit
from raymlc.errors import UserError
from raymlc.labels import Labels
from raymlc.metric import higher_is_better, objectives, score_of
from raymlc.training.checkpoint import (
    load_history,
    load_last,
    read_score,
    save_checkpoint,
    save_last,
)
from raymlc.training.evaluate import Workers
from raymlc.training.loop import Progress, fit
from raymlc.training.memory import keep_freed_memory
from raymlc.training.state import Training
from raymlc.trial import TrialConfig

BEST, LAST, EPOCHS, HEADS = "best", "last", "epochs", "heads"  # the folders in a trial's folder
SUMMARY = "summary.csv"

PATIENCE = 120.0  # seconds that a folder may refuse to be written
_LONGEST_PAUSE = 10.0  # seconds from one try to the next


class Unwritable(UserError):
    """A folder that could not be written for PATIENCE: no trial that keeps anything there goes on.

    All epochs before are whole.
    """


@dataclass(frozen=True)
class Keep:
    """Which checkpoints of a trial are kept, beside the best and what it needs to go on.

    top: this many best epochs, each in epochs/NNNN, the best of all among them; 1 keeps `best`
    alone. heads: for each head the epoch that was best for it, in heads/NAME, by the same metric of
    that head, or the first of several.
    """

    top: int = 1
    heads: bool = False


def run_trial(
    config: TrialConfig,
    labels: Labels,
    train: ImageSplit,
    val: ImageSplit,
    folder: Path,
    metric: str,
    device: torch.device,
    workers: Workers = Workers(),
    keep: Keep = Keep(),
    progress: Progress | None = None,
) -> Iterator[dict[str, float]]:
    """Yield the metrics of every epoch: those that `folder` already holds, then new ones.

    folder/best is the checkpoint of the epoch with the best `metric`, or the best `score_of`
    several; folder/summary.csv has a row an epoch. Each epoch is on disk before it is yielded: a
    process killed at any moment loses the epoch it was in. Only worker 0 writes. progress: as `fit`
    has it. The process keeps what memory it frees, from then on (`keep_freed_memory`).
    Raises what `fit` and `Training` raise, and Unwritable.
    """
    history = load_history(folder / LAST)
    yield from history
    if len(history) >= config.epochs:
        return
    if workers.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
    keep_freed_memory()
    training = Training(config, labels, device, fetch=not history)
    if history:
        load_last(folder / LAST, training)
    for metrics in fit(training, train, val, workers, progress):
        history.append(metrics)
        if workers.rank == 0:
            patiently(folder, partial(_keep, training, history, folder, metric, keep))
        yield metrics


def patiently(folder: Path, write: Callable[[], None]) -> None:
    """Do what writes into a folder that is there, and again for PATIENCE while that cannot be.

    A disk may get room again, and a mount come back; meanwhile nothing is written in its place.
    write: may be done again after it was done in part. Raises Unwritable.
    """
    began, pause = time.monotonic(), 0.5
    while True:
        try:
            if not folder.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
            return write()
        except (OSError, UserError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if not isinstance(cause, OSError):
                raise
            if time.monotonic() - began + pause > PATIENCE:
                raise Unwritable(
                    f"{folder} must be writable, but was not for {PATIENCE:g} s:"
                    f" {cause.strerror or cause}; once it is, --resume goes on"
                ) from error
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def best_epochs(history: Sequence[dict[str, float]], metric: str, count: int) -> list[int]:
    """The numbers of the `count` epochs with the best `score_of`, best first, of equals the first.

    Epochs in which it is not a number are left out.
    """
    sign = -1 if higher_is_better(metric) else 1
    known = [metrics for metrics in history if not math.isnan(score_of(metrics, metric))]
    known.sort(key=lambda metrics: sign * score_of(metrics, metric))
    return [int(metrics["epoch"]) for metrics in known[:count]]


def head_folder(folder: Path, labels: Labels, head: str) -> Path:
    """Where a trial keeps the checkpoint that was best for one head."""
    # Names of columns may hold what a file name must not; the place keeps them apart.
    plain = re.sub(r"[^\w.-]+", "_", head)[:60]
    return folder / HEADS / f"{labels.names.index(head)}_{plain}"


def _keep(
    training: Training, history: list[dict[str, float]], folder: Path, metric: str, keep: Keep
) -> None:
    _keep_best(training, history[-1], folder, metric, keep)
    _write_summary(folder / SUMMARY, history)
    save_last(folder / LAST, training, history)


def _keep_best(
    training: Training, metrics: dict[str, float], folder: Path, metric: str, keep: Keep
) -> None:
    places = {folder / BEST: metric}
    if keep.heads:
        kind = "/".join(objectives(metric)[0].split("/")[:2])
        places |= {
            head_folder(folder, training.labels, head): f"{kind}/{head}"
            for head in training.labels.names
            if f"{kind}/{head}" in metrics
        }
    for place, name in places.items():
        if _better(score_of(metrics, name), score_of(read_score(place), name), name):
            _save(training, metrics, place)
    if keep.top > 1:
        _keep_top(training, metrics, folder / EPOCHS, metric, keep.top)


def _keep_top(
    training: Training, metrics: dict[str, float], folder: Path, metric: str, top: int
) -> None:
    scores = [read_score(place) for place in folder.glob("[0-9]*")]
    # Of an epoch that is trained again after a kill, the checkpoint is there already.
    scores = [score for score in scores if score["epoch"] != metrics["epoch"]]
    best = best_epochs([*scores, metrics], metric, top)
    if metrics["epoch"] in best:
        _save(training, metrics, folder / f"{training.epoch:04}")
    for score in scores:
        if int(score["epoch"]) not in best:
            shutil.rmtree(folder / f"{int(score['epoch']):04}")


def _save(training: Training, metrics: dict[str, float], folder: Path) -> None:
    save_checkpoint(
        folder,
        training.deployed,
        training.config,
        training.labels,
        training.normalization,
        metrics,
        training.counts.confusion() if training.counts else {},
    )


def _better(value: float, best: float, metric: str) -> bool:
    if math.isnan(value) or math.isnan(best):
        return not math.isnan(value)
    return value > best if higher_is_better(metric) else value < best


def _write_summary(path: Path, history: Sequence[dict[str, float]]) -> None:
    columns = list(dict.fromkeys(name for metrics in history for name in metrics))
    columns.sort(key=lambda name: name != "epoch")  # it names the row
    filling = path.with_name(f".{path.name}.filling")
    filling.parent.mkdir(parents=True, exist_ok=True)
    with filling.open("w", newline="", encoding="utf-8") as file:
        lines = csv.DictWriter(file, columns, restval="")
        lines.writeheader()
        lines.writerows(history)
    os.replace(filling, path)
