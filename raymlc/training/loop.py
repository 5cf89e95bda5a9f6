"""The training of one trial, as a generator of epochs in plain PyTorch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raymlc.data.batches import Normalization, steps_per_epoch, training_batches
from raymlc.data.store import ImageSplit
from raymlc.labels import Labels
from raymlc.model.ema import EMA
from raymlc.model.loss import multi_head_loss
from raymlc.model.network import Network, build_network
from raymlc.optim.build import build_optimizer, lr_factor, set_lr
from raymlc.training.evaluate import Workers, autocast, autocast_dtype, evaluate
from raymlc.trial import TrialConfig


class Diverged(FloatingPointError):
    """A trial whose loss is no longer a finite number."""


class Training:
    """Everything that changes while a trial trains, ready for its next epoch.

    fetch: load the weights that the trial starts from; False if `load_state_dict` follows.
    Raises UserError for a backbone, weights or optimizer that cannot be had.
    """

    def __init__(
        self, config: TrialConfig, labels: Labels, device: torch.device, fetch: bool = True
    ) -> None:
        torch.manual_seed(config.seed)  # so that the heads start alike on every worker
        self.config = config
        self.labels = labels
        self.device = device
        network = build_network(config, labels, fetch)
        self.normalization = normalization_of(network)
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.network: Network = network.to(device, memory_format=layout)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(config, self.network)
        self.dtype = autocast_dtype(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.ema = EMA(self.network, config.ema_decay) if config.ema_decay else None
        self.epoch = 0  # epochs done

    @property
    def deployed(self) -> nn.Module:
        """The model that is scored and stored: the moving average where the trial keeps one."""
        return self.ema.model if self.ema else self.network

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to go on as if nothing had happened.

        No state of random generators: each epoch seeds its own.
        """
        return {
            "epoch": self.epoch,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the state_dict of a training of the same trial."""
        self.epoch = state["epoch"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])


def normalization_of(network: Network) -> Normalization:
    """The pixel statistics that the backbone's pretrained weights expect."""
    settings: dict[str, Any] = network.backbone.pretrained_cfg  # type: ignore[assignment]
    return Normalization(tuple(settings["mean"]), tuple(settings["std"]))


def fit(
    training: Training,
    train: ImageSplit,
    val: ImageSplit,
    workers: Workers = Workers(),
) -> Iterator[dict[str, float]]:
    """Train on, yielding one dict of metrics after each epoch that is left.

    Keys are TensorBoard tags: "epoch" (from 1), "lr" (the backbone's, at the epoch's last step),
    "train/loss" (smoothed and augmented), "images_per_second" (of training, over all workers) and
    `evaluate`'s under "val" for the deployed weights; with a moving average, those of the raw
    weights under "val_raw". Every worker yields the same dict.
    While the caller holds a dict, `training` is in the state it describes: that is when to save.
    Raises Diverged, with the epoch and the heads, if the epoch's loss was not finite; UserError if
    batch_size fits neither the rows nor the workers.
    """
    config = training.config
    model = workers.wrap(training.network)
    while training.epoch < config.epochs:
        _seed(config.seed, training.epoch, workers.rank)
        started = time.perf_counter()
        loss = _train_epoch(training, model, train, workers)
        seconds = time.perf_counter() - started
        steps = steps_per_epoch(len(train), config.batch_size)
        training.epoch += 1
        metrics = {
            "epoch": float(training.epoch),
            "lr": training.optimizer.param_groups[0]["lr"],
            "train/loss": loss,
            "images_per_second": steps * config.batch_size / seconds,
        }
        models = {"val": training.deployed} | (
            {"val_raw": training.network} if training.ema else {}
        )
        for prefix, scored in models.items():
            _average_buffers(scored, workers)
            metrics |= evaluate(
                scored,
                training.labels,
                val,
                training.normalization,
                training.device,
                batch_size=config.batch_size // workers.size,
                precision=config.precision,
                prefix=prefix,
                workers=workers,
            )
        yield metrics


def _train_epoch(
    training: Training, model: nn.Module, train: ImageSplit, workers: Workers
) -> float:
    """One epoch of steps; the mean loss of its steps. Nothing in a step waits for the device."""
    config, device, optimizer = training.config, training.device, training.optimizer
    steps = steps_per_epoch(len(train), config.batch_size)
    loss_sum = torch.zeros((), device=device)
    head_sums = {head: torch.zeros((), device=device) for head in training.labels.names}
    batches = training_batches(
        train, config, training.normalization, device, training.epoch, workers.rank, workers.size
    )
    model.train()
    for step, batch in enumerate(batches):
        set_lr(optimizer, lr_factor(config, training.epoch * steps + step, steps))
        with autocast(training.dtype, device):
            logits = model(batch.images_BCHW)
        loss, sums = multi_head_loss(logits, batch.targets, batch.known, config.smoothing)
        training.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if config.clip_grad:
            training.scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(training.network.parameters(), config.clip_grad, foreach=True)
        training.scaler.step(optimizer)
        training.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if training.ema:
            training.ema.update()
        loss_sum += loss.detach()
        for head, value in sums.items():
            head_sums[head] += value
    summed = torch.stack([loss_sum, *head_sums.values()])
    workers.sum_(summed)
    _check_finite(summed, list(head_sums), training.epoch + 1)
    return float(summed[0]) / (steps * workers.size)


def _check_finite(summed: Tensor, heads: list[str], epoch: int) -> None:
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
