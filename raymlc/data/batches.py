"""Batches of a decoded split, for training and for evaluation, alone or as one of several workers.

Shapes: B images of a batch, C = 3 channels, H and W pixels, T target columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymlc.data.augment import augment
from raymlc.data.device import images_on_device, on_device
from raymlc.data.geometry import central, resample
from raymlc.data.mixing import mix_
from raymlc.data.store import ImageSplit
from raymlc.errors import UserError
from raymlc.labels import MISSING
from raymlc.trial import TrialConfig

# Values of images that several steps have augmented at once: as float32 28 MiB, of memory that is
# used again, since the C library gives more than 32 MiB back to the system each time.
_TOGETHER = 7 * 2**20


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each RGB channel, pixels in [0, 1], as the backbone has it."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """uint8 images as normalised float32 ones."""
        mean_C11, std_C11 = _on_device(self, images_BCHW.device)
        return images_BCHW.to(torch.float32, copy=True).sub_(mean_C11).div_(std_C11)

    def pixels(self, images_BCHW: Tensor) -> Tensor:
        """Normalised images as uint8 ones again, for people to look at."""
        mean_C11, std_C11 = _on_device(self, images_BCHW.device)
        return (images_BCHW * std_C11 + mean_C11).round_().clamp_(0, 255).to(torch.uint8)


@lru_cache
def _on_device(normalization: Normalization, device: torch.device) -> tuple[Tensor, Tensor]:
    # Once a process: copying a list to a GPU waits for it.
    mean_C = torch.tensor(normalization.mean, dtype=torch.float32, device=device) * 255
    std_C = torch.tensor(normalization.std, dtype=torch.float32, device=device) * 255
    return mean_C.view(-1, 1, 1), std_C.view(-1, 1, 1)


@dataclass(frozen=True)
class Batch:
    """One worker's part of a step.

    images_BCHW: normalised float32, channels last in memory.
    targets: each head's int64 targets, (B,) for a single-label head, (B, classes) for multi-hot.
    known: for each head the number of labels that are not missing in the whole step, divided by
        the workers: a sum of losses over `known`, averaged over workers, is the mean of the step.
    mixed_targets: the targets of the images mixed into these, in the form of targets; None where
        nothing is mixed. The loss is share times that of targets plus 1 - share times that of
        mixed_targets, both over `known`: the mixed images are the worker's own in another order, so
        they have as many labels.
    share: of each image its own share, in [0, 1].
    """

    images_BCHW: Tensor
    targets: dict[str, Tensor]
    known: dict[str, float]
    mixed_targets: dict[str, Tensor] | None = None
    share: float = 1.0

    def __len__(self) -> int:
        return len(self.images_BCHW)

    def parts(self, size: int) -> Iterator[Batch]:
        """The batch in consecutive parts of at most `size` rows, as alike in length as can be.

        So no part has a single row, which batch norm could not take, unless size is 1, or 2 and the
        rows are odd. The tensors are views; `known` and `share` are those of the whole.
        """
        count = max(math.ceil(len(self) / size), 1)
        targets = _split(self.targets, count)
        mixed = _split(self.mixed_targets, count) if self.mixed_targets else [None] * count
        images = self.images_BCHW.tensor_split(count)
        for part in zip(images, targets, mixed, strict=True):
            yield Batch(part[0], part[1], self.known, part[2], self.share)


def _split(targets: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    parts = {head: target.tensor_split(count) for head, target in targets.items()}
    return [{head: parts[head][index] for head in parts} for index in range(count)]


def check_batch_size(batch_size: int, rows: int, workers: int) -> None:
    """Raises UserError if the rows do not fill a step, or the workers cannot share one."""
    if rows < batch_size:
        raise UserError(
            f"batch_size must be at most the number of training rows, but is {batch_size} for"
            f" {rows} rows; lower batch_size"
        )
    if batch_size % workers:
        raise UserError(
            f"the workers share batch_size, so they must divide it, but {workers} workers do not"
            f" divide {batch_size}; change --workers or batch_size"
        )


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Full batches in an epoch; the rows left over are others in each epoch."""
    return rows // batch_size


