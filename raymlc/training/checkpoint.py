"""Checkpoints: folders of safetensors and JSON, written beside their place and then renamed.

In a trial's folder, `best` holds the weights that earned the trial's score, and `last` what is
needed to go on. No class of ours is pickled into either.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
from raymlc.training.state import Training
from raymlc.trial import TrialConfig

WEIGHTS, TRIAL, LABELS = "model.safetensors", "trial.json", "labels.json"
PREPROCESSING, METRICS = "preprocessing.json", "metrics.json"
STATE, HISTORY = "training.pt", "history.json"


@dataclass(frozen=True)
class Checkpoint:
    """A trained network with all that its use needs, and the metrics of the epoch it is from."""

    network: Network
    config: TrialConfig
    labels: Labels
    normalization: Normalization
    metrics: dict[str, float]


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A fresh folder to fill, which takes the place of `folder` when the block ends well.

    Killed at any moment, `find` still sees the old folder or the new one, whole.
    """
    filling, old = _sibling(folder, "filling"), _sibling(folder, "old")
    shutil.rmtree(filling, ignore_errors=True)
    filling.mkdir(parents=True)
    yield filling
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
) -> None:
    """Write a network of `config` and `labels` as a checkpoint that needs nothing else."""
    with replacing(folder) as filling:
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, filling / WEIGHTS)
        _write(filling / TRIAL, config.to_dict())
        _write(filling / LABELS, labels.to_dict())
        _write(filling / PREPROCESSING, asdict(normalization) | {"image_size": config.image_size})
        _write(filling / METRICS, metrics)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint, on the CPU. Raises UserError, in one line, if it is not a whole one."""
    found = find(folder)
    if found is None or not (found / WEIGHTS).is_file():
        raise UserError(f"a checkpoint is a folder that holds {WEIGHTS}, but {folder} does not")
    try:
        config = TrialConfig.from_dict(_read_object(found / TRIAL))
        labels = Labels.from_dict(_read_object(found / LABELS))
        pixels = _read_object(found / PREPROCESSING)
        network = build_network(config, labels, fetch=False)
        network.load_state_dict(load_file(found / WEIGHTS))
        return Checkpoint(
            network,
            config,
            labels,
            Normalization(tuple(pixels["mean"]), tuple(pixels["std"])),
            _read_object(found / METRICS),
        )
    except UserError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"checkpoint {found} is broken or of another version: {one_line(error)}"
        ) from error


def save_last(folder: Path, training: Training, history: list[dict[str, float]]) -> None:
    """Write what a trial needs to go on; of a finished trial only its history remains."""
    with replacing(folder) as filling:
        _write(filling / HISTORY, history)
        if training.epoch < training.config.epochs:
            torch.save(training.state_dict(), filling / STATE)


def load_history(folder: Path) -> list[dict[str, float]]:
    """The metrics of every epoch of which `folder` holds the end; none if it holds nothing."""
    found = find(folder)
    return _read(found / HISTORY) if found else []


def load_last(folder: Path, training: Training) -> None:
    """Bring a training of the same trial to where `save_last` left it."""
    found = find(folder)
    assert found is not None, folder
    state = torch.load(found / STATE, map_location=training.device, weights_only=True)
    training.load_state_dict(state)


def discard_state(folder: Path) -> None:
    """Free the disk of what a trial that has ended would need to go on; its history stays."""
    found = find(folder)
    if found:
        (found / STATE).unlink(missing_ok=True)


def read_score(folder: Path) -> dict[str, float]:
    """The metrics of the checkpoint in `folder`; none if there is no checkpoint."""
    found = find(folder)
    return _read(found / METRICS) if found else {}


def _sibling(folder: Path, role: str) -> Path:
    return folder.with_name(f".{folder.name}.{role}")


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_object(path: Path) -> dict[str, Any]:
    value = _read(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} must hold a JSON object, but holds {type(value).__name__}")
    return value
