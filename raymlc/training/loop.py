"""The training of one trial, as a generator of epochs in plain PyTorch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from raymlc.data.batches import Batch, steps_per_epoch, training_batches
from raymlc.data.store import ImageSplit
from raymlc.errors import UserError
from raymlc.model.loss import HeadLosses
from raymlc.optim.build import lr_factor, plateau_decays, set_lr
from raymlc.training.evaluate import Workers, evaluate
from raymlc.training.state import Training
from raymlc.training.step import Learner

Progress = Callable[[Iterable[Batch]], Iterable[Batch]]  # sees an epoch's batches as they go by


class Diverged(FloatingPointError):
    """A trial whose loss is no longer a finite number."""


def fit(
    training: Training,
    train: ImageSplit,
    val: ImageSplit,
    workers: Workers = Workers(),
    progress: Progress | None = None,
) -> Iterator[dict[str, float]]:
    """Train on, yielding one dict of metrics after each epoch that is left.

    Keys are TensorBoard tags: "epoch" (from 1), "lr" (the backbone's, at the epoch's last step),
    "images" (trained on so far), "train/loss" (smoothed, weighted and augmented) and
    "train/loss/HEAD", "images_per_second" (of training, over all workers) and `evaluate`'s under
    "val" for the deployed weights; with a moving average, those of the raw weights under "val_raw".
    Where a trial has them, "train/weight/HEAD" (learnt weights of the heads' losses) and
    "micro_batch_size"; on a GPU "gpu_memory_gib", the most that this worker's tensors took in the
    epoch's training. Every worker yields the same dict otherwise.
    progress: passes on an epoch's batches, which lets it show how far the epoch is.
    While the caller holds a dict, `training` is in the state it describes: that is when to save.
    Raises Diverged, with the epoch and the heads, if the epoch's loss was not finite; UserError if
    batch_size fits neither the rows nor the workers, or sync_bn not the device.
    """
    config = training.config
    if config.sync_bn and workers.size > 1 and training.device.type == "cpu":
        raise UserError("sync_bn needs GPUs, but the workers are on the CPU; set it to false there")
    losses = HeadLosses(config, training.labels, train.targets, training.device)
    learner = Learner(training, losses, workers)
    while training.epoch < config.epochs:
        learner.begin_epoch()
        if training.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(training.device)
        _seed(config.seed, training.epoch, workers.rank)
        started = time.perf_counter()
        metrics = _train_epoch(learner, train, progress)
        seconds = time.perf_counter() - started
        steps = steps_per_epoch(len(train), config.batch_size)
        training.epoch += 1
        metrics |= {
            "epoch": float(training.epoch),
            "lr": training.optimizer.param_groups[0]["lr"],
            "images": float(training.epoch * steps * config.batch_size),
            "images_per_second": steps * config.batch_size / seconds,
        }
        if training.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(training.device)
            metrics["gpu_memory_gib"] = peak / 2**30
        if training.micro_batch_size:
            metrics["micro_batch_size"] = float(training.micro_batch_size)
        yield metrics | _validate(training, val, workers)


def _validate(training: Training, val: ImageSplit, workers: Workers) -> dict[str, float]:
    """The metrics of the deployed weights and, beside a moving average, of the raw ones."""
    config = training.config
    metrics: dict[str, float] = {}
    models = {"val": training.deployed} | ({"val_raw": training.network} if training.ema else {})
    for prefix, scored in models.items():
        model = training.on_device(scored)
        _average_buffers(model, workers)
        if model is not scored:
            scored.load_state_dict(model.state_dict())
        counts = evaluate(
            model,
            training.labels,
            val,
            training.normalization,
            training.device,
            batch_size=config.batch_size // workers.size,
            precision=config.precision,
            eval_crop=config.eval_crop,
            interpolation=config.interpolation,
            workers=workers,
        )
        metrics |= counts.metrics(prefix)
        if prefix == "val":
            training.counts = counts
    training.val_losses.append(metrics["val/loss"])
    return metrics


def _train_epoch(
    learner: Learner, train: ImageSplit, progress: Progress | None
) -> dict[str, float]:
    """One epoch of steps, in which nothing waits for the device; its losses."""
    training, workers = learner.training, learner.workers
    config, device, names = training.config, training.device, training.labels.names
    steps = steps_per_epoch(len(train), config.batch_size)
    decays = plateau_decays(training.val_losses, config.patience_epochs)
    batches = training_batches(
        train, config, training.normalization, device, training.epoch, workers.rank, workers.size
    )
    summed = torch.zeros(1 + len(names), device=device)
    known = dict.fromkeys(names, 0.0)
    for step, batch in enumerate(progress(batches) if progress else batches):
        factor = lr_factor(config, training.epoch * steps + step, steps, decays)
        set_lr(training.optimizer, factor)
        summed += learner.step(batch)
        for name in names:
            known[name] += batch.known[name] * workers.size
    workers.sum_(summed)
    _check_finite(summed, names, training.epoch + 1)
    values = summed.tolist()
    metrics = {"train/loss": values[0] / (steps * workers.size)}
    for name, value in zip(names, values[1:], strict=True):
        metrics[f"train/loss/{name}"] = value / known[name] if known[name] else math.nan
    if config.task_weighting != "fixed":
        weights = training.weighting.weights().tolist()
        metrics |= {f"train/weight/{n}": w for n, w in zip(names, weights, strict=True)}
    return metrics


def _check_finite(summed: Tensor, heads: Sequence[str], epoch: int) -> None:
    finite = summed.isfinite().tolist()
    if not all(finite):
        lost = [head for head, good in zip(heads, finite[1:], strict=True) if not good]
        where = f"the loss of {', '.join(lost)}" if lost else "the loss"
        raise Diverged(f"{where} was not finite in epoch {epoch}; try a smaller lr")


def _average_buffers(model: nn.Module, workers: Workers) -> None:
    """Give every worker the same batch statistics: the mean of what the workers saw."""
    if workers.size == 1:
        return
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if buffers:
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        workers.sum_(flat)
        flat /= workers.size
        parts = flat.split_with_sizes([buffer.numel() for buffer in buffers])
        for buffer, part in zip(buffers, parts, strict=True):
            buffer.copy_(part.view_as(buffer))


def _seed(seed: int, epoch: int, rank: int) -> None:
    """Make the epoch's random numbers a function of these three alone, so that it can be redone."""
    torch.manual_seed(int(np.random.SeedSequence((seed, epoch, rank)).generate_state(1)[0]))
