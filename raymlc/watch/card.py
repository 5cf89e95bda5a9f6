"""The model card of a checkpoint: what it was made of, what it can do and what it cannot."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

import numpy as np
from numpy.typing import NDArray

from raymlc.labels import MISSING, Head, Targets
from raymlc.training.calibration import BINS, CALIBRATION, Calibration
from raymlc.training.checkpoint import Checkpoint
from raymlc.training.files import TRIAL, version
from raymlc.training.metrics import majority_accuracy

CARD = "README.md"  # beside a checkpoint's weights
_ORIGINS = {
    "raw": "as trained",
    "ema": "the moving average of those trained",
    "average": "the mean of several checkpoints",
}
_COLUMNS = ("head", "says", "labels", "accuracy", "majority class", "balanced accuracy", "macro F1")
_MOST = 200  # classes of a head that are named
_RARE = 10  # training rows below which a class is called rare


@dataclass(frozen=True)
class Measured:
    """The rows that a card has numbers of, and those that the network was trained on, if known.

    split: what metrics are named after, such as "val". csv, train_csv: names of their files.
    """

    split: str
    csv: str
    targets: Targets
    metrics: Mapping[str, float]
    train_csv: str
    train: Targets | None


def model_card(
    checkpoint: Checkpoint, calibration: Calibration, measured: Measured, day: date
) -> str:
    """The card as Markdown, in which names and labels are escaped; it names no folder."""
    labels, config = checkpoint.labels, checkpoint.config
    parameters = sum(weight.numel() for weight in checkpoint.network.parameters())
    epoch = checkpoint.metrics.get("epoch", math.nan)
    of_epoch = "" if math.isnan(epoch) else f", of epoch {epoch:.0f}"
    lines = [
        f"# {', '.join(map(escaped, labels.names))}: an image classifier",
        "",
        f"{escaped(config.backbone)} of timm with {_many(len(labels.heads), 'head')},"
        f" {parameters / 1e6:,.1f} million parameters. The weights are"
        f" {_ORIGINS[checkpoint.origin]}{of_epoch}. Written on {day.isoformat()} by raymlc"
        f" {version()}; `{TRIAL}` has all settings of the training.",
        "",
        *_use(labels.names),
        *_numbers(checkpoint, calibration, measured),
        *_calibration(labels.heads, calibration, measured),
        *_data(labels.heads, measured),
        *_preprocessing(checkpoint),
        *_limits(checkpoint, calibration, measured),
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """A text on one line of Markdown, in a table or out of it, as it reads to a person."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return re.sub(r"([\\`*_\[\]<>#|~&$:@])", r"\\\1", line) or "(blank)"


def _use(heads: Sequence[str]) -> list[str]:
    return [
        "## Use",
        "",
        "```python",
        "from raymlc import load",
        "",
        'model = load("FOLDER")  # this folder',
        'answers = model(["photo.jpg"])[0]',
        f"# answers[{_literal(heads[0])}].label, .probabilities; files, Pillow images or uint8",
        "```",
        "",
        "```sh",
        "python -m raymlc.predict FOLDER photos/ --output labels.csv",
        "```",
        "",
        "Neither needs the table that it was trained on, or Ray.",
        "",
    ]


def _literal(name: str) -> str:
    """A text as Python, on one line and without what would end a block of code."""
    return ascii(name).replace("`", "\\x60")


def _numbers(checkpoint: Checkpoint, calibration: Calibration, measured: Measured) -> list[str]:
    labels, split, metrics = checkpoint.labels, measured.split, measured.metrics
    train = measured.train
    majority = majority_accuracy(labels, train, measured.targets) if train else {}
    rows = [
        [
            escaped(head.name),
            f"{'any' if head.multi_hot else 'one'} of {len(head.classes):,}",
            f"{_known(head, measured.targets).sum():,}",
            _number(metrics.get(f"{split}/accuracy/{head.name}", math.nan)),
            _number(majority.get(head.name, math.nan)),
            _number(metrics.get(f"{split}/balanced_accuracy/{head.name}", math.nan)),
            _number(metrics.get(f"{split}/macro_f1/{head.name}", math.nan)),
        ]
        for head in labels.heads
    ]
    several = (
        " Where a head says any of its classes, a row counts as right if all of them are, at"
        " thresholds of 0.5."
        if any(head.multi_hot for head in labels.heads)
        else ""
    )
    lines = [
        "## Numbers",
        "",
        f"On {_many(len(measured.targets), 'row')} of {escaped(measured.csv)} ({escaped(split)})."
        f" Majority class: the accuracy of always saying what is most common in training.{several}",
        "",
        *_table(_COLUMNS, rows),
    ]
    if split == "val":
        lines += [
            "The epoch, and of a sweep the trial, was chosen by its numbers on these rows, so"
            " others will do a little worse: `python -m raymlc.validate FOLDER --data DIR --split"
            " test` tells.",
            "",
        ]
    return lines


def _calibration(heads: Sequence[Head], calibration: Calibration, measured: Measured) -> list[str]:
    rows = []
    for head in heads:
        its = calibration.heads.get(head.name)
        rows.append(
            [escaped(head.name), f"{its.labels:,}", *map(_number, (its.temperature, *its.ece))]
            if its
            else [escaped(head.name), "0", "", "not calibrated", ""]
        )
    lines = [
        "## Calibration",
        "",
        f"`{CALIBRATION}` divides the logits of each head by a temperature, which was fitted to"
        f" {_many(calibration.rows, 'row')} of {escaped(measured.csv)}. Calibration error: how far"
        " probability and truth are apart, in the mean; before and after, on the same rows"
        f" ({BINS} bins, of the class that is said, or of each class where a head says any).",
        "",
        *_table(("head", "labels", "temperature", "error before", "error after"), rows),
    ]
    for head in heads:
        its = calibration.heads.get(head.name)
        if its is None or not head.multi_hot:
            continue
        there_K = _counts(head, measured.targets)
        gain = (
            f"; its mean F1 is {its.f1[1]:.3f}, where thresholds of 0.5 give {its.f1[0]:.3f}"
            if its.f1
            else ""
        )
        cuts = [
            [escaped(label), f"{there:,}", f"{cut:.2f}"]
            for label, there, cut in zip(head.classes, there_K, its.thresholds, strict=True)
        ]
        lines += [
            f"Head {escaped(head.name)} says each class whose probability is above its threshold,"
            f" chosen for F1 on these rows{gain}.",
            "",
            *_table(("class", "rows with it", "threshold"), cuts[:_MOST]),
        ]
    return lines


def _data(heads: Sequence[Head], measured: Measured) -> list[str]:
    train = measured.train
    lines = ["## Data", ""]
    if train is None:
        lines += ["The training rows were not at hand when this card was written.", ""]
    else:
        lines += [
            f"Trained on {_many(len(train), 'row')} of {escaped(measured.train_csv)}; beside each"
            " class, the training rows that have it.",
            "",
        ]
    for head in heads:
        named = [escaped(label) for label in head.classes]
        if train is not None:
            counts_K = _counts(head, train)
            order = np.argsort(-counts_K, kind="stable")
            named = [f"{named[number]} {counts_K[number]:,}" for number in order]
        more = f", and {len(named) - _MOST:,} more" if len(named) > _MOST else ""
        missing = "" if train is None else _missing(head, train)
        lines += [
            f"- **{escaped(head.name)}**, {_many(len(named), 'class', 'classes')}{missing}:"
            f" {', '.join(named[:_MOST])}{more}"
        ]
    return [*lines, ""]


def _missing(head: Head, train: Targets) -> str:
    without = int((~_known(head, train)).sum())
    return f", {_many(without, 'row')} without a label" if without else ""


def _preprocessing(checkpoint: Checkpoint) -> list[str]:
    config, pixels = checkpoint.config, checkpoint.normalization
    mean, std = (", ".join(f"{x:g}" for x in part) for part in (pixels.mean, pixels.std))
    lines = [
        "## Preprocessing",
        "",
        "`load` and `raymlc.predict` do all of it.",
        "",
        "1. The image is turned as its EXIF says; what is transparent is laid on white; RGB.",
        f"2. The whole image is squashed to {config.image_size} × {config.image_size} pixels,"
        " bicubic, whatever its shape.",
    ]
    if config.eval_crop < 1:
        lines.append(
            f"3. Its central part, {config.eval_crop:g} of each side, is enlarged to that size,"
            f" {config.interpolation}."
        )
    lines.append(
        f"{len(lines) - 3}. Pixels in [0, 1] minus the mean ({mean}), divided by the standard"
        f" deviation ({std})."
    )
    return [*lines, ""]


def _limits(checkpoint: Checkpoint, calibration: Calibration, measured: Measured) -> list[str]:
    heads, train = checkpoint.labels.heads, measured.train
    lines = [
        "- Every image gets an answer, also one unlike all that were trained on: a head knows only"
        " its own classes, and its probability does not tell strange images.",
        "- Probabilities hold for images and shares of classes like those of the rows above.",
    ]
    majority = majority_accuracy(checkpoint.labels, train, measured.targets) if train else {}
    for head in heads:
        name = escaped(head.name)
        accuracy = measured.metrics.get(f"{measured.split}/accuracy/{head.name}", math.nan)
        if accuracy <= majority.get(head.name, math.nan):
            lines.append(f"- Head {name} is no better than always saying the majority class.")
        if head.name not in calibration.heads:
            lines.append(
                f"- Head {name} is not calibrated, since no row had a label for it that training"
                " knows: its probabilities are the network's own."
            )
        unseen = measured.targets.unseen[head.name]
        if unseen:
            lines.append(
                f"- Head {name} cannot say {_many(len(unseen), 'label')} that these rows have and"
                f" training had not, such as {escaped(unseen[0])}."
            )
        if train is not None:
            rare = int((_counts(head, train) < _RARE).sum())
            if rare:
                lines.append(
                    f"- Head {name}: {rare:,} of {_many(len(head.classes), 'class', 'classes')}"
                    f" had fewer than {_RARE} rows in training."
                )
    return ["## Limits", "", *lines]


def _known(head: Head, targets: Targets) -> NDArray[np.bool_]:
    """Which rows have a label."""
    known: NDArray[np.bool_] = targets.values_NT[:, targets.columns[head.name].start] != MISSING
    return known


def _counts(head: Head, targets: Targets) -> NDArray[np.int64]:
    """How many rows have each class of the head."""
    values_NC = targets.values_NT[:, targets.columns[head.name]]
    size = len(head.classes)
    single = np.bincount(values_NC[values_NC >= 0], minlength=size)[:size]
    counts: NDArray[np.int64] = (values_NC[:, :size] == 1).sum(0) if head.multi_hot else single
    return counts


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(columns)} |",
        f"|{' --- |' * len(columns)}",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _many(count: int, one: str, several: str = "") -> str:
    return f"{count:,} {one if count == 1 else several or one + 's'}"
