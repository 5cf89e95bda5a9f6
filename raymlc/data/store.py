"""Decode once: every image of a split as one row of a memory-mapped file of uint8.

The first to open a split decodes it; all trials, workers, epochs and later sweeps on that machine
map the same file. Shapes: N images, H and W the image size, C = 3 channels (RGB).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from stat import S_ISLNK, S_ISREG
from threading import Lock
from typing import IO, Any, Literal

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, ImageOps

from raymlc.data.table import Split
from raymlc.errors import UserError, one_line
from raymlc.labels import Targets

DEFAULT_CACHE = Path("~/.cache/raymlc")
BrokenImages = Literal["stop", "skip"]
Progress = Callable[[Iterable[int], str, int], Iterable[int]]  # iterable, description, its length

_FORMAT = 1  # of the stored pixels; raise it when `decode` gives others

# What files may be, whatever they are called. Pillow knows more, and for some of them, such as EPS,
# it starts another program.
_KINDS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "JPEG2000", "PPM", "ICO", "TGA")
_MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 2**26  # of an image as it is decoded
_MANY_PIXELS = 2**24  # of such images one is decoded at a time, however many threads there are
_ONE_AT_A_TIME = Lock()


@dataclass(frozen=True)
class ImageSplit:
    """The decoded rows of a split.

    images_NHWC: uint8, mapped from disk, read-only; row n of the split is images_NHWC[places_N[n]].
    targets: one row an image. skipped: how many rows had an image that cannot be decoded.
    """

    images_NHWC: NDArray[np.uint8]
    places_N: NDArray[np.int64]
    targets: Targets
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.places_N)


def open_split(
    split: Split,
    image_size: int,
    cache: Path = DEFAULT_CACHE,
    broken: BrokenImages = "stop",
    progress: Progress | None = None,
) -> ImageSplit:
    """Map the decoded images of `split`, decoding them first if nobody has yet.

    image_size: pixels; each whole image is squashed into a square of that height and width.
    cache: the folder of the stores. A store is found by its images' paths, sizes and times of
        change, written beside its place and then renamed, under a lock.
    broken: "stop" raises for an image that cannot be decoded, "skip" leaves its row out.
    Raises UserError naming the row and file of a broken image, or a cache that cannot be written.
    """
    folder = cache.expanduser()
    path = folder / f"{_key(split, image_size)}.npy"
    shape = (len(split), image_size, image_size, 3)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            store = _map(path, shape)
            if store is None:
                _build(split, path, shape, progress)
                store = _map(path, shape)
    except OSError as error:
        raise UserError(
            f"the decoded images need {np.prod(shape) / 2**20:,.0f} MiB in {folder}, but that"
            f" failed: {error}; make room, or name another folder with --cache"
        ) from error
    assert store is not None
    images_NHWC, reasons = store
    if reasons and broken == "stop":
        place, reason = next(iter(reasons.items()))
        raise UserError(
            f"each image must be readable, but {len(reasons)} of {split.csv.name} are not, the"
            f" first in row {split.rows[int(place)]}: {split.images[int(place)]}: {reason};"
            " mend it, or leave such rows out with --broken-images skip"
        )
    whole_N = np.array([str(place) not in reasons for place in range(len(split))])
    kept = np.flatnonzero(whole_N)
    return ImageSplit(images_NHWC, kept, split.targets.take(kept), len(reasons))


def decode(path: Path | IO[bytes], image_size: int) -> NDArray[np.uint8]:
    """One image file as upright RGB, squashed to (image_size, image_size, 3).

    Transparent pixels are laid on white; 16-bit grey keeps its upper 8 bits; EXIF turns are done.
    Raises an error of Pillow's, which may be of any type, if the file is no whole image; and for
    more than 89 million pixels (Pillow's MAX_IMAGE_PIXELS), before memory is taken for them. Of a
    JPEG those count that are left when it is decoded at an eighth, a quarter or half of its size.
    """
    with open_image(path) as file:
        file.draft("RGB", (image_size, image_size))
        pixels = file.width * file.height
        if pixels > _MOST_PIXELS:
            raise ValueError(
                f"it has {file.width:,} × {file.height:,} pixels, and more than {_MOST_PIXELS:,}"
                " are not decoded"
            )
        with _ONE_AT_A_TIME if pixels > _MANY_PIXELS else nullcontext():
            return _squashed(file, image_size)


def open_image(path: Path | IO[bytes]) -> Image.Image:
    """An image file of a kind that runs nothing, no pixel of which is decoded yet.

    Raises an error of Pillow's, which may be of any type, if the file is none.
    """
    if isinstance(path, Path) and not S_ISREG(path.stat().st_mode):
        raise OSError("it is no file")  # and of a pipe the other end would be waited for
    return Image.open(path, formats=_kinds())


@cache
def _kinds() -> tuple[str, ...]:
    Image.init()
    return tuple(kind for kind in _KINDS if kind in Image.OPEN)  # AVIF is not in every Pillow


def _squashed(file: Image.Image, image_size: int) -> NDArray[np.uint8]:
    image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    image = image.convert("RGB")
    size = (image_size, image_size)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0))


def _key(split: Split, image_size: int) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {image_size}".encode())
    real_folder = cache(os.path.realpath)  # asks the disk for each part of a path
    for image in map(str, split.images):
        stat = os.lstat(image)
        if S_ISLNK(stat.st_mode):
            path, stat = os.path.realpath(image), os.stat(image)
        else:
            folder, name = os.path.split(image)
            path = os.path.join(real_folder(folder), name)
        text = f"\n{path} {stat.st_size} {stat.st_mtime_ns}"
        digest.update(text.encode(errors="surrogateescape"))  # a folder's name need be no text
    return digest.hexdigest()[:24]


def _map(path: Path, shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], dict[str, str]] | None:
    """The store at `path`, and why some of its images are broken, by place.

    None if it is not there, cut short or of another shape.
    """
    try:
        images_NHWC: NDArray[np.uint8] = np.load(path, mmap_mode="r")
        reasons: dict[str, str] = json.loads(path.with_suffix(".broken.json").read_text())
    except (FileNotFoundError, ValueError, EOFError):
        return None
    whole = images_NHWC.shape == shape and images_NHWC.dtype == np.uint8
    return (images_NHWC, reasons) if whole else None


def _build(split: Split, path: Path, shape: tuple[int, ...], progress: Progress | None) -> None:
    unfinished = path.with_suffix(".building")
    images_NHWC = _reserve(unfinished, shape)
    reasons: dict[int, str] = {}

    def fill(place: int) -> int:
        try:
            images_NHWC[place] = decode(split.images[place], shape[1])
        except Exception as error:  # Pillow's: SyntaxError, struct.error, RuntimeError and others
            reasons[place] = one_line(error)
        return place

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done: Iterable[int] = pool.map(fill, range(len(split)))
        if progress is not None:
            size = np.prod(shape) / 2**20
            text = f"decoding {split.csv.name} once ({len(split):,} images, {size:,.0f} MiB)"
            done = progress(done, text, len(split))
        for _ in done:
            pass
    images_NHWC.flush()
    ordered = {str(place): reasons[place] for place in sorted(reasons)}
    path.with_suffix(".broken.json").write_text(json.dumps(ordered))
    os.replace(unfinished, path)


def _reserve(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.uint8]]:
    """A new mapped file with all its room on the disk. Raises OSError where there is too little."""
    images_NHWC = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    # A mapped page that finds no room when it is written kills the process by a signal.
    if hasattr(os, "posix_fallocate"):
        try:
            with path.open("rb+") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError:
            path.unlink()
            raise
    return images_NHWC
