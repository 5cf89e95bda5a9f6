"""The metrics of checkpoints on one split of a table, at whatever size and on whatever device.

And a checkpoint's calibration. Shapes: N rows, K classes of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymlc.data.store import DEFAULT_CACHE, BrokenImages, ImageSplit, Progress, open_split
from raymlc.data.table import Split, choose_heads, read_header, read_split
from raymlc.errors import UserError, did_you_mean
from raymlc.labels import Labels
from raymlc.metric import metric_names
from raymlc.model.start import LABELS
from raymlc.training.calibration import Calibration, fit_calibration
from raymlc.training.checkpoint import Checkpoint, find
from raymlc.training.evaluate import evaluate
from raymlc.training.files import read_labels
from raymlc.training.inference import BatchSize, at_size, checkpoint_batches, placed, precision_on
from raymlc.training.mistakes import Mistakes, mistakes_on

CALIBRATION_ROWS = 10_000  # for one number a head, and some thresholds


@dataclass(frozen=True)
class Scorer:
    """Scores checkpoints on the rows of one CSV file, whose images are opened once for each size.

    prefix: what metrics are named after. batch_size, image_size: by default each checkpoint's own.
    flip: as `evaluate` has it. say: is told what a person should know. allow_outside: as of
    `read_table`. The others: as `open_split`.
    """

    csv: Path
    prefix: str
    device: torch.device
    say: Callable[[str], None]
    batch_size: int | None = None
    image_size: int | None = None
    flip: bool = False
    cache: Path = DEFAULT_CACHE
    broken: BrokenImages = "stop"
    progress: Progress | None = None
    allow_outside: bool = False
    _splits: dict[tuple[Labels, int], tuple[Split, ImageSplit]] = field(
        default_factory=dict, init=False, repr=False
    )

    def fitted(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint at the size that is asked for.

        Raises UserError if the table lacks a head of it, or the backbone does not take the size.
        """
        choose_heads(read_header(self.csv), checkpoint.labels.names, self.csv.name)
        return at_size(checkpoint, self.image_size or checkpoint.config.image_size)

    def images(self, checkpoint: Checkpoint) -> ImageSplit:
        """The rows as a fitted checkpoint sees them; `say` is told which are left out or unseen.

        Raises UserError for the table's own faults, which no other checkpoint would mend.
        """
        return self._rows(checkpoint)[1]

    def _rows(self, checkpoint: Checkpoint) -> tuple[Split, ImageSplit]:
        key = checkpoint.labels, checkpoint.config.image_size
        if key not in self._splits:
            split = read_split(self.csv, checkpoint.labels, self.allow_outside)
            images = open_split(split, key[1], self.cache, self.broken, self.progress)
            self._splits[key] = split.take(images.places_N.tolist()), images
            if images.skipped:
                self.say(f"{images.skipped} rows left out: their images cannot be read")
            for line in checkpoint.labels.unseen_lines(images.targets):
                self.say(line)
        return self._splits[key]

    def row(self, checkpoint: Checkpoint, name: str) -> dict[str, Any]:
        """What is to be said of a fitted checkpoint, by column; its metrics are the last of them.

        Raises UserError where the device has not the memory for one image.
        """
        images, config = self.images(checkpoint), checkpoint.config
        checkpoint = placed(checkpoint, self.device)
        counts = BatchSize(self.batch_size or config.batch_size, self.say).run(
            lambda size: evaluate(
                checkpoint.network,
                checkpoint.labels,
                images,
                checkpoint.normalization,
                self.device,
                batch_size=size,
                precision=precision_on(self.device, config),
                eval_crop=config.eval_crop,
                interpolation=config.interpolation,
                flip=self.flip,
            )
        )
        return {
            "checkpoint": name,
            "backbone": config.backbone,
            "image_size": config.image_size,
            "param_count": sum(weight.numel() for weight in checkpoint.network.parameters()),
            "weights": checkpoint.origin,
            "epoch": checkpoint.metrics.get("epoch", ""),
            **counts.metrics(self.prefix),
        }

    def mistakes(self, checkpoint: Checkpoint, most: int) -> list[Mistakes]:
        """The labels that a fitted checkpoint disagrees with, by head, the worst `most` of each.

        Raises UserError where the device has not the memory for one image.
        """
        split, images = self._rows(checkpoint)
        size = self.batch_size or checkpoint.config.batch_size
        sizes = BatchSize(size, self.say)
        return mistakes_on(split, images, checkpoint, self.device, most, sizes, self.flip)


def sampled(images: ImageSplit) -> ImageSplit:
    """The images, or CALIBRATION_ROWS of them, evenly spread."""
    if len(images) <= CALIBRATION_ROWS:
        return images
    rows_N = np.linspace(0, len(images) - 1, CALIBRATION_ROWS).astype(np.int64)
    return replace(images, places_N=images.places_N[rows_N], targets=images.targets.take(rows_N))


def calibrated(
    checkpoint: Checkpoint,
    images: ImageSplit,
    split: str,
    device: torch.device,
    say: Callable[[str], None],
    batch_size: int | None = None,
) -> Calibration:
    """How the checkpoint's logits become probabilities that fit rows which it was not trained on.

    Of more than CALIBRATION_ROWS rows so many are taken, evenly spread. split: their name.
    batch_size, say: as `Scorer` has them.
    Raises UserError where the device has not the memory for one image.
    """
    images = sampled(images)
    checkpoint = placed(checkpoint, device)
    logits = BatchSize(batch_size or checkpoint.config.batch_size, say).run(
        lambda size: _logits(checkpoint, images, device, size)
    )
    return fit_calibration(checkpoint.labels, logits, images.targets, split)


def _logits(
    checkpoint: Checkpoint, images: ImageSplit, device: torch.device, size: int
) -> dict[str, Tensor]:
    """Of every row, (N, K) a head, float32, on the CPU."""
    parts: dict[str, list[Tensor]] = {head: [] for head in checkpoint.labels.names}
    for logits, _ in checkpoint_batches(checkpoint, images, device, size):
        for head, part in parts.items():
            part.append(logits[head].float().cpu())
    return {head: torch.cat(part) for head, part in parts.items()}


def heads_of(folders: Iterable[Path]) -> tuple[str, ...]:
    """The heads of all checkpoints that can be read, each once."""
    names: dict[str, None] = {}
    for folder in folders:
        with suppress(OSError, KeyError, TypeError, ValueError):
            names |= dict.fromkeys(read_labels((find(folder) or folder) / LABELS).names)
    return tuple(names)


def check_sort(sort_by: str, prefix: str, heads: Iterable[str]) -> None:
    """Raises UserError, with the nearest names, for a metric that no head of any kind reports."""
    known = [f"{prefix}{name.removeprefix('val')}" for name in metric_names(heads)]
    if sort_by not in known:
        means = ", ".join(name for name in known if name.count("/") == 1)
        way_out = did_you_mean(sort_by, known, f"choose from {means}, or one of them of a head")
        raise UserError(f"--sort-by must be a metric of the split, but is {sort_by!r}; {way_out}")
