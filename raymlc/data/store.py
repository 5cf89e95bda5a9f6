"""Decode once: every image of a split as one row of a memory-mapped file of uint8.

The first to open a split decodes it; all trials, workers, epochs and later sweeps on that machine
map the same file. Shapes: N images, H and W the image size, C = 3 channels (RGB).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
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

if sys.platform != "win32":
    import fcntl

DEFAULT_CACHE = Path("~/.cache/raymlc")
BrokenImages = Literal["stop", "skip"]
Progress = Callable[[Iterable[int], str, int], Iterable[int]]  # iterable, description, its length
Upright = dict[tuple[int, int], Image.Image]  # one file's image, by the size it is decoded to

UNFINISHED = ".building"  # a store that is being filled
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
    """Map the decoded images of `split`, as `open_sizes` does, at one size."""
    return open_sizes(split, (image_size,), cache, broken, progress)[image_size]


def open_sizes(
    split: Split,
    image_sizes: Collection[int],
    cache: Path = DEFAULT_CACHE,
    broken: BrokenImages = "stop",
    progress: Progress | None = None,
) -> dict[int, ImageSplit]:
    """Map the decoded images of `split` at each size, decoding them first if nobody has yet.

    image_sizes: pixels; each whole image is squashed into a square of that height and width. Those
        that are not there yet are decoded together, each to the pixels that it would have alone.
    cache: the folder of the stores. A store is found by its images' paths, sizes and times of
        change, written beside its place and then renamed, under a lock.
    broken: "stop" raises for an image that cannot be decoded, "skip" leaves its row out.
    Raises UserError naming the row and file of a broken image, or a cache that cannot be written.
    """
    folder = cache.expanduser()
    paths = {size: folder / f"{key}.npy" for size, key in _keys(split, image_sizes).items()}
    shapes = {size: (len(split), size, size, 3) for size in paths}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as locks:
            for path in sorted(paths.values()):  # in one order, lest two wait for each other
                locks.enter_context(FileLock(path.with_suffix(".lock")))
            stores = {size: _map(path, shapes[size]) for size, path in paths.items()}
            missing = [size for size, store in stores.items() if store is None]
            if missing:
                _build(split, {size: paths[size] for size in missing}, progress)
                stores |= {size: _map(paths[size], shapes[size]) for size in missing}
    except OSError as error:
        needed = sum(math.prod(shape) for shape in shapes.values()) / 2**20
        raise UserError(
            f"the decoded images need {needed:,.0f} MiB in {folder}, but that failed: {error}; make"
            " room (see python -m raymlc.cache), or name another folder with --cache"
        ) from error
    return {size: _whole(split, store, broken) for size, store in stores.items()}


def _whole(
    split: Split, store: tuple[NDArray[np.uint8], dict[str, str]] | None, broken: BrokenImages
) -> ImageSplit:
    """A split without the rows whose images are broken."""
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


def decode(
    path: Path | IO[bytes], image_size: int, upright: Upright | None = None
) -> NDArray[np.uint8]:
    """One image file as upright RGB, squashed to (image_size, image_size, 3).

    upright: what the file was decoded to for other sizes, used again where it would be the same;
    an image of many pixels is not kept there.

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
        if pixels > _MANY_PIXELS:
            with _ONE_AT_A_TIME:
                return _squashed(_upright(file), image_size)
        upright = {} if upright is None else upright
        if file.size not in upright:
            upright[file.size] = _upright(file)
        return _squashed(upright[file.size], image_size)


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


def _upright(file: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(file)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _squashed(image: Image.Image, image_size: int) -> NDArray[np.uint8]:
    size = (image_size, image_size)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0))


def _keys(split: Split, image_sizes: Collection[int]) -> dict[int, str]:
    """The name of the store of each size."""
    digests = {size: hashlib.sha256(f"{_FORMAT} {size}".encode()) for size in image_sizes}
    real_folder = cache(os.path.realpath)  # asks the disk for each part of a path
    for image in map(str, split.images):
        stat = os.lstat(image)
        if S_ISLNK(stat.st_mode):
            path, stat = os.path.realpath(image), os.stat(image)
        else:
            folder, name = os.path.split(image)
            path = os.path.join(real_folder(folder), name)
        text = f"\n{path} {stat.st_size} {stat.st_mtime_ns}"
        line = text.encode(errors="surrogateescape")  # a folder's name need be no text
        for digest in digests.values():
            digest.update(line)
    return {size: digest.hexdigest()[:24] for size, digest in digests.items()}


def _map(path: Path, shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], dict[str, str]] | None:
    """The store at `path`, and why some of its images are broken, by place.

    None if it is not there, cut short or of another shape.
    """
    try:
        images_NHWC = mapped(path)
        reasons: dict[str, str] = json.loads(about(path).read_text())["broken"]
    except (FileNotFoundError, ValueError, EOFError):
        return None
    if images_NHWC.shape != shape or images_NHWC.dtype != np.uint8:
        return None
    with suppress(OSError):  # of a cache that may only be read
        os.utime(path)
    return images_NHWC, reasons


def mapped(path: Path) -> NDArray[np.uint8]:
    """The images of the store at `path`, which nobody evicts while they are mapped.

    Raises FileNotFoundError, ValueError or EOFError where it is no whole store.
    """
    with path.open("rb") as file:
        if sys.platform != "win32":
            with suppress(OSError):  # of a file system without locks
                fcntl.flock(file, fcntl.LOCK_SH)  # the map has a copy of the handle, which holds it
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        return np.memmap(file, dtype, "r", file.tell(), shape)


def about(path: Path) -> Path:
    """What is to know of the store at `path`: the table it was made for, and its broken images."""
    return path.with_suffix(".json")


def _build(split: Split, paths: dict[int, Path], progress: Progress | None) -> None:
    """Fill the stores of several sizes, by their paths, in one go through the files."""
    count = len(split)
    unfinished = {size: path.with_suffix(UNFINISHED) for size, path in paths.items()}
    stores = {size: _reserve(path, (count, size, size, 3)) for size, path in unfinished.items()}
    reasons: dict[int, dict[int, str]] = {size: {} for size in stores}

    def fill(place: int) -> int:
        upright: Upright = {}
        for size, images_NHWC in stores.items():
            try:
                images_NHWC[place] = decode(split.images[place], size, upright)
            except Exception as error:  # Pillow's: SyntaxError, struct.error and others
                reasons[size][place] = one_line(error)
        return place

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done: Iterable[int] = pool.map(fill, range(count))
        if progress is not None:
            mib = sum(images_NHWC.nbytes for images_NHWC in stores.values()) / 2**20
            sizes = f" at {len(stores)} sizes" if len(stores) > 1 else ""
            text = f"decoding {split.csv.name} once{sizes} ({count:,} images, {mib:,.0f} MiB)"
            done = progress(done, text, count)
        for _ in done:
            pass
    for size, path in paths.items():
        stores[size].flush()
        broken = {str(place): reasons[size][place] for place in sorted(reasons[size])}
        facts = {"csv": str(split.csv), "broken": broken}
        about(path).write_text(json.dumps(facts), encoding="utf-8")
        os.replace(unfinished[size], path)


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
