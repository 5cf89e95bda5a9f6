"""A step of a training: gradients of a batch, over the workers, and the optimizer's move.

Shapes: B images, F features.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor

from raymlc.data.batches import Batch
from raymlc.model.loss import HeadLosses
from raymlc.model.network import WithFeatures
from raymlc.optim.clip import clip_gradients
from raymlc.training.evaluate import Workers, autocast
from raymlc.training.state import Training


class Learner:
    """What takes the steps of a training: the wrapped network and its losses.

    Call `begin_epoch` before an epoch's steps.
    """

    def __init__(self, training: Training, losses: HeadLosses, workers: Workers) -> None:
        self.training, self.losses, self.workers = training, losses, workers
        self._frozen: bool | None = None  # not yet wrapped

    def begin_epoch(self) -> None:
        """Bring the network into the mode of the epoch that comes, frozen or not."""
        training = self.training
        network = training.network
        if self._frozen != training.frozen:
            self._frozen = training.frozen
            network.backbone.requires_grad_(not self._frozen)
            # Anew when the backbone thaws: an average of gradients knows which parameters train.
            self._model = self.workers.wrap(WithFeatures(network, training.config.compile))
        self._observes = training.weighting.needs_features and not self._frozen
        self._model.train()
        if self._frozen:
            network.backbone.eval()  # its batch statistics stay, too

    def step(self, batch: Batch) -> Tensor:
        """Take a step; returns the step's loss and then each head's summed loss, of this worker.

        Out of memory, it is taken again with half as many images at a time: the same step, but for
        the random numbers of dropout and the batches that batch norm sees.
        """
        while True:
            try:
                sums = self._gradients(batch)
                break
            except torch.OutOfMemoryError:
                size = self.training.micro_batch_size or len(batch)
                # Other workers may have averaged gradients that this one has lost.
                if size <= 2 or self.workers.size > 1:
                    raise
            self.training.micro_batch_size = max(size // 2, 2)
            self.training.optimizer.zero_grad(set_to_none=True)
            self.training.weighting.forget()
            if self.training.device.type == "cuda":
                torch.cuda.empty_cache()
        self._move()
        return sums

    def _gradients(self, batch: Batch) -> Tensor:
        """Add up the gradients of a batch, some images at a time."""
        training, weighting = self.training, self.training.weighting
        size = training.micro_batch_size or len(batch)
        sums = torch.zeros(1 + len(training.labels.names), device=training.device)
        left = len(batch)
        for part in batch.parts(size):
            left -= len(part)
            with self._unsynced() if left else nullcontext():
                with autocast(training.dtype, training.device):
                    logits, features_BF = self._model(part.images_BCHW)
                heads = self.losses(logits, part.targets, part.mixed_targets, part.share)
                loss = weighting.combine(heads, batch.known, len(part) / len(batch))
                if self._observes:
                    weighting.observe(heads, batch.known, features_BF)
                training.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            sums += torch.stack([loss.detach(), *(value.detach() for value in heads.values())])
        return sums

    def _unsynced(self) -> AbstractContextManager[object]:
        """Where gradients are added up and not yet averaged over the workers."""
        if self.workers.size == 1:
            return nullcontext()
        return cast(AbstractContextManager[object], self._model.no_sync())  # type: ignore[operator]

    def _move(self) -> None:
        training, optimizer = self.training, self.training.optimizer
        if self.workers.size > 1:
            for parameter in training.weighting.parameters():  # which no wrapped network holds
                if parameter.grad is not None:
                    self.workers.sum_(parameter.grad)
                    parameter.grad /= self.workers.size
        if training.config.clip_grad:
            training.scaler.unscale_(optimizer)
            clip_gradients(training.config, training.network)
        training.scaler.step(optimizer)
        training.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if self._observes:
            training.weighting.update(self.workers.sum_, self.workers.size)
        if training.ema:
            training.ema.update()
