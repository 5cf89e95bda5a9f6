"""The average of checkpoints' weights, which often predicts better than each of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raymlc.errors import UserError
from raymlc.labels import Head
from raymlc.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

# What a network computes depends on these fields, whatever its weights.
_OF_THE_NETWORK = ("backbone", "image_size", "eval_crop", "interpolation", "bn_eps")


def average_checkpoints(folders: Sequence[Path], output: Path) -> None:
    """Write to `output` the uniform average of checkpoints (model soups, arXiv:2203.05482).

    Floating numbers, batch statistics among them, are averaged in float64; whole ones, and the
    trial, are the first's. The result has no metrics, since nobody has scored these weights.
    Raises UserError, saying what differs, for networks or labels that are not the same.
    """
    first = load_checkpoint(folders[0])
    weights = first.network.state_dict()
    sums = {name: weight.double() for name, weight in weights.items() if weight.is_floating_point()}
    for folder in folders[1:]:
        other = load_checkpoint(folder)
        differences = _differences(first, other)
        if differences:
            raise UserError(
                f"checkpoints to average must share network and labels, but {folders[0]} and"
                f" {folder} differ in {'; '.join(differences)}"
            )
        for name, weight in other.network.state_dict().items():
            if name in sums:
                sums[name] += weight
    means = {name: (total / len(folders)).to(weights[name].dtype) for name, total in sums.items()}
    first.network.load_state_dict(weights | means)
    save_checkpoint(
        output,
        first.network,
        first.config,
        first.labels,
        first.normalization,
        metrics={},
        origin="average",
    )


def _differences(first: Checkpoint, other: Checkpoint) -> list[str]:
    said = []
    for name in _OF_THE_NETWORK:
        one, two = getattr(first.config, name), getattr(other.config, name)
        if one != two:
            said.append(f"{name} ({one!r} and {two!r})")
    if first.normalization != other.normalization:
        said.append(f"mean and std ({first.normalization} and {other.normalization})")
    if first.labels.names != other.labels.names:
        return [*said, f"heads ({first.labels.names!r} and {other.labels.names!r})"]
    pairs = zip(first.labels.heads, other.labels.heads, strict=True)
    return said + [_of_heads(one, two) for one, two in pairs if one != two]


def _of_heads(one: Head, two: Head) -> str:
    if one.multi_hot != two.multi_hot:
        return f"head {one.name!r} (one is multi-hot, the other single-label)"
    new = [
        label
        for label in (*one.classes, *two.classes)
        if one.classes.count(label) != two.classes.count(label)
    ]
    what = ", ".join(map(repr, new[:3])) + (", …" if len(new) > 3 else "") if new else "their order"
    return f"the classes of head {one.name!r} ({what})"
