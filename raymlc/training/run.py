"""A trial in its folder: trained epoch by epoch, its best checkpoint kept, resumed where it was."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch

from raymlc.data.store import ImageSplit
from raymlc.labels import Labels
from raymlc.metric import higher_is_better
from raymlc.training.checkpoint import (
    load_history,
    load_last,
    read_score,
    save_checkpoint,
    save_last,
)
from raymlc.training.evaluate import Workers
from raymlc.training.loop import Training, fit
from raymlc.trial import TrialConfig

BEST, LAST = "best", "last"  # the folders in a trial's folder


def run_trial(
    config: TrialConfig,
    labels: Labels,
    train: ImageSplit,
    val: ImageSplit,
    folder: Path,
    metric: str,
    device: torch.device,
    workers: Workers = Workers(),
) -> Iterator[dict[str, float]]:
    """Yield the metrics of every epoch: those that `folder` already holds, then new ones.

    folder/best is the checkpoint of the epoch with the best `metric`. Each epoch is on disk before
    it is yielded: a process killed at any moment loses the epoch it was in. Only worker 0 writes.
    Raises what `fit` and `Training` raise.
    """
    history = load_history(folder / LAST)
    yield from history
    if len(history) >= config.epochs:
        return
    training = Training(config, labels, device, fetch=not history)
    if history:
        load_last(folder / LAST, training)
    best = read_score(folder / BEST)
    for metrics in fit(training, train, val, workers):
        if _better(metrics[metric], best.get(metric, math.nan), metric):
            best = metrics
            if workers.rank == 0:
                save_checkpoint(
                    folder / BEST,
                    training.deployed,
                    config,
                    labels,
                    training.normalization,
                    metrics,
                )
        history.append(metrics)
        if workers.rank == 0:
            save_last(folder / LAST, training, history)
        yield metrics


def _better(value: float, best: float, metric: str) -> bool:
    if math.isnan(value) or math.isnan(best):
        return not math.isnan(value)
    return value > best if higher_is_better(metric) else value < best
