"""python -m raymlc.predict: the class of each head, and its probability, for images."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, TextIO

import tyro
from rich.console import Console

from raymlc.data.store import BrokenImages
from raymlc.data.table import IMAGE_COLUMN
from raymlc.door import check_at_least_1, check_free, run_door, written
from raymlc.errors import UserError
from raymlc.watch.progress import track

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class PredictOptions:
    """Say of images which class each head sees, and how probable it is, as CSV.

    Examples:
      python -m raymlc.predict runs/NAME/trials/0007/best photos/ --output labels.csv
      python -m raymlc.predict runs/NAME/trials/0007/best shirt.jpg --top 3
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Folder of a checkpoint, such as runs/NAME/trials/0007/best."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Images, and folders of images (jpg, png, webp, bmp, gif, tiff) at any depth."""
    output: Path | None = None
    """CSV file to write. Default: the terminal."""
    overwrite: bool = False
    """Replace the file of --output if there is one."""
    top: int = 0
    """Add to each head a column with its so many most likely classes, as a JSON object."""
    flip: bool = False
    """Predict by the mean of each image and its mirror image, in twice the time."""
    raw: bool = False
    """Leave the checkpoint's calibration.json unused: the network's own probabilities, and 0.5 as
    the threshold of multi-hot heads."""
    broken_images: BrokenImages = "stop"
    """What to do about an image that cannot be read: stop, or name it and leave it out."""
    batch_size: int | None = None
    """Images at a time, halved where memory is out. Default: the trial's own."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1 and so on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 when done, 2 for wrong input or a broken image, 130 after Ctrl-C."""
    return run_door(PredictOptions, "predict", _predict, arguments)


def _predict(options: PredictOptions) -> int:
    check_at_least_1(batch_size=options.batch_size)
    if options.top < 0:
        raise UserError(f"--top must be at least 0, but is {options.top}")
    check_free(options.output, "--output", options.overwrite)
    console = Console(stderr=True)
    say = partial(console.print, highlight=False, soft_wrap=True, markup=False)

    # torch takes seconds to import, so only once the words are checked.
    from raymlc.training.gather import files_in
    from raymlc.training.prediction import cells, columns, load_predictor

    paths = files_in(options.images, SUFFIXES)
    predictor = load_predictor(
        options.checkpoint, options.device, options.batch_size, options.flip, say, options.raw
    )
    labels = predictor.labels
    broken = 0
    with _target(options.output) as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow([IMAGE_COLUMN, *columns(labels, options.top)])
        ticks = track(console, range(len(paths)), f"predicting {len(paths):,} images", len(paths))
        for _, (path, outcome) in zip(ticks, predictor.outcomes(paths), strict=True):
            if not isinstance(outcome, str):
                lines.writerow([path, *cells(labels, outcome, options.top, predictor.calibration)])
                continue
            if options.broken_images == "stop":
                raise UserError(
                    f"each image must be readable, but {path} is not: {outcome}; mend it, or leave"
                    " such images out with --broken-images skip"
                )
            say(f"left out, since it cannot be read: {path}: {outcome}")
            broken += 1
    if options.output:
        say(f"{len(paths) - broken:,} images in {options.output}")
    if broken:
        say(f"{broken:,} images left out: they cannot be read")
    return 0


@contextmanager
def _target(output: Path | None) -> Iterator[TextIO]:
    if output is None:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")  # a file's name need be no text
        yield sys.stdout
        sys.stdout.flush()
        return
    with written(output, "--output") as file:
        yield file


if __name__ == "__main__":
    sys.exit(main())