def training_batches(
    data: ImageSplit,
    config: TrialConfig,
    normalization: Normalization,
    device: torch.device,
    epoch: int,
    rank: int = 0,
    workers: int = 1,
) -> Iterator[Batch]:
    """Shuffled, augmented batches of one epoch; each worker gets its part of each step.

    The order depends on (seed, epoch) alone, so that several workers share one epoch.
    Raises UserError as `check_batch_size` does.
    """
    check_batch_size(config.batch_size, len(data), workers)
    order_N = np.random.default_rng((config.seed, epoch)).permutation(len(data))
    steps = steps_per_epoch(len(data), config.batch_size)
    order_SB = order_N[: steps * config.batch_size].reshape(steps, -1)
    part = config.batch_size // workers
    together = _steps_together(data, part) if config.augment else 1
    for first in range(0, steps, together):
        rows_SB = order_SB[first : first + together]
        mine_SB = rows_SB[:, rank * part : (rank + 1) * part]
        pixels_BCHW = _pixels(data, mine_SB.ravel(), device)
        if config.augment:
            images_BCHW = augment(pixels_BCHW, config, normalization)
        else:
            images_BCHW = normalization(pixels_BCHW)
        for place, (rows, mine) in enumerate(zip(rows_SB, mine_SB, strict=True)):
            images = images_BCHW[place * part : (place + 1) * part]
            targets = _targets(data, mine, device)
            known = {head: count / workers for head, count in _known(data, rows).items()}
            share = mix_(images, config, epoch, first + place) if config.augment else 1.0
            mixed = {head: own.flip(0) for head, own in targets.items()} if share < 1 else None
            yield Batch(images, targets, known, mixed, share)


def _steps_together(data: ImageSplit, images: int) -> int:
    """Steps of so many images each that are augmented at once: few cost nearly as much as many."""
    return max(_TOGETHER // (images * math.prod(data.images_NHWC.shape[1:])), 1)


def evaluation_batches(
    data: ImageSplit,
    batch_size: int,
    normalization: Normalization,
    device: torch.device,
    rank: int = 0,
    workers: int = 1,
    eval_crop: float = 1.0,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
) -> Iterator[Batch]:
    """Every row once, never augmented; of several workers each gets every workers-th row.

    eval_crop: side of the central part that is seen, as a share of the image's, in (0, 1]; it is
        enlarged to the whole size by `interpolation`. 1.0 leaves an image as it is.
    Parts may differ by a row: counts are summed, so no row is padded or counted twice.
    """
    mine_N = np.arange(rank, len(data), workers)
    for start in range(0, len(mine_N), batch_size):
        rows = mine_N[start : start + batch_size]
        pixels_BCHW = _pixels(data, rows, device)
        images_BCHW = evaluation_images(pixels_BCHW, normalization, eval_crop, interpolation)
        yield Batch(images_BCHW, _targets(data, rows, device), _known(data, rows))


def evaluation_images(
    pixels_BCHW: Tensor,
    normalization: Normalization,
    eval_crop: float,
    interpolation: Literal["bilinear", "bicubic"],
) -> Tensor:
    """uint8 images as evaluation and prediction see them: normalised, the central part enlarged.

    eval_crop, interpolation: as `evaluation_batches` has them. Channels last in memory.
    """
    images_BCHW = normalization(pixels_BCHW)
    images_BCHW = resample(images_BCHW, central(len(images_BCHW), eval_crop), interpolation)
    return images_BCHW.contiguous(memory_format=torch.channels_last)


def _pixels(data: ImageSplit, rows: NDArray[np.int64], device: torch.device) -> Tensor:
    # Stored with channels last; the permuted view keeps that layout, which the network likes.
    return images_on_device(data.images_NHWC, data.places_N[rows], device).permute(0, 3, 1, 2)


def _targets(data: ImageSplit, rows: NDArray[np.int64], device: torch.device) -> dict[str, Tensor]:
    targets_BT = on_device(data.targets.values_NT[rows], device)
    multi_hot = data.targets.multi_hot
    return {
        head: targets_BT[:, columns] if multi_hot[head] else targets_BT[:, columns.start]
        for head, columns in data.targets.columns.items()
    }


def _known(data: ImageSplit, rows: NDArray[np.int64]) -> dict[str, float]:
    # All columns of a multi-hot head are missing together, so its first one tells.
    return {
        head: float((data.targets.values_NT[rows, columns.start] != MISSING).sum())
        for head, columns in data.targets.columns.items()
    }
