"""The labels of a split that a model disagrees with; either may be mistaken.

Shapes: B images of a batch, K classes of a head, C classes with those that only the split has, M
labels disagreed with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raymlc.data.duplicates import path_of
from raymlc.data.store import ImageSplit
from raymlc.data.table import Split
from raymlc.labels import MISSING, Head
from raymlc.training.checkpoint import Checkpoint
from raymlc.training.inference import BatchSize, checkpoint_batches, placed


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


def mistakes_on(
    split: Split,
    images: ImageSplit,
    checkpoint: Checkpoint,
    device: torch.device,
    most: int,
    sizes: BatchSize,
    flip: bool = False,
) -> list[Mistakes]:
    """The labels of a split that a checkpoint disagrees with, by head, the worst `most` of each.

    images: of the same rows, at the checkpoint's size. flip: as `evaluate` has it.
    Raises UserError where the device has not the memory for one image.
    """
    checkpoint = placed(checkpoint, device)
    found = sizes.run(lambda size: _found(images, checkpoint, device, most, size, flip))
    return [one.named(split, images) for one in found]


def _found(
    images: ImageSplit,
    checkpoint: Checkpoint,
    device: torch.device,
    most: int,
    size: int,
    flip: bool,
) -> list[_Found]:
    found = [_Found(head, most) for head in checkpoint.labels.heads]
    for logits, batch in checkpoint_batches(checkpoint, images, device, size, flip):
        for one in found:
            one.add(logits[one.head.name].float(), batch.targets[one.head.name])
    return found


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
