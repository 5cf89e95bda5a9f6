"""python -m raymlc.validate: the metrics of one checkpoint on a split."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from raymlc.data.store import DEFAULT_CACHE, BrokenImages, open_split
from raymlc.data.table import read_split
from raymlc.errors import UserError


@dataclass(frozen=True)
class ValidateOptions:
    """Measure a checkpoint on a split of a table, head by head."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Folder of a checkpoint, such as runs/NAME/trials/0007/best."""
    data: Path
    """Folder of train.csv, val.csv, test.csv, or any CSV file with the columns of the heads."""
    split: str = "val"
    """Which CSV of the folder: val, test, train."""
    batch_size: int | None = None
    """Images at a time. Default: the trial's own."""
    broken_images: BrokenImages = "stop"
    """What to do about an image that cannot be read: stop, or skip its row."""
    cache: Path = DEFAULT_CACHE
    """Where decoded images are kept."""
    json: bool = False
    """Print the metrics as one JSON object instead of a table."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 when done, 2 for wrong input."""
    try:
        options = tyro.cli(
            ValidateOptions,
            prog="python -m raymlc.validate",
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        _validate(options)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _validate(options: ValidateOptions) -> None:
    csv = options.data / f"{options.split}.csv" if options.data.is_dir() else options.data
    if not csv.is_file():
        raise UserError(f"--data must hold the split, but {csv} is not a file; see --split")

    import torch  # seconds, so only once the words are checked

    from raymlc.training.checkpoint import load_checkpoint
    from raymlc.training.evaluate import evaluate
    from raymlc.watch.progress import brief, track

    checkpoint = load_checkpoint(options.checkpoint)
    console = Console(stderr=True)
    images = open_split(
        read_split(csv, checkpoint.labels),
        checkpoint.config.image_size,
        options.cache,
        options.broken_images,
        partial(track, console),
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = torch.channels_last if checkpoint.config.channels_last else torch.contiguous_format
    metrics = evaluate(
        checkpoint.network.to(device, memory_format=layout),  # type: ignore[call-overload]
        checkpoint.labels,
        images,
        checkpoint.normalization,
        device,
        batch_size=options.batch_size or checkpoint.config.batch_size,
        precision=checkpoint.config.precision,
        prefix=options.split,
    )
    if options.json:
        print(json.dumps(metrics))
        return
    table = Table(title=f"{options.checkpoint} on {csv}, {len(images):,} rows", box=box.SIMPLE_HEAD)
    names = ("accuracy", "balanced_accuracy", "loss")
    table.add_column("head")
    for name in names:
        table.add_column(name, justify="right")
    for head in checkpoint.labels.names:
        values = [brief(metrics[f"{options.split}/{name}/{head}"]) for name in names]
        table.add_row(head, *values)
    table.add_section()
    table.add_row("mean", *(brief(metrics[f"{options.split}/{name}"]) for name in names))
    Console().print(table)
    if images.skipped:
        print(f"{images.skipped} rows left out: their images cannot be read")
    for line in checkpoint.labels.unseen_lines(images.targets):
        print(line)


if __name__ == "__main__":
    sys.exit(main())
