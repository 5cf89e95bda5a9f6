"""The metrics of checkpoints on one split of a table, at whatever size and on whatever device.

And the labels that a checkpoint disagrees with, and its calibration. Shapes: N rows, B images of a
batch, K classes of a head, C classes with those that only the split has, M labels disagreed with.
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

from raymlc.data.duplicates import path_of
from raymlc.data.store import DEFAULT_CACHE, BrokenImages, ImageSplit, Progress, open_split
from raymlc.data.table import Split, choose_heads, read_header, read_split
from raymlc.errors import UserError, did_you_mean
from raymlc.labels import MISSING, Head, Labels
from raymlc.metric import metric_names
from raymlc.model.start import LABELS
from raymlc.training.calibration import Calibration, fit_calibration
from raymlc.training.checkpoint import Checkpoint, find
from raymlc.training.evaluate import evaluate, seen_batches
from raymlc.training.files import read_labels
from raymlc.training.inference import BatchSize, at_size, placed, precision_on

CALIBRATION_ROWS = 10_000  # for one number a head, and some thresholds


@dataclass(frozen=True)
class Mistake:
    """A label that a model disagrees with; either may be mistaken.

    image: its file. path: how the table names it. row: its place in the CSV, 1 for the first below
    the header. label, prediction: classes. class_: of a multi-hot head the class in question, whose
    label and prediction are "yes" and "no"; else "". The probabilities are the model's, in [0, 1],
    and NaN for a label that training never saw.
    """

    image: Path
    path: str
    row: int
    class_: str
    label: str
    prediction: str
    label_probability: float
    prediction_probability: float


@dataclass(frozen=True)
class Mistakes:
    """The labels of one head that a model disagrees with.

    worst: the first of them in order: the larger the probability of the prediction is beside that
    of the label, the worse. Labels that training never saw are last, since no model could have
    said them. total: how many there are in all, of how many that are known; a multi-hot head has
    one for each class of a row.
    """

    head: Head
    worst: tuple[Mistake, ...]
    total: int
    known: int


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
        checkpoint = placed(checkpoint, self.device)
        found = BatchSize(self.batch_size or checkpoint.config.batch_size, self.say).run(
            lambda size: self._found(checkpoint, most, size)
        )
        split, images = self._rows(checkpoint)
        return [one.named(split, images) for one in found]

    def _found(self, checkpoint: Checkpoint, most: int, size: int) -> list[_Found]:
        config = checkpoint.config
        found = [_Found(head, most) for head in checkpoint.labels.heads]
        for logits, batch in seen_batches(
            checkpoint.network,
            self.images(checkpoint),
            checkpoint.normalization,
            self.device,
            batch_size=size,
            precision=precision_on(self.device, config),
            eval_crop=config.eval_crop,
            interpolation=config.interpolation,
            flip=self.flip,
        ):
            for one in found:
                one.add(logits[one.head.name].float(), batch.targets[one.head.name])
        return found


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
    rows = np.arange(len(images))
    if len(rows) > CALIBRATION_ROWS:
        rows = np.linspace(0, len(rows) - 1, CALIBRATION_ROWS).astype(np.int64)
        images = replace(images, places_N=images.places_N[rows], targets=images.targets.take(rows))
    checkpoint = placed(checkpoint, device)
    logits = BatchSize(batch_size or checkpoint.config.batch_size, say).run(
        lambda size: _logits(checkpoint, images, device, size)
    )
    return fit_calibration(checkpoint.labels, logits, images.targets, split)


def _logits(
    checkpoint: Checkpoint, images: ImageSplit, device: torch.device, size: int
) -> dict[str, Tensor]:
    """Of every row, (N, K) a head, float32, on the CPU."""
    config = checkpoint.config
    parts: dict[str, list[Tensor]] = {head: [] for head in checkpoint.labels.names}
    for logits, _ in seen_batches(
        checkpoint.network,
        images,
        checkpoint.normalization,
        device,
        batch_size=size,
        precision=precision_on(device, config),
        eval_crop=config.eval_crop,
        interpolation=config.interpolation,
    ):
        for head, part in parts.items():
            part.append(logits[head].float().cpu())
    return {head: torch.cat(part) for head, part in parts.items()}


class _Found:
    """The labels of a head that were disagreed with so far, the worst `most` of them as numbers."""

    def __init__(self, head: Head, most: int) -> None:
        self.head = head
        self._most = most
        self._total = self._known = self._rows = 0
        # Row of the split, class in question, class that is predicted; -1 where there is none.
        self._numbers_M3 = np.zeros((0, 3), np.int64)
        self._probabilities_M2 = np.zeros((0, 2))  # of the label and of the prediction

    def add(self, logits_BK: Tensor, target: Tensor) -> None:
        """The next batch; target: (B,), or (B, C) of a multi-hot head."""
        which = _multi_hot if self.head.multi_hot else _single_label
        numbers_M3, probabilities_M2 = (part.cpu().numpy() for part in which(logits_BK, target))
        self._total += len(numbers_M3)
        self._known += int((target != MISSING).sum())
        numbers_M3[:, 0] += self._rows
        self._rows += len(logits_BK)
        self._numbers_M3 = np.concatenate([self._numbers_M3, numbers_M3])
        self._probabilities_M2 = np.concatenate([self._probabilities_M2, probabilities_M2])
        # NaN is sorted last, and what is equal stays in the order of rows.
        order_M = np.argsort(np.diff(-self._probabilities_M2)[:, 0], kind="stable")[: self._most]
        self._numbers_M3 = self._numbers_M3[order_M]
        self._probabilities_M2 = self._probabilities_M2[order_M]

    def named(self, split: Split, images: ImageSplit) -> Mistakes:
        """What was found, in words. split: the rows of `images`."""
        names = self.head.classes + images.targets.unseen[self.head.name]
        worst = []
        for (row, own, said), (label, prediction) in zip(
            self._numbers_M3.tolist(), self._probabilities_M2.tolist(), strict=True
        ):
            words = ("", names[own], names[said])
            if self.head.multi_hot:
                words = (names[own], "no" if said else "yes", "yes" if said else "no")
            place = split.images[row], path_of(split, row), split.rows[row]
            worst.append(Mistake(*place, *words, label, prediction))
        return Mistakes(self.head, tuple(worst), self._total, self._known)


def _single_label(logits_BK: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
    """Of the labels that are not predicted (row, label, prediction) and both probabilities."""
    said_B = logits_BK.argmax(1)
    row_M = ((target_B != MISSING) & (target_B != said_B)).nonzero()[:, 0]
    own_M, said_M = target_B[row_M], said_B[row_M]
    probabilities_MK = logits_BK[row_M].double().softmax(1)
    classes = logits_BK.shape[1]
    label_M = probabilities_MK.gather(1, own_M.clamp(max=classes - 1)[:, None])[:, 0]
    label_M = label_M.masked_fill(own_M >= classes, torch.nan)
    prediction_M = probabilities_MK.gather(1, said_M[:, None])[:, 0]
    return torch.stack([row_M, own_M, said_M], 1), torch.stack([label_M, prediction_M], 1)


def _multi_hot(logits_BK: Tensor, target_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Of the classes that are predicted otherwise (row, class, whether predicted), as above."""
    said_BC = torch.zeros_like(target_BC)
    said_BC[:, : logits_BK.shape[1]] = logits_BK > 0
    wrong_M2 = ((target_BC != MISSING) & (target_BC != said_BC)).nonzero()
    row_M, class_M = wrong_M2.unbind(1)
    said_M = said_BC[row_M, class_M]
    unseen_M = class_M >= logits_BK.shape[1]
    logit_M = logits_BK[row_M, class_M.clamp(max=logits_BK.shape[1] - 1)].double()
    label_M = (-logit_M.abs()).sigmoid().masked_fill(unseen_M, torch.nan)
    return torch.stack([row_M, class_M, said_M], 1), torch.stack([label_M, 1 - label_M], 1)


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
