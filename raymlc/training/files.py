"""The files of a checkpoint's folder, each checked as it is read.

A checkpoint may be cut short, of another version, or made by somebody who means harm: what is false
about it is said in one line before anything is built from it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from raymlc.data.batches import Normalization
from raymlc.errors import UserError, one_line
from raymlc.labels import Labels
from raymlc.model.start import LABELS, WEIGHTS
from raymlc.trial import TrialConfig

FORMAT = 1  # of a checkpoint's folder; raise it when an older raymlc would misread a newer one
ABOUT = "checkpoint.json"
TRIAL = "trial.json"
PREPROCESSING, METRICS, CONFUSION = "preprocessing.json", "metrics.json", "confusion.json"

_GEOMETRY = ("image_size", "eval_crop", "interpolation")  # which the trial has, too

# Which weights of a training a checkpoint holds: as they were trained, their moving average, or the
# average of other checkpoints.
Origin = Literal["raw", "ema", "average"]


def about(weights: Path, origin: Origin) -> dict[str, Any]:
    """What a checkpoint says of itself, for `read_about`."""
    return {"format": FORMAT, "weights": origin, "sha256": digest(weights)}


def preprocessing(normalization: Normalization, config: TrialConfig) -> dict[str, Any]:
    """All that is done to an image before the network sees it, for `read_preprocessing`."""
    pixels = {"mean": list(normalization.mean), "std": list(normalization.std)}
    return pixels | {name: getattr(config, name) for name in _GEOMETRY}


def digest(path: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_about(folder: Path) -> tuple[Origin, str]:
    """Which weights a checkpoint holds, and the digest of their file.

    Raises UserError for a format that this raymlc does not read, and for weights that have changed.
    """
    about = read_object(folder / ABOUT)
    if type(about.get("format")) is not int:
        raise UserError(f"{ABOUT} must say its format, but says {about.get('format')!r:.60}")
    if about["format"] != FORMAT:
        raise UserError(
            f"it is of format {about['format']}, but this raymlc reads format {FORMAT}; upgrade"
            " raymlc"
        )
    origin: Origin = about["weights"]
    if origin not in get_args(Origin):
        raise UserError(
            f"{ABOUT} must call its weights {', '.join(get_args(Origin))}, but says {origin!r:.60}"
        )
    if about["sha256"] != digest(folder / WEIGHTS):
        raise UserError(
            f"{WEIGHTS} is not as it was written (its SHA-256 is another than in {ABOUT}); copy it"
            " anew"
        )
    return origin, about["sha256"]


def read_labels(path: Path) -> Labels:
    """Heads with names and classes that a network can have. Raises UserError for others."""
    values = read_object(path)
    heads = values.get("heads")
    if not isinstance(heads, list) or not heads:
        raise UserError(f"{path.name} must hold a list of heads, but holds {heads!r:.60}")
    for head in heads:
        name, classes = head["name"], head["classes"]
        if type(name) is not str or type(head["multi_hot"]) is not bool:
            raise UserError(f"a head has a name and multi_hot, but {path.name} has {head!r:.60}")
        if type(classes) is not list or any(type(label) is not str for label in classes):
            raise UserError(
                f"the classes of head {name!r:.60} must be texts, but {path.name} has"
                f" {classes!r:.60}"
            )
        if not classes or len(set(classes)) < len(classes):
            raise UserError(f"{path.name} has no class, or one of them twice, in head {name!r:.60}")
    labels = Labels.from_dict(values)
    if len(set(labels.names)) < len(labels.names):
        raise UserError(f"{path.name} has two heads of one name: {labels.names!r:.60}")
    return labels


def read_preprocessing(path: Path, config: TrialConfig) -> Normalization:
    """The mean and std of the pixels. Raises UserError where `config` is contradicted."""
    values = read_object(path)
    for name in ("mean", "std"):
        numbers = values.get(name)
        numbers = numbers if isinstance(numbers, list) else []
        fine = [x for x in numbers if type(x) in (int, float) and 0 <= x < math.inf]
        if len(numbers) != 3 or len(fine) != 3 or (name == "std" and 0 in fine):
            raise UserError(
                f"{path.name} must hold {name} as 3 numbers, a std above 0, but holds"
                f" {values.get(name)!r:.60}"
            )
    for name in _GEOMETRY:
        value = getattr(config, name)
        if values.get(name) != value:
            raise UserError(
                f"{path.name} and {TRIAL} must agree on {name}, but have {values.get(name)!r:.60}"
                f" and {value!r}"
            )
    return Normalization(tuple(values["mean"]), tuple(values["std"]))


def metrics_of(values: Any, source: str) -> dict[str, float]:
    """The values of a JSON file, if they are named numbers. Raises UserError for others."""
    numbers = isinstance(values, dict) and all(type(x) in (int, float) for x in values.values())
    if not numbers:
        raise UserError(f"{source} must hold named numbers, but holds {values!r:.60}")
    metrics: dict[str, float] = values
    return metrics


def version() -> str:
    """Which raymlc this is."""
    try:
        return importlib.metadata.version("raymlc")
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        return "from its sources"


def check_heads(weights: Mapping[str, Tensor], labels: Labels) -> None:
    """Raises UserError unless the weights have each head's number of classes.

    To be known before a network is built, since a false number makes it as large as it likes.
    """
    rows = {name: len(weight) for name, weight in weights.items() if weight.ndim == 2}
    for index, head in enumerate(labels.heads):
        there = rows.get(f"heads.{index}.1.weight", 0)
        if there != len(head.classes):
            raise UserError(
                f"head {head.name!r:.60} has {len(head.classes)} classes in {LABELS}, but {there}"
                f" in {WEIGHTS}"
            )


def check_fit(weights: Mapping[str, Tensor], network: nn.Module) -> None:
    """Raises UserError unless the weights are those of the network, all of them."""
    wanted = network.state_dict()
    missing, more = sorted(wanted.keys() - weights), sorted(weights.keys() - wanted)
    other = [
        name for name in wanted if name in weights and weights[name].shape != wanted[name].shape
    ]
    if missing or more or other:
        counts = {"are missing": missing, "are not its own": more, "are of another shape": other}
        said = ", ".join(f"{len(names)} {words}" for words, names in counts.items() if names)
        first = next(names[0] for names in counts.values() if names)
        raise UserError(
            f"{WEIGHTS} must hold the weights of {TRIAL}'s backbone and {LABELS}' heads, but of its"
            f" tensors {said}, {first:.60} for one"
        )


def write(path: Path, value: Any) -> None:
    """Write a value as JSON."""
    path.write_text(to_json(value), encoding="utf-8")


def to_json(value: Any) -> str:
    """A value as the JSON of a checkpoint's files."""
    return json.dumps(value, indent=1) + "\n"


def replace_text(path: Path, text: str) -> None:
    """Write a text file beside its place and then rename it, so that no reader sees a part of it.

    Raises OSError for one that cannot be written, and leaves what was there.
    """
    filling = path.with_name(f".{path.name}.filling")
    try:
        filling.write_text(text, encoding="utf-8")
        os.replace(filling, path)
    finally:
        filling.unlink(missing_ok=True)


def read(path: Path) -> Any:
    """A value from JSON. Raises UserError for what is none, OSError for no file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path.name} is no JSON: {one_line(error)}") from error


def read_object(path: Path) -> dict[str, Any]:
    """An object from JSON, as `read`."""
    value = read(path)
    if not isinstance(value, dict):
        raise UserError(f"{path.name} must hold a JSON object, but holds {value!r:.60}")
    return value
