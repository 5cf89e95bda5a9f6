"""The decoded images of a run's table, opened where the run begins."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

from rich.console import Console

from raymlc.data.store import ImageSplit, open_sizes
from raymlc.data.table import Table
from raymlc.options import RunOptions
from raymlc.watch.progress import track


def open_images(
    options: RunOptions, table: Table, name: str, image_sizes: Collection[int], console: Console
) -> ImageSplit:
    """A split's images, decoded if nobody has yet; rows that are left out are counted aloud.

    image_sizes: all that trials may ask for; it is returned at the first of them.
    Raises UserError as `open_sizes` does.
    """
    split = table.splits[name]
    progress = partial(track, console)
    opened = open_sizes(split, image_sizes, options.cache, options.broken_images, progress)
    images = opened[next(iter(image_sizes))]
    if images.skipped:
        console.print(
            f"{images.skipped} rows of {split.csv.name} left out: their images cannot be read",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    return images


def files_of(table: Table) -> list[Path]:
    """The first and the last image of the splits that trials read, which stand for all of them."""
    trained = (table.splits[name].images for name in ("train", "val"))
    return list(dict.fromkeys(image for images in trained for image in (images[0], images[-1])))
