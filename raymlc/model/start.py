"""Starting from a checkpoint of raymlc: its backbone, and each head that is still the same."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from raymlc.errors import UserError, one_line
from raymlc.labels import Labels

WEIGHTS, LABELS = "model.safetensors", "labels.json"  # in a checkpoint's folder


def kept_heads(folder: Path, labels: Labels) -> tuple[str, ...]:
    """The heads of `labels` that the checkpoint has too: of one name, kind and list of classes.

    Raises UserError if the folder holds no checkpoint.
    """
    old = _labels_of(folder).heads
    return tuple(head.name for head in labels.heads if head in old)


def start_lines(weights: str, labels: Labels) -> list[str]:
    """What a trial with `weights` keeps of that checkpoint, in a line; none if it is a file."""
    if not weights or not Path(weights).is_dir():
        return []
    kept = kept_heads(Path(weights), labels)
    new = [name for name in labels.names if name not in kept]
    return [
        f"from checkpoint {weights}: kept heads: {', '.join(kept) or 'none'}; new heads:"
        f" {', '.join(new) or 'none'}"
    ]


def start_from(folder: Path, backbone: nn.Module, heads: nn.ModuleList, labels: Labels) -> None:
    """Load the backbone of a checkpoint, and those of its heads that `kept_heads` names.

    The other heads stay as they were drawn. Raises UserError if the folder holds no checkpoint, or
    one of another backbone.
    """
    old = _labels_of(folder)
    try:
        weights = load_file(folder / WEIGHTS)
        backbone.load_state_dict(_below("backbone.", weights))
        for name in kept_heads(folder, labels):
            place = old.names.index(name)
            heads[labels.names.index(name)].load_state_dict(_below(f"heads.{place}.", weights))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"weights must be a checkpoint of the trial's own backbone, but {folder} could not be"
            f" loaded: {one_line(error)}; take that checkpoint's backbone (and image_size, where"
            " its weights depend on it), or other weights"
        ) from error


def _labels_of(folder: Path) -> Labels:
    try:
        values = json.loads((folder / LABELS).read_text(encoding="utf-8"))
        return Labels.from_dict(values)
    except (OSError, ValueError) as error:
        raise UserError(
            f"weights must be a file of weights or the folder of a checkpoint, but {folder} holds"
            f" no {LABELS} of one: {one_line(error)}"
        ) from error


def _below(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): weight
        for name, weight in weights.items()
        if name.startswith(prefix)
    }
