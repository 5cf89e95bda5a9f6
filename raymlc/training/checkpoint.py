"""Checkpoints: folders of safetensors and JSON, written beside their place and then renamed.

In a trial's folder, `best` holds the weights that earned the trial's score, and `last` what is
needed to go on. No class of ours is pickled into either, and whatever is read is checked first: a
checkpoint may be cut short, of another version, or made by somebody who means harm.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from raymlc.data.batches import Normalization
from raymlc.errors import UserError, one_line
from raymlc.labels import Labels
from raymlc.model.network import Network, build_network
from raymlc.model.start import LABELS, WEIGHTS
from raymlc.training.calibration import Calibration, read_calibration
from raymlc.training.files import (
    ABOUT,
    CONFUSION,
    METRICS,
    PREPROCESSING,
    TRIAL,
    Origin,
    about,
    check_fit,
    check_heads,
    metrics_of,
    preprocessing,
    read,
    read_about,
    read_labels,
    read_object,
    read_preprocessing,
    write,
)
from raymlc.training.state import Training
from raymlc.trial import TrialConfig

STATE, HISTORY = "training.pt", "history.json"
_ANEW = "; remove that folder to begin the training anew"

_BROKEN = (
    OSError,
    EOFError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
    SafetensorError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class Checkpoint:
    """A trained network with all that its use needs.

    metrics: of the epoch it is from, measured with these very weights; none where they were never
    scored. confusion: what `Counts.confusion` said of that epoch. origin: which weights they are.
    sha256: the digest of the weights' file. calibration: how logits become probabilities, where
    somebody has fitted that.
    """

    network: Network
    config: TrialConfig
    labels: Labels
    normalization: Normalization
    metrics: dict[str, float]
    confusion: dict[str, Any]
    origin: Origin
    sha256: str
    calibration: Calibration | None


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A fresh folder to fill, which takes the place of `folder` when the block ends well.

    Killed at any moment, `find` still sees the old folder or the new one, whole. Raises OSError for
    what cannot be written, and leaves the old one.
    """
    filling, old = _sibling(folder, "filling"), _sibling(folder, "old")
    shutil.rmtree(filling, ignore_errors=True)
    filling.mkdir(parents=True)
    try:
        yield filling
        for file in filling.iterdir():
            _reach_the_disk(file)
    except Exception:
        shutil.rmtree(filling, ignore_errors=True)  # a disk that is full needs its room
        raise
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    filling.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def find(folder: Path) -> Path | None:
    """The whole folder that `replacing` last left at `folder`; None if there never was one."""
    old = _sibling(folder, "old")
    return folder if folder.exists() else old if old.exists() else None


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    config: TrialConfig,
    labels: Labels,
    normalization: Normalization,
    metrics: dict[str, float],
    confusion: Mapping[str, Any] | None = None,
    origin: Origin | None = None,
) -> None:
    """Write a network of `config` and `labels` as a checkpoint that needs nothing else.

    metrics: what exactly these weights scored; {} if nobody has measured them.
    confusion: JSON values beside them. origin: by default what `Training.deployed` is.
    """
    with replacing(folder) as filling:
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        with _told_by_the_system():
            save_file(weights, filling / WEIGHTS)
        deployed: Origin = "ema" if config.ema_decay else "raw"
        write(filling / ABOUT, about(filling / WEIGHTS, origin or deployed))
        write(filling / TRIAL, config.to_dict())
        write(filling / LABELS, labels.to_dict())
        write(filling / PREPROCESSING, preprocessing(normalization, config))
        write(filling / METRICS, metrics)
        write(filling / CONFUSION, dict(confusion or {}))


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint, on the CPU. Raises UserError, in one line, if it is not a whole one."""
    found = find(folder)
    if found is None or not (found / WEIGHTS).is_file():
        raise UserError(f"a checkpoint is a folder that holds {WEIGHTS}, but {folder} does not")
    with _said_of(f"checkpoint {found}"):
        origin, sha256 = read_about(found)
        config = TrialConfig.from_dict(read_object(found / TRIAL))
        labels = read_labels(found / LABELS)
        normalization = read_preprocessing(found / PREPROCESSING, config)
        metrics = metrics_of(read(found / METRICS), METRICS)
        confusion = read_object(found / CONFUSION)
        calibration = read_calibration(found, labels, sha256)
        weights = load_file(found / WEIGHTS)
        check_heads(weights, labels)
        network = build_network(config, labels, fetch=False)
        check_fit(weights, network)
        network.load_state_dict(weights)
    return Checkpoint(
        network, config, labels, normalization, metrics, confusion, origin, sha256, calibration
    )


def save_last(folder: Path, training: Training, history: list[dict[str, float]]) -> None:
    """Write what a trial needs to go on; of a finished trial only its history remains."""
    with replacing(folder) as filling:
        write(filling / HISTORY, history)
        if training.epoch < training.config.epochs:
            state = training.state_dict()
            with _told_by_the_system(), (filling / STATE).open("wb") as file:
                torch.save(state, file)


def load_history(folder: Path) -> list[dict[str, float]]:
    """The metrics of every epoch of which `folder` holds the end; none if it holds nothing.

    Raises UserError if they cannot be read.
    """
    found = find(folder)
    if not found:
        return []
    with _said_of(f"the history of the training in {found}", _ANEW):
        history = read(found / HISTORY)
        if not isinstance(history, list):
            raise UserError(f"{HISTORY} must hold a list, but holds {history!r:.60}")
        return [metrics_of(epoch, HISTORY) for epoch in history]


def load_last(folder: Path, training: Training) -> None:
    """Bring a training of the same trial to where `save_last` left it.

    Raises UserError if what it left is broken, or of another trial.
    """
    found = find(folder)
    assert found is not None, folder
    with _said_of(f"the state of the training in {found}", _ANEW):
        # Each part of a training moves its own to where it belongs: step counts stay on the CPU.
        state = torch.load(found / STATE, map_location="cpu", weights_only=True)
        training.load_state_dict(state)


def discard_state(folder: Path) -> None:
    """Free the disk of what a trial that has ended would need to go on; its history stays."""
    found = find(folder)
    if found:
        (found / STATE).unlink(missing_ok=True)


def read_score(folder: Path) -> dict[str, float]:
    """The metrics of the checkpoint in `folder`; none if there is no checkpoint.

    Raises UserError if they cannot be read.
    """
    found = find(folder)
    if not found:
        return {}
    with _said_of(f"the score of the checkpoint {found}"):
        return metrics_of(read(found / METRICS), METRICS)


def _sibling(folder: Path, role: str) -> Path:
    return folder.with_name(f".{folder.name}.{role}")


def _reach_the_disk(file: Path) -> None:
    """Wait until a file would outlive the machine; some systems only now say that it cannot."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


@contextmanager
def _told_by_the_system() -> Iterator[None]:
    """Raises the system's OSError where torch or safetensors would say where they noticed it."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise


@contextmanager
def _said_of(what: str, way_out: str = "") -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:  # which says nothing about what is read
        raise
    except _BROKEN as error:
        reason = str(error) if isinstance(error, UserError) else one_line(error)
        raise UserError(f"{what} cannot be used: {reason}{way_out}") from error
